"""What the encoder's features become for the step: inputs and targets of the representation
(paper, section 3.1), by model.representation.kind. No gradient flows here.

With `optimizer.grad_accum_steps` parts, features and similarities are made part by part: codes need
statistics of all rows, features as targets do not.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rf_jax.models import microbatches, quantizer
from rf_jax.models.unified import Unified
from rf_jax.models.vision_encoder import pool
from rf_jax.runtime.errors import choose
from rf_jax.training.state import State, random_key

Batch = Mapping[str, jax.Array]


class Targets(NamedTuple):
    """`of_batch(state, batch) -> (small batch entries, new codebook, metrics)` looks at all rows;
    `of_part(state, part) -> entries` of some rows are made when these are learned from.

    `tokens` [B, R, ...] are inputs of the representation stream, the other entries what the losses
    compare with.
    """

    of_batch: Callable
    of_part: Callable = lambda state, part: {}

    def __call__(self, state: State, batch: Batch):
        """(entries, new codebook, metrics) of a batch that is not cut into parts."""
        found, codebook, metrics = self.of_batch(state, batch)
        return found | self.of_part(state, batch), codebook, metrics


def group_features(config, model: Unified, ema, batch: Batch):
    """Unit features z [B G, Denc] of the pictures to be drawn, G groups of patches a row, and
    which are real [B G].
    """
    c = config.model.representation
    z = model.apply({'params': ema}, batch, method='features')
    z = pool(z if c.quantizer.pool_first else quantizer.normalise(z), c.pool)
    valid = batch['pixel_weight'][:, :: c.pool**2] > 0
    return quantizer.normalise(z.reshape(-1, z.shape[-1])), valid.reshape(-1)


def take(groups: jax.Array, index: jax.Array, missing: float) -> jax.Array:
    """Groups [B, G, ...] read at index [B, R], `missing` where the index is -1."""
    where = index.reshape(*index.shape, *[1] * (groups.ndim - 2))
    read = jnp.take_along_axis(groups, jnp.maximum(where, 0), axis=1)
    return jnp.where(where < 0, missing, read)


def batch_features(config, model: Unified, ema, batch: Batch):
    """As `group_features`, with the encoder on one part of the rows at a time."""
    names = ('pixels', 'pixel_picture', 'pixel_coords', 'pixel_counts', 'pixel_weight')

    def features(rows):
        z, valid = group_features(config, model, ema, rows)
        count = len(rows['pixels'])
        return z.reshape(count, -1, z.shape[-1]), valid.reshape(count, -1)

    read = {name: batch[name] for name in names}
    z, valid = microbatches.join(
        microbatches.map_parts(features, config.optimizer.grad_accum_steps, read)
    )
    return z.reshape(-1, z.shape[-1]), valid.reshape(-1)


def redraw(config, at: int, taken: jax.Array, codebook, z, valid):
    """The codebook with the prototypes that are drawn from this step's features.

    A batch may hold fewer features than there are prototypes: M features fill M rows a step, from
    step `at` on, until all are filled. Copies of one feature would stay unused for ever; where
    some of the M are padding, as many rows are copies, and where all are, rows stay as they were.
    `taken` counts the steps before this one without those that were skipped.
    """
    many = min(len(z), len(codebook))  # rows of a step
    row = jnp.arange(len(codebook))
    turn = row // many  # which step after `at` fills a row
    key = random_key(config.seed, 'codebook', taken)

    def draw(old):
        filled = turn < taken - at
        known = quantizer.nearest_similarity(z, old, filled, config.optimizer.grad_accum_steps)
        fresh = quantizer.build_data_init(config)(key, z, valid, many, known)[row % many]
        return jnp.where((turn == taken - at)[:, None] & valid.any(), fresh, old)

    due = (taken >= at) & (taken <= at + turn[-1])
    return jax.lax.cond(due, draw, lambda old: old, codebook)


def quantize(config, assign, model, state: State, batch: Batch):
    """(codes int32 [B, G], new codebook): targets by the EMA encoder."""
    c = config.model.representation.quantizer
    rows, patches, _ = batch['pixels'].shape
    if not patches:  # no room for drawings
        return jnp.zeros((rows, 0), jnp.int32), state.codebook
    z, valid = batch_features(config, model, state.ema, batch)
    codebook = state.codebook
    taken = state.step - state.skipped  # what a skipped step drew is lost: the next draws again
    for at in c.data_init_steps:
        codebook = redraw(config, at, taken, codebook, z, valid)
    codes = assign(z, codebook, valid, config.optimizer.grad_accum_steps)
    codebook = quantizer.update(codebook, z, codes, valid, c.momentum)
    return codes.reshape(rows, -1), codebook


def used_codes(targets: jax.Array, codes: int) -> jax.Array:
    """Share of the K codes that are a target in this batch."""
    hit = jnp.zeros(codes + 1).at[jnp.where(targets < 0, codes, targets)]
    return hit.set(1.0)[:-1].mean()


def _forcing(config, model) -> Targets:
    assign = quantizer.build(config)

    def of_batch(state: State, batch: Batch):
        codes, codebook = quantize(config, assign, model, state, batch)
        targets = take(codes, batch['target_group'], -1)
        found = {'tokens': take(codes, batch['input_group'], -1), 'code_targets': targets}
        return found, codebook, {'codes_used': used_codes(targets, codebook.shape[0])}

    return Targets(of_batch)


def _continuous(config, model) -> Targets:
    def of_part(state: State, batch: Batch):
        rows, patches, _ = batch['pixels'].shape
        z = jnp.zeros((rows * patches, state.codebook.shape[1]))
        if patches:
            z, _ = group_features(config, model, state.ema, batch)
        # Values of mean square 1, as the linear layers that read and predict them like best.
        z = z.reshape(rows, -1, z.shape[-1]) * z.shape[-1] ** 0.5
        found = {'tokens': take(z, batch['input_group'], 0.0)}
        return found | {'feature_targets': take(z, batch['target_group'], 0.0)}

    return Targets(_nothing, of_part)


def _alignment(config, model) -> Targets:
    del config

    def of_part(state: State, batch: Batch):
        rows, patches, _ = batch['pixels'].shape
        z = jnp.zeros((rows, patches, state.codebook.shape[1]))
        if patches:
            z = model.apply({'params': state.ema}, batch, method='features')
        return {'tokens': batch['input_group'], 'patch_features': quantizer.normalise(z)}

    return Targets(_nothing, of_part)


def _none(config, model) -> Targets:
    del config, model
    return Targets(_nothing, lambda state, part: {'tokens': part['input_group']})


def _nothing(state: State, batch: Batch):
    return {}, state.codebook, {}


KINDS = {
    'forcing': _forcing,
    'continuous': _continuous,
    'alignment': _alignment,
    'none': _none,
}


def build(config, model: Unified) -> Targets:
    """Of `config.model.representation.kind`."""
    kind = config.model.representation.kind
    return choose('model.representation.kind', kind, KINDS)(config, model)
