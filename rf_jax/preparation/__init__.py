"""Makes prepared sets (`data.shards`) of what people have: tar files of WebDataset, Parquet, ...

Two passes over units of work that know nothing of each other, run by Apache Beam: `cleaning` reads
the input, `shuffling` writes the shards.
"""
