"""Representation forcing (paper, sections 3.1 to 3.3): discrete tokens, the codes of a quantizer
that reads the EMA encoder, predicted like text before any pixel.
"""

import re
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rf_jax.models import quantizer
from rf_jax.models.layers import Head, Logits, Table
from rf_jax.models.representation import features
from rf_jax.models.representation.kind import (
    Batch,
    Kind,
    Learned,
    Targets,
    learned_position,
    nothing_of_part,
)
from rf_jax.models.terms import CrossEntropy, Prediction
from rf_jax.runtime.rng import random_key

_AT_STEPS = 'model.representation.quantizer.data_init_steps'


class CodeEmbedding(nn.Module):
    """Identity from a table of K + 1 rows, the last for the begin token, plus position."""

    model: ConfigDict

    @nn.compact
    def __call__(self, tokens: jax.Array, cells: jax.Array) -> jax.Array:
        """tokens int32 [B, R] (-1: begin), cells int32 [B, R, 2] (-1: begin) -> [B, R, D]."""
        count, width = self.model.representation.codebook_size, self.model.backbone.width
        known = jnp.where(tokens < 0, count, tokens)
        identity = Table(count + 1, width, name='identity')(known)
        return identity + learned_position(self.model, cells)


class CodeHead(nn.Module):
    """Logits over the K codes."""

    model: ConfigDict

    @nn.compact
    def __call__(self, x: jax.Array, tapped: None = None) -> dict[str, Logits]:
        """x [B, R, D] -> representation_logits, Logits [B, R, K]."""
        del tapped
        head = Head(self.model.representation.codebook_size, name='logits')
        return {'representation_logits': head(x)}


def reinitialise(config: ConfigDict, at: int, taken: jax.Array, codebook, z, valid) -> jax.Array:
    """The codebook [K, Denc] with the prototypes that this step initialises with features z
    [M, Denc] of its batch.

    A batch may hold fewer features than there are prototypes: M features fill M rows per step, from
    step `at` on, until all are filled. Copies of one feature would stay unused for ever; where
    some of the M are padding, as many rows are copies, and where all are, rows stay as they were.
    `taken` int32 counts the steps before this one without those that were skipped.
    """
    many = min(len(z), len(codebook))  # rows of a step
    row = jnp.arange(len(codebook))
    turn = row // many  # which step after `at` fills a row
    key = random_key(config.seed, 'codebook', taken)

    def sample(old):
        filled = turn < taken - at
        known = quantizer.nearest_similarity(z, old, filled, config.optimizer.grad_accum_steps)
        fresh = quantizer.build_data_init(config)(key, z, valid, many, known)[row % many]
        return jnp.where((turn == taken - at)[:, None] & valid.any(), fresh, old)

    due = (taken >= at) & (taken <= at + turn[-1])
    return jax.lax.cond(due, sample, lambda old: old, codebook)


def quantize(config: ConfigDict, assign: Callable, model: nn.Module, state: Learned, batch: Batch):
    """(codes int32 [B, G], new codebook [K, Denc]) of the EMA encoder's features; `assign` comes
    from `quantizer.build`.
    """
    c = config.model.representation.quantizer
    rows, patches, _ = batch['pixels'].shape
    if not patches:  # rows without room for images to be generated
        return jnp.zeros((rows, 0), jnp.int32), state.codebook
    z, valid = features.group_features_by_part(config, model, state.ema, batch)
    codebook = state.codebook
    # What a skipped step initialised is lost: the next one does it again.
    taken = state.step - state.skipped
    for at in c.data_init_steps:
        codebook = reinitialise(config, at, taken, codebook, z, valid)
    codes = assign(z, codebook, valid, config.optimizer.grad_accum_steps)
    codebook = quantizer.update(codebook, z, codes, valid, c.momentum)
    return codes.reshape(rows, -1), codebook


def used_codes(targets: jax.Array, codes: int) -> jax.Array:
    """Share of the K codes that are a target in this batch: float32, in [0, 1]."""
    hit = jnp.zeros(codes + 1).at[jnp.where(targets < 0, codes, targets)]
    return hit.set(1.0)[:-1].mean()


def keep_top_k(logits: jax.Array, k: int) -> jax.Array:
    """Logits [..., K] with all but the k greatest at -inf; k = 0 keeps all."""
    if not k or k >= logits.shape[-1]:
        return logits
    least = jax.lax.top_k(logits, k)[0][..., -1:]
    return jnp.where(logits < least, -jnp.inf, logits)


class Forcing(Kind):
    """Adds `code_targets` int32 [B, R] (-1: none) to the batch."""

    tokens = True
    needs_features = True
    learns_codebook = True

    def embedding(self, model: ConfigDict) -> nn.Module:
        """Of codes."""
        return CodeEmbedding(model)

    def begin(self, model: ConfigDict, rows: int) -> jax.Array:
        """-1, int32 [rows]."""
        del model
        return jnp.full(rows, -1, jnp.int32)

    def head(self, model: ConfigDict) -> nn.Module:
        """Predicts codes."""
        return CodeHead(model)

    def targets(self, config: ConfigDict, model: nn.Module) -> Targets:
        """Codes need statistics of all rows, so they are assigned before the batch is split."""
        assign = quantizer.build(config)

        def of_batch(state, batch):
            codes, codebook = quantize(config, assign, model, state, batch)
            targets = features.take(codes, batch['target_group'], -1)
            tokens = features.take(codes, batch['input_group'], -1)
            used = {'codes_used': used_codes(targets, codebook.shape[0])}
            return {'tokens': tokens, 'code_targets': targets}, codebook, used

        return Targets(of_batch, nothing_of_part)

    def terms(self, cross_entropy: CrossEntropy) -> dict[str, Prediction]:
        """L_Rep (section 3.2): next-token prediction of the codes."""
        own = 'representation_weight', 'representation_logits', 'code_targets'
        path = 'representation_head/logits/kernel'
        return {'representation': Prediction(*own, path, cross_entropy)}

    def sample(self, prediction, place, keys, temperature, top_k) -> jax.Array:
        """From the `top_k` most likely codes, by Gumbel noise: int32 [B]."""
        logits = keep_top_k(prediction / max(temperature, 1e-6), top_k)
        noise = jax.vmap(
            lambda k: jax.random.gumbel(jax.random.fold_in(k, place), logits.shape[1:])
        )
        code = jnp.argmax(logits + (noise(keys) if temperature else 0.0), -1)
        return code.astype(jnp.int32)

    def head_flops(self, config: ConfigDict) -> float:
        """Logits of each token; its embedding is read from a table."""
        codes = config.model.representation.codebook_size
        return 2.0 * (config.data.capacity.representation * config.model.backbone.width * codes)

    def needs_weights(self, config: ConfigDict) -> dict[str, str]:
        """A codebook that is never initialised from features."""
        if config.model.representation.quantizer.data_init_steps:
            return {}
        return {f'{_AT_STEPS}=()': 'leaves the codebook at random prototypes'}

    def discards(self, config: ConfigDict, other: str) -> str:
        """The codebook, unless it is not kept anyway (initialise_new)."""
        steps = config.model.representation.quantizer.data_init_steps
        if not steps or any(re.search(each, 'codebook') for each in config.initialise_new):
            return ''
        return (
            f'the codebook of {other} is replaced at steps {", ".join(map(str, steps))}, which '
            f'discards what representation tokens have learned; to keep it, set {_AT_STEPS}=()'
        )


KIND = Forcing()
