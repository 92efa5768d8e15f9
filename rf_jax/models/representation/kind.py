"""The protocol of a representation kind. A subclass overrides what it does differently; the
defaults are those of a kind without tokens, targets and loss.

A kind has no state: what it learns is in the parameters of its embedding and its head, and in the
codebook of the train state. Shape letters: see `rf_jax/__init__.py`; R tokens of the representation
stream of a row, Denc the width of the encoder.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rf_jax.models.layers import Table
from rf_jax.models.terms import CrossEntropy, Prediction, Term

Batch = Mapping[str, jax.Array]


class Learned(Protocol):
    """The part of the train state that targets are computed from."""

    step: jax.Array  # int32, batches consumed
    skipped: jax.Array  # int32, those whose update was not finite and left out
    ema: Any  # averaged parameters of the model
    codebook: jax.Array  # float32 [K, Denc]


class Targets(NamedTuple):
    """Batch entries that a kind adds, computed without gradients.

    `of_batch(state, batch) -> (entries, new codebook, metrics)` sees all rows and should return
    small arrays; `of_part(state, rows) -> entries` is computed for one of the
    `optimizer.grad_accum_steps` parts of the rows at a time. Together they hold `tokens`
    [B, R, ...], the inputs of the representation stream, and what the loss compares with.
    """

    of_batch: Callable[[Learned, Batch], tuple[dict[str, jax.Array], jax.Array, dict]]
    of_part: Callable[[Learned, Batch], dict[str, jax.Array]]

    def __call__(self, state: Learned, batch: Batch):
        """(entries, new codebook, metrics) of a batch that is not split into parts."""
        found, codebook, metrics = self.of_batch(state, batch)
        return found | self.of_part(state, batch), codebook, metrics


def nothing_of_batch(state: Learned, batch: Batch):
    """`of_batch` of targets that need no statistics of the whole batch."""
    del batch
    return {}, state.codebook, {}


def nothing_of_part(state: Learned, rows: Batch) -> dict[str, jax.Array]:
    """`of_part` of targets that are all computed from the whole batch."""
    del state, rows
    return {}


class NoEmbedding(nn.Module):
    """Zeros: rows hold R = 0 tokens, except the row that parameters are initialised with."""

    width: int

    def __call__(self, tokens: jax.Array, cells: jax.Array) -> jax.Array:
        """cells [B, R, 2] -> [B, R, D]."""
        del tokens
        return jnp.zeros((*cells.shape[:2], self.width))


class NoHead(nn.Module):
    """No outputs."""

    def __call__(self, x: jax.Array, tapped: jax.Array | None) -> dict[str, jax.Array]:
        """{}"""
        del x, tapped
        return {}


@runtime_checkable
class Kind(Protocol):
    """`config` is the whole config and `model` is config.model, except in `targets`, whose `model`
    is the `Unified`.
    """

    # Whether an image has a begin token and N representation tokens before its pixels;
    # data.representation_tokens must be the same.
    tokens: bool = False
    # Whether the EMA encoder runs on the images to be generated, to make the targets.
    needs_features: bool = False
    # Whether the codebook of the train state is learned.
    learns_codebook: bool = False

    def check(self, config: ConfigDict) -> None:
        """Raises UserError for fields of this kind that cannot work."""
        del config

    def embedding(self, model: ConfigDict) -> nn.Module:
        """Module (tokens [B, R, ...], cells int32 [B, R, 2]) -> [B, R, D]; `cells` is the row and
        column of a token in its image, -1 at the begin token.
        """
        return NoEmbedding(model.backbone.width)

    def begin(self, model: ConfigDict, rows: int) -> jax.Array:
        """The begin token as `embedding` takes it: [rows, ...]."""
        del model
        return jnp.zeros(rows, jnp.int32)

    def head(self, model: ConfigDict) -> nn.Module:
        """Module (x [B, R, D], tapped [B, P, D] or None) -> {name: output}; `x` is the last layer
        of the representation stream, `tapped` the pixel tokens after layer `tapped_layer`.

        A kind with tokens has one output, which predicts the next token.
        """
        del model
        return NoHead()

    def tapped_layer(self, model: ConfigDict) -> int | None:
        """The layer, counted from 1, whose pixel tokens the head reads; None if it reads none."""
        del model
        return None

    def targets(self, config: ConfigDict, model: Any) -> Targets:
        """The batch entries of this kind; without tokens `tokens` is an int32 [B, R] that nobody
        reads. `model`: the `Unified`, as the functions of `features.py` take it.
        """
        del config, model
        return Targets(nothing_of_batch, lambda state, rows: {'tokens': rows['input_group']})

    def terms(self, cross_entropy: CrossEntropy) -> dict[str, Term | Prediction]:
        """{name: term} of the objective; the weight of a term is `config.losses[name]`.

        `cross_entropy`: for a `Prediction` over a large codebook.
        """
        del cross_entropy
        return {}

    def sample(
        self,
        prediction: jax.Array,
        place: jax.Array,
        keys: jax.Array,
        temperature: float,
        top_k: int,
    ) -> jax.Array:
        """The next token [B, ...], of the shape and dtype of `begin`, from the guided output of the
        head [B, ...]; logits are already evaluated.

        place: int32, 0 for the first token; keys [B], one per image; temperature 0 is greedy; the
        `top_k` most likely values remain, 0: all.
        """
        raise TypeError(f'{type(self).__name__} has no representation tokens')

    def head_flops(self, config: ConfigDict) -> float:
        """Forward FLOPs of its embedding's and head's products in one row."""
        del config
        return 0.0

    def needs_weights(self, config: ConfigDict) -> dict[str, str]:
        """{field=value: effect} of what makes sense only with the weights of an earlier run."""
        del config
        return {}

    def discards(self, config: ConfigDict, other: str) -> str:
        """A warning for a run that starts from the weights of `other`, a run of the same kind that
        generated images: what it throws away of them. '' for nothing.
        """
        del config, other
        return ''


def learned_position(model: ConfigDict, cells: jax.Array) -> jax.Array:
    """A row of a table of `position_grid` x `position_grid` positions; the pipeline refuses larger
    images. Called within a module, whose parameter is `place/table`.

    cells int32 [B, R, 2] (-1: none, zeros there) -> [B, R, D].
    """
    side, width = model.representation.position_grid, model.backbone.width
    cell = jnp.clip(cells, 0, side - 1)
    place = Table(side**2, width, name='place')(cell[..., 0] * side + cell[..., 1])
    return jnp.where(cells[..., :1] >= 0, place, 0.0)


class NoRepresentation(Kind):
    """Pixels follow the prompt at once, the paper's plain-pixel baseline: only defaults."""
