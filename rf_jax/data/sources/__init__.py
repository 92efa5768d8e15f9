"""Data sources: one file each, all implementing the protocol `Source` of `data/records.py`.

`listing.py` (captions.jsonl and the metadata files of Hugging Face's folders; paths in them must
not leave the folder) and `metadata_cache.py` (caches the scan of a large data set) serve the
sources. `data.source_list` parses the config field `data.sources`.
"""
