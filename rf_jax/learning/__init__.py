"""Objective, optimizer, train step and loop; `flow.py` is the algorithm without a network."""
