"""Scores of a checkpoint: of the images that it generates and of the answers that it gives.

`run_report` evaluates a run, with `retrieval` or, for runs on scenes, with `scoring`; `inspection`
shows what the representation tokens stand for.
"""
