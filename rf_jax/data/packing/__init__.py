"""Packing: which sample stands in which row of which batch, in integers (numpy only).

`plan.py` is the plan of a run, a function of (seed, step). `bins.py` is the bin packing in it:
samples of known sizes into rows of fixed capacities.
"""
