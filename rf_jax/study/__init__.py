"""The controlled study: RF and its baselines trained on equal budgets, scored and compared.

`plan.py` turns configs/study.py into jobs, `runner.py` trains and scores them and resumes after any
interruption, `report.py`, `plots.py` and `notes.py` write the results. `ladder.py` compares
finished studies rung by rung. Command: `python -m rf_jax.study`.

May import evaluation and every floor below it; only entry points import study.
"""
