"""Devices, sharding, checkpoints, metrics: knows nothing of models or data."""
