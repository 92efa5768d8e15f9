"""Online vector quantization of encoder features (paper, section 3.1 and appendix B).

All of it is float32: the differences that decide are of order 1 / K, so nothing greater may be
added to them. Under jit the batch is global, so the statistics cover every device.

Features z [M, D] and prototypes [K, D] have unit norm; `valid` bool [M] marks real features.
Similarities [M, K] are by far the largest arrays: of `count` parts of the features, those of one
part are in memory, and the codes are the same.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from rf_jax.models import microbatches
from rf_jax.runtime.errors import choose


def normalise(x: jax.Array) -> jax.Array:
    """Unit L2 norm over the last axis; a zero vector stays zero."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, -1, keepdims=True), 1e-24))


def similarity(z: jax.Array, codebook: jax.Array) -> jax.Array:
    """Cosines [M, K], in full float32 on accelerators too."""
    return jnp.matmul(z, codebook.T, precision=jax.lax.Precision.HIGHEST)


@dataclass(frozen=True)
class Printed:
    """The paper's listing: softmax over prototypes, softmax over samples, argmax."""

    temperature: float

    def __call__(self, z: jax.Array, codebook: jax.Array, valid: jax.Array, count: int = 1):
        """Codes int32 [M]."""

        def soft(z):
            return jax.nn.softmax(similarity(z, codebook) / self.temperature, axis=1)

        # The second softmax divides by a sum over samples; the logarithm has the same argmax. Of
        # their mean it is of the size of p, where that of the sum would cost p its last digits.
        def excess(z, valid):
            return jnp.where(valid[:, None], jnp.expm1(soft(z)), 0.0).sum(0)

        total = microbatches.each(excess, count, z, valid).sum(0)
        shares = jnp.log1p(total / jnp.maximum(valid.sum(), 1))
        return _largest(lambda z: soft(z) - shares, count, z)


@dataclass(frozen=True)
class Sinkhorn:
    """Sinkhorn-Knopp: prototypes get equal shares of the samples, `iterations` times."""

    temperature: float
    iterations: int

    def __call__(self, z: jax.Array, codebook: jax.Array, valid: jax.Array, count: int = 1):
        """Codes int32 [M]."""
        columns = []  # log of what each prototype was divided by, [K] an iteration

        def scaled(z, valid):
            logits = jnp.where(valid[:, None], similarity(z, codebook) / self.temperature, -jnp.inf)
            for column in columns:
                logits = rows(logits) - column
            return logits

        # In logarithms; a padded sample has only -inf and must not turn into NaN.
        def rows(logits):
            return logits - _finite(jax.nn.logsumexp(logits, axis=1, keepdims=True))

        def column_sums(z, valid):
            return jax.nn.logsumexp(rows(scaled(z, valid)), axis=0)

        for _ in range(self.iterations):
            sums = microbatches.each(column_sums, count, z, valid)
            columns.append(_finite(jax.nn.logsumexp(sums, axis=0)))
        return _largest(scaled, count, z, valid)


@dataclass(frozen=True)
class Nearest:
    """The prototype of greatest cosine similarity, no balancing."""

    def __call__(self, z: jax.Array, codebook: jax.Array, valid: jax.Array, count: int = 1):
        """Codes int32 [M]."""
        return _largest(lambda z: similarity(z, codebook), count, z)


def _largest(scores, count: int, *arrays: jax.Array) -> jax.Array:
    """Argmax over prototypes of `scores(*arrays)` [m, K] of each part: int32 [M]."""
    codes = microbatches.each(lambda *part: jnp.argmax(scores(*part), axis=1), count, *arrays)
    return microbatches.join(codes).astype(jnp.int32)


def nearest_similarity(z: jax.Array, codebook: jax.Array, known: jax.Array, count: int = 1):
    """Greatest cosine [M] of each feature to the prototypes that are `known` bool [K]; -1: none."""

    def nearest(z):
        return jnp.where(known, similarity(z, codebook), -1.0).max(1)

    return microbatches.join(microbatches.each(nearest, count, z))


def _finite(x: jax.Array) -> jax.Array:
    return jnp.where(jnp.isfinite(x), x, 0.0)


def update(codebook, z, codes, valid, momentum: float) -> jax.Array:
    """C <- normalise(m C + (1 - m) normalise(mean of the z assigned)); no gradient.

    A prototype without assignment keeps its row: the listing would divide by zero.
    """
    slot = jnp.where(valid, codes, codebook.shape[0])  # padding goes to a slot that is cut off
    sums = jax.ops.segment_sum(z, slot, codebook.shape[0] + 1)[:-1]
    used = jax.ops.segment_sum(valid.astype(jnp.float32), slot, codebook.shape[0] + 1)[:-1] > 0
    moved = normalise(momentum * codebook + (1 - momentum) * normalise(sums))
    return jnp.where(used[:, None], moved, codebook)


def from_data(key: jax.Array, z: jax.Array, valid: jax.Array, codes: int, known=-1.0) -> jax.Array:
    """K prototypes drawn from the features, each valid one as often as the next.

    With fewer features than prototypes the repeats are set apart by a little noise. `known`: as in
    `spread`, of no use here.
    """
    del known
    order_key, noise_key = jax.random.split(key)
    order = jnp.argsort(jnp.where(valid, jax.random.uniform(order_key, valid.shape), 2.0))
    index = order[jnp.arange(codes) % jnp.maximum(valid.sum(), 1)]
    return _apart(noise_key, z[index])


def spread(key: jax.Array, z: jax.Array, valid: jax.Array, codes: int, known=-1.0) -> jax.Array:
    """K prototypes, each the feature farthest from those before it (Gonzalez 1985); the first by
    chance. What is rare gets prototypes of its own, however common a ground is.

    `known` float32 [M]: greatest cosine to prototypes that are there already; -1: there are none.
    """
    first_key, noise_key = jax.random.split(key)
    first = jnp.argmax(jnp.where(valid, jax.random.uniform(first_key, valid.shape), -1.0))

    def take(near, _):
        at = jnp.argmin(jnp.where(valid, near, jnp.inf))
        return jnp.maximum(near, similarity(z, z[at][None])[:, 0]), at

    known = jnp.broadcast_to(known, len(z))
    chosen = (jnp.arange(len(z)) == first) & (known.max() <= -1)
    near = jnp.where(chosen, -2.0, known)
    near, index = jax.lax.scan(take, near, length=codes)
    return _apart(noise_key, z[index])


def _apart(key: jax.Array, prototypes: jax.Array) -> jax.Array:
    """With a little noise: equal ones would stay equal for ever."""
    noise = jax.random.normal(key, prototypes.shape) * 0.01 / prototypes.shape[-1] ** 0.5
    return normalise(prototypes + noise)


DRAWS = {'random': from_data, 'spread': spread}


MODES = {
    'printed': lambda c: Printed(c.temperature),
    'sinkhorn': lambda c: Sinkhorn(c.temperature, c.sinkhorn_iterations),
    'nearest': lambda c: Nearest(),
}


def build_draw(config):
    """`draw(key, z, valid, K, known) -> codebook` of `config.model.representation.quantizer`."""
    name = config.model.representation.quantizer.data_init
    return choose('model.representation.quantizer.data_init', name, DRAWS)


def build(config):
    """`assign(z, codebook, valid, count) -> codes` of `config.model.representation.quantizer`."""
    quantizer = config.model.representation.quantizer
    return choose('model.representation.quantizer.mode', quantizer.mode, MODES)(quantizer)
