"""The objective: named, weighted, pure terms (design rule 6). Paper, section 3.2: all weights 1.

A term gives a value per token; `Term.weight` names the batch array that says which tokens count.
The loss is the sum over terms of weight * sum(values) / count, counts over the global batch, so
neither packing, accumulation nor the number of hosts changes it.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rf_jax.learning import flow

Arrays = Mapping[str, jax.Array]
TIME_BANDS = 4  # the flow loss is logged for t in [0, 1/4), [1/4, 1/2), ...


class Term(NamedTuple):
    """`value(outputs, batch) -> [B, n]`, counted where `batch[weight]` [B, n] is 1."""

    weight: str
    value: Callable[[Arrays, Arrays], jax.Array]


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """float32 [..., V] and int32 [...] -> [...] in nats; targets below 0 read entry 0."""
    picked = jnp.take_along_axis(logits, jnp.maximum(targets, 0)[..., None], -1)[..., 0]
    return jax.nn.logsumexp(logits, -1) - picked


def text(outputs: Arrays, batch: Arrays) -> jax.Array:
    """L_LM: next-token prediction of text."""
    return cross_entropy(outputs['text_logits'], batch['text_targets'])


def representation(outputs: Arrays, batch: Arrays) -> jax.Array:
    """L_Rep: next-token prediction of the quantizer's codes."""
    return cross_entropy(outputs['representation_logits'], batch['code_targets'])


def regression(outputs: Arrays, batch: Arrays) -> jax.Array:
    """Of continuous representations: squared error of the next feature, mean over its values.

    Its best prediction is the mean of the features that may follow: it has no variety.
    """
    return jnp.mean((outputs['predicted_features'] - batch['feature_targets']) ** 2, -1)


def alignment(outputs: Arrays, batch: Arrays) -> jax.Array:
    """REPA (arXiv 2410.06940, equation 8): minus the cosine of a pixel token and its feature."""
    found = outputs['aligned_features']
    found = found * jax.lax.rsqrt(jnp.sum(found**2, -1, keepdims=True) + 1e-12)
    return -jnp.sum(found * batch['patch_features'], -1)


# The term of model.representation.kind.
REPRESENTATION = {
    'forcing': {'representation': Term('representation_weight', representation)},
    'continuous': {'representation': Term('representation_weight', regression)},
    'alignment': {'representation': Term('pixel_weight', alignment)},
    'none': {},
}


def flow_matching(floor: float) -> Callable[[Arrays, Arrays], jax.Array]:
    """L_FM: squared error of the velocity, mean over the C values of a patch."""
    return lambda outputs, batch: flow.loss(outputs['x'], batch['x'], batch['t'], floor)


def build(config) -> dict[str, Term]:
    """The terms of `config.losses`; one of weight 0 is left out."""
    terms = {
        'text': Term('text_weight', text),
        **REPRESENTATION[config.model.representation.kind],
        'flow': Term('pixel_weight', flow_matching(config.flow.floor)),
        'balance': Term('live', lambda outputs, _: outputs['balance']),
        'router_z': Term('live', lambda outputs, _: outputs['router_z']),
        'reconstruction': Term('pixel_weight', lambda outputs, _: outputs['reconstruction']),
        'kl': Term('pixel_weight', lambda outputs, _: outputs['kl']),
    }
    return {name: term for name, term in terms.items() if config.losses[name]}


def counts(terms: Mapping[str, Term], batch: Arrays) -> dict[str, jax.Array]:
    """Counted tokens of each term, at least 1."""
    return {name: jnp.maximum(batch[term.weight].sum(), 1.0) for name, term in terms.items()}


def total(terms: Mapping[str, Term], weights, counts_, outputs: Arrays, batch: Arrays):
    """(weighted loss, {name: mean}) of a batch, or of its part with the whole batch's counts."""
    means, values = {}, {}
    for name, term in terms.items():
        values[name] = term.value(outputs, batch)
        means[name] = jnp.sum(values[name] * batch[term.weight]) / counts_[name]
    loss = sum(weights[name] * mean for name, mean in means.items())
    if 'flow' in values:
        means |= time_bands(values['flow'], batch['t'], batch['pixel_weight'])
    return loss, means


def time_bands(values: jax.Array, t: jax.Array, weight: jax.Array) -> dict[str, jax.Array]:
    """Sums and counts of the flow loss by bands of t: which times carry the loss."""
    bands = {}
    for i in range(TIME_BANDS):
        inside = weight * (t >= i / TIME_BANDS) * (t < (i + 1) / TIME_BANDS)
        bands[f'flow_sum_{i}'] = jnp.sum(values * inside)
        bands[f'flow_count_{i}'] = jnp.sum(inside)
    return bands
