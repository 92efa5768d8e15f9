"""The controlled study: RF and its comparisons trained at equal budget, scored and compared.

`plan.py` turns configs/study.py into runs, `runner.py` trains and scores them and resumes after any
interruption, `report.py`, `plots.py` and `notes.py` write what was found. `ladder.py` compares
finished studies, rung after rung. Command: `python -m rf_jax.study`.

Imports evaluation and every floor below it; only entry points import study.
"""
