"""A prepared set of any size without its images: real index files of samples sized like COCO's or
LAION's, to measure what planning costs on a host before there are the samples.
"""

import os
from pathlib import Path

import numpy as np

from rf_jax.data.hashing import uniform
from rf_jax.data.sentencepiece_tokenizer import SentencePieceTokenizer
from rf_jax.data.shards import index, set_file
from rf_jax.data.shards.index import MOST, SAMPLE, Index
from rf_jax.planning.packing_stats import KINDS, tokens_of
from rf_jax.runtime.rng import fold

BYTES = 30_000  # of a sample, about: a JPEG of 512 px
PER_SHARD = 2**15  # samples: shards of about 1 GiB
_TEXTS = ['lengths are made up, so any tokenizer does'] * 20


def samples_of(kind: str, numbers: np.ndarray, seed: int) -> np.ndarray:
    """SAMPLE[S] of the samples int64[S] of an endless set, packed one behind the other."""
    draws = fold(seed, 'synthetic', kind), numbers
    found = np.zeros(len(numbers), SAMPLE)
    found['blocks'] = BYTES // index.BLOCK * (0.5 + uniform(*draws, draw=20))
    found['offset'] = np.cumsum(found['blocks'], dtype=np.uint32) - found['blocks']
    sides = KINDS[kind].image(*(uniform(*draws, draw=i) for i in range(4)))
    found['height'], found['width'] = np.minimum(sides, MOST)
    found['prompt'] = np.minimum(tokens_of(KINDS[kind].caption, draws, 4), MOST)
    found['answer'] = found['prompt']
    found['images'] = 1
    return found


def write(folder: str, kind: str, count: int, lanes: int = 1, seed: int = 0) -> str:
    """Writes a set of `count` samples without shards to a new folder; returns data.sources.

    The shards of the first of `lanes` have an index of their own; the others are links to one.
    """
    root = Path(folder)
    root.mkdir(parents=True)
    tokenizer = SentencePieceTokenizer.train(_TEXTS, 300)
    whole, rest = divmod(count, PER_SHARD)
    sizes = [PER_SHARD] * whole + [rest] * (rest > 0)
    shards = []
    for shard, size in enumerate(sizes):
        name = f'captions-{shard:06d}.tar'
        path = root / index.path_of(name)
        if shard <= len(sizes) // lanes + 1 or size < PER_SHARD:
            numbers = shard * PER_SHARD + np.arange(size)
            found = Index(samples_of(kind, numbers, seed), 2**30, tokenizer.checksum[:32])
            path.write_bytes(found.to_bytes())
        else:
            os.link(root / index.path_of('captions-000000.tar'), path)
        shards.append(set_file.Shard(name, size, 2**30, '0' * 16))
    (root / tokenizer.file).write_bytes(tokenizer.model_bytes)
    described = set_file.PreparedSet(
        {'captions': shards, 'conversations': []}, tokenizer.file, tokenizer.checksum, MOST
    )
    set_file.write(str(root), described)
    return f'prepared:{root}'
