"""The objective: named, weighted, pure terms (design rule 6). Paper, section 3.2: all weights 1.

A term has a value per token; `weight` names the batch array that says which tokens count. The loss
is the sum over terms of weight * sum(values) / count, counts over the global batch, so neither
packing, accumulation nor the number of hosts changes it.
"""

import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rf_jax.models import representation
from rf_jax.models.terms import Arrays, Prediction, Term
from rf_jax.runtime.errors import require
from rf_jax.training import flow
from rf_jax.training.cross_entropy import ONE_DEVICE, CrossEntropy

TIME_BANDS = 4  # the flow loss is logged for t in [0, 1/4), [1/4, 1/2), ...


def text(cross_entropy: CrossEntropy) -> dict[str, Prediction]:
    """L_LM: next-token prediction of text."""
    own = 'text_weight', 'text_logits', 'text_targets', 'text_head/kernel'
    return {'text': Prediction(*own, cross_entropy)}


def flow_matching(floor: float) -> Callable[[Arrays, Arrays], jax.Array]:
    """L_FM: squared error of the velocity, mean over the C values of a patch."""
    return lambda outputs, batch: flow.loss(outputs['x'], batch['x'], batch['t'], floor)


def build(
    config: ConfigDict, cross_entropy: CrossEntropy = ONE_DEVICE
) -> dict[str, Term | Prediction]:
    """The terms of `config.losses`; those of weight 0 are left out.

    `cross_entropy` is on the mesh of the model. Raises UserError for a term without a weight in
    `config.losses`.
    """
    terms = {
        **text(cross_entropy),
        **representation.of(config).terms(cross_entropy),
        'flow': Term('pixel_weight', flow_matching(config.flow.t_eps)),
        'balance': Term('live', lambda outputs, _: outputs['balance']),
        'router_z': Term('live', lambda outputs, _: outputs['router_z']),
        'reconstruction': Term('pixel_weight', lambda outputs, _: outputs['reconstruction']),
        'kl': Term('pixel_weight', lambda outputs, _: outputs['kl']),
    }
    for name in terms:
        require(name in config.losses, f'losses.{name} is missing: the weight of the term {name!r}')
    return {name: term for name, term in terms.items() if config.losses[name]}


def counts(terms: Mapping[str, Term], batch: Arrays) -> dict[str, jax.Array]:
    """Counted tokens of each term, at least 1."""
    return {name: jnp.maximum(batch[term.weight].sum(), 1.0) for name, term in terms.items()}


def present(terms: Mapping[str, Term], batch: Arrays) -> dict[str, jax.Array]:
    """{'steps_with/NAME': 1.0, or 0.0 if no token of the batch counts for the term}."""
    return {
        f'steps_with/{name}': (batch[term.weight].sum() > 0).astype(jnp.float32)
        for name, term in terms.items()
    }


def mean_of_steps(name: str, sums: Mapping[str, float]) -> float:
    """The mean of a term over the steps that had tokens for it, of added means and `present`; NaN
    if none had.
    """
    steps = sums.get(f'steps_with/{name}', 0)
    return sums[name] / steps if steps else math.nan


def total(terms: Mapping[str, Term], weights, counts_, outputs: Mapping, batch: Arrays):
    """(weighted loss, {name: mean}) of a batch, or of its part with the whole batch's counts."""
    means = {}
    for name, term in terms.items():
        with jax.named_scope(f'loss_{name}'):  # its arrays bear the name in memory and profiles
            means[name] = term.summed(outputs, batch) / counts_[name]
    loss = sum(weights[name] * mean for name, mean in means.items())
    if 'flow' in terms:
        values = terms['flow'].value(outputs, batch)
        means |= time_bands(values, batch['t'], batch['pixel_weight'])
    return loss, means


def time_bands(values: jax.Array, t: jax.Array, weight: jax.Array) -> dict[str, jax.Array]:
    """Sums and counts of the flow loss by bands of t: which times carry the loss."""
    bands, number = {}, jnp.clip(jnp.floor(t * TIME_BANDS), 0, TIME_BANDS - 1)
    for i in range(TIME_BANDS):
        inside = weight * (number == i)
        bands[f'flow_sum_{i}'] = jnp.sum(values * inside)
        bands[f'flow_count_{i}'] = jnp.sum(inside)
    return bands


def band_means(sums: Mapping[str, float]) -> dict[str, float]:
    """{'flow_t0': mean, ...} of added `time_bands`; NaN where no patch had such a time."""
    found = {}
    for i in range(TIME_BANDS):
        count = sums.get(f'flow_count_{i}', 0)
        found[f'flow_t{i}'] = sums[f'flow_sum_{i}'] / count if count else math.nan
    return found
