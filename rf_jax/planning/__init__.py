"""A pod without a pod: what a config will cost, before any device is rented.

Compiles the programs of a run ahead of time for devices that are not here (`topology.py`,
`ahead_of_time.py`), reads cost and memory from the compiled HLO (`hlo.py`, `hlo_cost.py`,
`hlo_memory.py`, `memory_parts.py`), sets them against the roofline (`roofline.py`), and says how
well a packing plan fills its rows (`packing_stats.py`, on `synthetic_sizes.py` if there is no data
yet). Commands: `python -m rf_jax.compile_check` and `python -m rf_jax.packing_report`.

Imports evaluation and every floor below it; only entry points import planning.
"""
