"""Sets of any size: tar shards, an index of 16 bytes a sample beside each, and `set.json`."""
