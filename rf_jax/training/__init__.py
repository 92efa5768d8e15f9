"""Objective, optimizer, train step and train loop; `flow.py` is the algorithm without a network."""
