"""Planning for a pod without having one: what a config will cost before any device is rented.

Compiles the programs of a run ahead of time for devices of any TPU slice (`topology.py`,
`ahead_of_time.py`), and those of a trained model (`inference.py`), reads cost and memory from the
compiled HLO (`hlo.py`, `hlo_cost.py`, `hlo_memory.py`), compares them with the roofline
(`roofline.py`), and reports how well a packing plan fills its rows (`packing_stats.py`, also if
there is no data yet). Commands: `python -m rf_jax.compile_check` and
`python -m rf_jax.packing_report`.

May import evaluation and every floor below it; only entry points import planning.
"""
