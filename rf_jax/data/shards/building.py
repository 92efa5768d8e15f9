"""Builds the index of a shard, one sample after another."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from rf_jax.data.conversation import Template, Tokens
from rf_jax.data.messages import ImagePart
from rf_jax.data.shards import index
from rf_jax.data.shards.index import IMAGE, MOST, SAMPLE, Index
from rf_jax.data.shards.sample import Sample

_UNLIMITED = 2**30  # tokens: nothing is truncated


class IndexBuilder:
    """The samples of one shard, all captioned images or all conversations."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self._pieces = Template(tokenizer, _UNLIMITED, Counter()).pieces
        self._samples: list[tuple] = []
        self._images: list[tuple[int, int, bool]] = []

    def __len__(self) -> int:
        return len(self._samples)

    def add(
        self, sample: Sample, sizes: Sequence[tuple[int, int]], offset: int, blocks: int
    ) -> None:
        """Adds a sample whose images have these (height, width), at `offset` blocks of the shard.

        Raises ValueError if it is larger than an index can say.
        """
        if blocks > MOST:
            raise ValueError(f'{blocks * index.BLOCK / 2**20:.0f} MiB; a sample may have 32')
        if max((side for size in sizes for side in size), default=0) > MOST:
            raise ValueError(f'an image of {sizes} pixels; a side may have {MOST}')
        if sample.messages:
            self._conversation(sample, sizes, offset, blocks)
            return
        captions = [self._count(caption) for caption in sample.captions]
        asked = [self._count(q) + self._count(a) for q, a in sample.questions]
        prompt, answer = max(captions), max([*captions, *asked])
        self._keep(offset, blocks, *sizes[0], prompt, answer, 1)

    def _conversation(self, sample: Sample, sizes, offset: int, blocks: int) -> None:
        pieces = self._pieces(sample.messages)
        tokens = sum(len(piece.ids) for piece in pieces if isinstance(piece, Tokens))
        first = len(self._images)
        self._keep(offset, blocks, first >> 16, first & MOST, tokens, 0, len(sizes))
        generated = [
            message.role == 'assistant'
            for message in sample.messages
            for part in message.parts
            if isinstance(part, ImagePart)
        ]
        self._images += [(*size, own) for size, own in zip(sizes, generated, strict=True)]

    def _keep(self, offset, blocks, height, width, prompt, answer, images) -> None:
        if max(prompt, answer, images) > MOST:
            raise ValueError(f'{max(prompt, answer):,} tokens and {images:,} images are too many')
        self._samples.append((offset, blocks, height, width, prompt, answer, images))

    def _count(self, text: str) -> int:
        return len(self.tokenizer.encode(text))

    def index(self, shard_bytes: int) -> Index:
        """Of all samples so far, for a shard of this size."""
        return Index(
            np.array(self._samples, SAMPLE),
            shard_bytes,
            self.tokenizer.checksum[:32],
            np.array(self._images, IMAGE),
        )
