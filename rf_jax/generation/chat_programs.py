"""The compiled programs of a chat: known tokens into the cache, a chunk of text, of an image."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from rf_jax.data import spans
from rf_jax.generation import guidance, image_sampling, kv_cache, text_sampling
from rf_jax.generation.image_sampling import State
from rf_jax.generation.placement import ONE_DEVICE, Placement, of_results
from rf_jax.generation.token_sampling import Writing
from rf_jax.models.unified import Unified
from rf_jax.runtime.mesh import BATCH_AXES, batch_sharding

CHUNK = 16  # text tokens that are sampled by one call

Arrays = Mapping[str, jax.Array]
Rows = Mapping[guidance.Branch, Arrays]


class Context(NamedTuple):
    """What the rows of a chat know: keys and values, and the logits [B, V] of their next token."""

    cache: kv_cache.Cache
    logits: jax.Array


class ChatPrograms:
    """`extend` and `decode`, and the programs of images: `begin_images`, `write_tokens` and `move`,
    as in `image_sampling`, and the model's `pixels`. Each is compiled once for equal shapes.
    """

    def __init__(
        self, model: Unified, config: ConfigDict, tokenizer, placement: Placement = ONE_DEVICE
    ):
        self.model, self.config, self.placement = model, config, placement
        self.begin = np.asarray(model.kind.begin(model.config, 1))  # of a representation
        self.pool = spans.pool_of(config)
        self._stops = *tokenizer.ends, tokenizer.image
        self._where = self._shardings()
        whole, decoded, images = placement.whole, None, None
        if self._where:
            cache, rows = self._where
            decoded, images = (self._where, whole, whole), State(Writing(cache, rows, whole), rows)
        jit = placement.jit
        self.extend = jit(self._extend, donate_argnums=(2,), out_shardings=self._where)
        self.decode = jit(self._decode, donate_argnums=(2,), out_shardings=decoded)
        self.begin_images = jit(self._begin_images, static_argnums=(3,), out_shardings=images)
        self.write_tokens = jit(
            self._write_tokens, static_argnums=(7,), donate_argnums=(3,), out_shardings=images
        )
        self.move = jit(self._move, static_argnums=(6,), donate_argnums=(2,), out_shardings=images)
        self.pixels = jit(self._pixels)

    def _shardings(self) -> Context | None:
        """Of rows and key/value heads on a mesh, of each array of the cache; None on one device."""
        mesh = self.placement.mesh
        if mesh is None:
            return None
        divides = self.config.model.backbone.kv_heads % mesh.shape['tensor'] == 0
        heads = BATCH_AXES, 'tensor' if divides else None
        axes = (None, *heads) if self.placement.stacked else heads
        return Context(NamedSharding(mesh, PartitionSpec(*axes)), batch_sharding(mesh))

    def new_context(self, params, rows: int, size: int, vocabulary: int) -> Context:
        """An empty cache of `size` tokens a row, placed as results are, or the first call of a
        program would be compiled for itself.
        """
        one = of_results(params)
        where = self._where or Context(one, one)
        cache = kv_cache.empty(self.model, params, rows, size, where.cache)
        return Context(cache, jnp.zeros((rows, vocabulary), jnp.float32, device=where.logits))

    def _extend(self, params, fields: Arrays, context: Context, new: Arrays) -> Context:
        """Runs tokens that are known: text, images or representation tokens that are not in the
        cache yet, their `slots` [B, n] in this order, and `last` int32 [B]: which of the text
        tokens the next one follows, -1 for a row without new text.
        """
        bound = self.model.bind({'params': params})
        words = bound.embed_text(new['text_tokens'])
        vision = bound.embed_vision(new).astype(words.dtype)
        tokens = bound.embed_representation(new['tokens'], new['cells']).astype(words.dtype)
        x = jnp.concatenate([words, vision, tokens], 1)
        lengths = words.shape[1] + vision.shape[1], tokens.shape[1], 0
        x, cache = kv_cache.extend(
            self.model, params, fields, context.cache, new['slots'], x, lengths
        )
        if not words.shape[1]:
            return Context(cache, context.logits)
        last = new['last']
        hidden = x[jnp.arange(len(last)), jnp.maximum(last, 0)][:, None]
        found = self.model.bind({'params': params}).text_logits(hidden)[:, 0]
        return Context(cache, jnp.where((last >= 0)[:, None], found, context.logits))

    def _decode(self, params, fields: Arrays, context: Context, place, left, rule, forbidden):
        """A chunk of `text_sampling.decode`: (context, next places [B], tokens [CHUNK, B])."""
        start = text_sampling.Decoding(*context, place, left)
        state, tokens = text_sampling.decode(
            *(self.model, params, fields, start, rule, forbidden, self._stops, CHUNK)
        )
        return Context(state.cache, state.logits), state.place, tokens

    def _begin_images(self, params, rows: Rows, seeds, contexts):
        """`image_sampling.begin` with a seed for each image."""
        return image_sampling.begin(self.model, self.config, params, rows, _keys(seeds), contexts)

    def _write_tokens(self, params, rows: Rows, seeds, state, first, last, weights, options):
        return image_sampling.write(
            self.model, options, params, rows, _keys(seeds), state, first, last, weights
        )

    def _move(self, params, rows: Rows, state, first, last, weights, options):
        return image_sampling.move(
            self.model, self.config, options, params, rows, state, first, last, weights
        )

    def _pixels(self, params, row: Arrays, z):
        return self.model.bind({'params': params}).pixels(z, row)


def _keys(seeds: jax.Array) -> jax.Array:
    return jax.vmap(jax.random.key)(seeds)
