"""Devices, sharding, checkpoints and metrics; independent of models and data."""
