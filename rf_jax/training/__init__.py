"""Losses, optimizer, train step and train loop; `flow.py` is flow matching without a network."""
