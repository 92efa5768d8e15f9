"""Model FLOPs by arithmetic: what the products need, without recomputation or padding of masks."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from ml_collections import ConfigDict

from rf_jax.data import typical_row
from rf_jax.models import encoders, representation, spaces


@dataclass(frozen=True)
class Pairs:
    """Query-key pairs of a row: in the backbone, and among images to read and to generate."""

    backbone: float
    vision: float
    pixels: float


def all_pairs(config: ConfigDict) -> Pairs:
    """Every pair of a row, as the reference implementation of attention computes them."""
    capacity, extra = config.data.capacity, encoders.own_tokens(config)
    row = sum(capacity[name] for name in ('text', 'vision', 'representation', 'pixels'))
    vision = 4 * capacity.vision + capacity.vision_images * extra if capacity.vision else 0
    pixels = capacity.pixels + capacity.pixel_images * extra if capacity.pixels else 0
    return Pairs(row**2, vision**2, pixels**2)


def visible_pairs(config: ConfigDict, row: Mapping[str, np.ndarray] | None = None) -> Pairs:
    """The visible pairs of a row as `typical_row` fills it, or of the row that is given."""
    row = typical_row.row(config) if row is None else row
    extra = encoders.own_tokens(config)
    return Pairs(
        typical_row.visible_pairs(row),
        typical_row.image_pairs(row['vision_counts'], extra),
        typical_row.image_pairs(row['pixel_counts'], extra),
    )


def backbone_token(config: ConfigDict) -> float:
    """Forward FLOPs of one token in the products of all layers, without attention's."""
    c = config.model.backbone
    attention = c.width * c.head_dim * (2 * c.heads + 2 * c.kv_heads)
    feed = 3 * c.width * c.feedforward
    if c.ffn == 'moe':
        feed = c.width * (3 * c.moe.top_k * c.moe.feedforward + c.moe.num_experts)
    return 2.0 * c.layers * (attention + feed)


def train_step(config: ConfigDict, vocabulary: int, pairs: Pairs | None = None) -> float:
    """FLOPs of one step at the row capacities: forward, twice that backward, EMA encoder forward.

    `pairs` of a row; all by default. Frozen parameters (optimizer.freeze) need no gradients, and
    layers before the first trained parameter no backward pass.
    """
    pairs = pairs or all_pairs(config)
    capacity, c, e = config.data.capacity, config.model.backbone, config.model.encoder
    kind, space = representation.of(config), spaces.of(config)
    row = sum(capacity[name] for name in ('text', 'vision', 'representation', 'pixels'))
    channels = config.data.patch_size**2 * 3
    towers = [config.model[name] for name in space.towers]

    def encoder(patches, images, seen, e=e):
        if not patches:
            return 0.0
        family = encoders.of(e)
        tokens = patches + images * family.own_tokens(e)
        attention = 4.0 * e.layers * seen * e.width
        embedding = patches * family.embed_flops(e, channels)
        return tokens * family.token_flops(e) + attention + embedding

    def frozen(path):
        return any(re.search(pattern, path) for pattern in config.optimizer.freeze)

    asked = any(config.losses[name] for name in ('text', 'representation', 'flow'))
    targets = capacity.pixels, capacity.pixel_images, pairs.pixels
    if not asked:  # an autoencoder is trained alone: encoder and decoder, forward and backward
        learned = 2 * sum(encoder(*targets, tower) for tower in towers)
        return config.data.batch_size * 3 * learned
    backbone = row * backbone_token(config)
    backbone += 4.0 * c.layers * pairs.backbone * c.heads * c.head_dim
    heads = 2.0 * capacity.text * c.width * vocabulary
    heads += kind.head_flops(config)
    heads += 4.0 * capacity.pixels * space.width(config) * c.width
    connector = 2.0 * capacity.vision * (e.width * c.width + c.width**2)
    total = 3 * connector
    total += (2 if frozen('backbone/layers/attention/query/kernel') else 3) * backbone
    total += (2 if frozen('text_head/kernel') else 3) * heads
    seen = encoder(4 * capacity.vision, capacity.vision_images, pairs.vision)
    total += (1 if frozen('encoder/layers/query/kernel') else 3) * seen
    total += encoder(*targets) if kind.needs_features else 0.0
    total += sum(encoder(*targets, tower) for tower in towers)
    total += capacity.pixels * space.patch_flops(config)
    return config.data.batch_size * total
