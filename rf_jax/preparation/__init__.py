"""Makes prepared sets (`data.shards`) from existing data: tar files of WebDataset, Parquet, ...

Two passes over independent units of work, run by Apache Beam: `cleaning` reads the input,
`shuffling` writes the shards.
"""
