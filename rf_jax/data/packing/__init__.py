"""Packing: which example goes into which row of which batch, in integers (numpy only).

`plan.py` is the packing plan of a run, a function of (seed, step). `bins.py` is its bin packing:
examples of known sizes into rows of fixed capacities.
"""
