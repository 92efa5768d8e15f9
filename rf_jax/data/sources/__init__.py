"""Where samples come from: one file a source, all with the protocol of `source.py`.

`listing.py` (captions.jsonl and the metadata files of Hugging Face's folders), `safe_path.py`
(names in them must not leave the folder) and `metadata_cache.py` (what a scan of a large set found)
serve the sources. `data.source_list` turns the config field `data.sources` into sources.
"""
