"""Online vector quantization of encoder features (paper, section 3.1 and appendix B).

Everything is float32: codes depend on differences of order 1 / K, so no larger number may be added
to them. Under jit the batch is global, so statistics cover all devices.

Features z [M, D] and prototypes [K, D] have unit norm; `valid` bool [M] marks real features.
Similarities [M, K] are by far the largest arrays: features are processed in `count` parts, so only
those of one part are in memory; the codes are the same.
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
    """Cosine similarities [M, K], in full float32 precision on accelerators too."""
    return jnp.matmul(z, codebook.T, precision=jax.lax.Precision.HIGHEST)


@dataclass(frozen=True)
class Printed:
    """The paper's listing: softmax over prototypes, softmax over samples, argmax."""

    temperature: float

    def __call__(self, z: jax.Array, codebook: jax.Array, valid: jax.Array, count: int = 1):
        """Codes int32 [M]."""

        def soft(z):
            return jax.nn.softmax(similarity(z, codebook) / self.temperature, axis=1)

        # The second softmax divides by a sum over samples; taking the logarithm keeps the argmax.
        # The log of the mean is of the size of p; the log of the sum is larger and would round p.
        def excess(z, valid):
            return jnp.where(valid[:, None], jnp.expm1(soft(z)), 0.0).sum(0)

        total = microbatches.map_parts(excess, count, z, valid).sum(0)
        shares = jnp.log1p(total / jnp.maximum(valid.sum(), 1))
        return _largest(lambda z: soft(z) - shares, count, z)


@dataclass(frozen=True)
class Sinkhorn:
    """Sinkhorn-Knopp: prototypes get equal shares of the samples, `iterations` times."""

    temperature: float
    iterations: int

    def __call__(self, z: jax.Array, codebook: jax.Array, valid: jax.Array, count: int = 1):
        """Codes int32 [M]."""
        columns = []  # log of the divisors of the prototypes, [K] for each iteration

        def scaled(z, valid):
            logits = jnp.where(valid[:, None], similarity(z, codebook) / self.temperature, -jnp.inf)
            for column in columns:
                logits = rows(logits) - column
            return logits

        # In logarithms; a padded sample is all -inf and must not become NaN.
        def rows(logits):
            return logits - _finite(jax.nn.logsumexp(logits, axis=1, keepdims=True))

        def column_sums(z, valid):
            return jax.nn.logsumexp(rows(scaled(z, valid)), axis=0)

        for _ in range(self.iterations):
            sums = microbatches.map_parts(column_sums, count, z, valid)
            columns.append(_finite(jax.nn.logsumexp(sums, axis=0)))
        # Those of drafts are not counted above, but need their code.
        return _largest(lambda z: scaled(z, jnp.ones(len(z), bool)), count, z)


@dataclass(frozen=True)
class Nearest:
    """The prototype with the largest cosine similarity, without balancing."""

    def __call__(self, z: jax.Array, codebook: jax.Array, valid: jax.Array, count: int = 1):
        """Codes int32 [M]."""
        return _largest(lambda z: similarity(z, codebook), count, z)


def _largest(scores, count: int, *arrays: jax.Array) -> jax.Array:
    """Argmax over prototypes of `scores(*arrays)` [m, K], part by part: int32 [M]."""
    codes = microbatches.map_parts(lambda *part: jnp.argmax(scores(*part), axis=1), count, *arrays)
    return microbatches.join(codes).astype(jnp.int32)


def nearest_similarity(z: jax.Array, codebook: jax.Array, known: jax.Array, count: int = 1):
    """Largest cosine [M] of each feature to the prototypes in `known` bool [K]; -1 if none."""

    def nearest(z):
        return jnp.where(known, similarity(z, codebook), -1.0).max(1)

    return microbatches.join(microbatches.map_parts(nearest, count, z))


def _finite(x: jax.Array) -> jax.Array:
    return jnp.where(jnp.isfinite(x), x, 0.0)


def update(codebook, z, codes, valid, momentum: float) -> jax.Array:
    """C <- normalise(m C + (1 - m) normalise(mean of the assigned z)); no gradient.

    A prototype without assigned features stays as it is; the paper's listing would divide by zero.
    """
    # Padding goes to an extra slot, which is dropped.
    slot = jnp.where(valid, codes, codebook.shape[0])
    sums = jax.ops.segment_sum(z, slot, codebook.shape[0] + 1)[:-1]
    used = jax.ops.segment_sum(valid.astype(jnp.float32), slot, codebook.shape[0] + 1)[:-1] > 0
    moved = normalise(momentum * codebook + (1 - momentum) * normalise(sums))
    return jnp.where(used[:, None], moved, codebook)


def random_features(
    key: jax.Array, z: jax.Array, valid: jax.Array, codes: int, known=-1.0
) -> jax.Array:
    """K prototypes sampled uniformly from the valid features.

    With fewer features than prototypes, repeats are separated by a little noise. `known` is unused;
    see `farthest_features`.
    """
    del known
    order_key, noise_key = jax.random.split(key)
    order = jnp.argsort(jnp.where(valid, jax.random.uniform(order_key, valid.shape), 2.0))
    index = order[jnp.arange(codes) % jnp.maximum(valid.sum(), 1)]
    return _with_noise(noise_key, z[index])


def farthest_features(
    key: jax.Array, z: jax.Array, valid: jax.Array, codes: int, known=-1.0
) -> jax.Array:
    """K prototypes, each the feature farthest from the previous ones (Gonzalez 1985); the first is
    random. Rare features get prototypes of their own, however common others are.

    `known` float32 [M]: largest cosine to existing prototypes; -1 if there are none.
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
    return _with_noise(noise_key, z[index])


def _with_noise(key: jax.Array, prototypes: jax.Array) -> jax.Array:
    """Adds a little noise, without which equal prototypes would stay equal forever."""
    noise = jax.random.normal(key, prototypes.shape) * 0.01 / prototypes.shape[-1] ** 0.5
    return normalise(prototypes + noise)


DATA_INITS = {'random': random_features, 'farthest': farthest_features}


MODES = {
    'printed': lambda c: Printed(c.temperature),
    'sinkhorn': lambda c: Sinkhorn(c.temperature, c.sinkhorn_iterations),
    'nearest': lambda c: Nearest(),
}


def build_data_init(config):
    """`initialise(key, z, valid, K, known) -> codebook`, by `quantizer.data_init` of the config."""
    name = config.model.representation.quantizer.data_init
    return choose('model.representation.quantizer.data_init', name, DATA_INITS)


def build(config):
    """`assign(z, codebook, valid, count) -> codes` of `config.model.representation.quantizer`."""
    quantizer = config.model.representation.quantizer
    return choose('model.representation.quantizer.mode', quantizer.mode, MODES)(quantizer)
