"""Pretrained weights of other libraries, read from the folders in which they are published.

A family (`qwen3`, `dinov3`) is one table of tensors. `pretrained.py` checks a folder against it,
before the first byte of data is read, and then reads slices.
"""
