"""GRPO as terms of the objective: clipped ratio, exact KL, entropy (DeepSeekMath, arXiv 2402.03300;
for flows Flow-GRPO, arXiv 2505.05470, equations 4 and 5).

A batch holds what a rollout sampled, and for each policy `name` of text, representation and flow:
`name_advantage` and `name_old`, the log-probabilities of the rollout, [B, n] as the stream has
tokens; with a KL term also `name_reference`, the log-probabilities of all values under the
reference [B, n, V], or its prediction of the clean patches [B, P, Z]. A flow has one
log-probability for each image and step, the mean over its values, which all its patches hold.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from rf_jax.models.terms import Arrays, Term
from rf_jax.runtime.errors import require
from rf_jax.training import checks, flow
from rf_jax.training.bounds import COUNT, NOT_NEGATIVE, POSITIVE, SHARE
from rf_jax.training.step import Objective

MOST = 5.0  # largest advantage, in standard deviations (Flow-GRPO's code)
STDS = ('group', 'global')
_BOUNDS = {  # of the numbers of config.grpo; `clip` and `kl` have one for each policy
    **dict.fromkeys(('group_size', 'images', 'updates', 'text_tokens', 'flow.steps'), COUNT),
    **dict.fromkeys(('reward_seconds', 'clip', 'flow.level'), POSITIVE),
    'kl': NOT_NEGATIVE,
}


def check_numbers(config: ConfigDict) -> None:
    """Raises UserError for a number of `config.grpo` that is out of bounds."""
    c = config.grpo
    for field, value in checks.flatten(c.to_dict()).items():
        row = _BOUNDS.get(field, _BOUNDS.get(field.split('.')[0]))
        require(row is None or value in row, f'grpo.{field}={value!r}: expected {row}')
    require(
        c.flow.sampler != 'preserving' or c.flow.level in SHARE,
        f"grpo.flow.level={c.flow.level}: expected at most 1 with grpo.flow.sampler='preserving'",
    )


def advantages(rewards: np.ndarray, std: str) -> np.ndarray:
    """float64 [groups, n] from rewards [groups, n]: less the mean of the group, over the standard
    deviation of the 'group', or the 'global' one of all rewards; at most MOST either way.

    A group with a reward that is not finite has advantages of 0.
    """
    valid = np.isfinite(rewards).all(1, keepdims=True)
    known = np.where(valid, rewards, 0.0)
    centred = (known - known.mean(1, keepdims=True)) * valid
    everything = rewards[valid[:, 0]]
    whole = everything.std() if everything.size else 0.0
    spread = known.std(1, keepdims=True) if std == 'group' else whole
    return np.clip(centred / (spread + 1e-4), -MOST, MOST)


def by_policy(rewards: np.ndarray, std: str, texts: Sequence[Sequence]) -> dict[str, np.ndarray]:
    """{policy: float64 [groups, n, images]}, the advantages of samples with rewards of this shape,
    after Think-Then-Generate (arXiv 2601.10332). `texts`: [groups, n], anything that can be equal.

    A text has the mean reward of its images, and is compared with the texts of its group. An image
    is compared with the images of its text; if each text has one image, with those of the group.
    Equal texts of a group count as one text with all their images, so that luck does not separate
    them and an image is compared with more others.
    """
    share = _equal(texts)
    means = share @ rewards.mean(2)[..., None]  # [groups, n, 1]
    of_texts = advantages(means[..., 0], std)[..., None]
    if rewards.shape[2] == 1:
        of_images = advantages(rewards[..., 0], std)[..., None]
    else:
        valid = np.isfinite(rewards).all((1, 2))
        centred = np.where(valid[:, None, None], rewards - means, 0.0)
        spread = np.sqrt(share @ (centred**2).mean(2)[..., None])
        if std == 'global':
            spread = rewards[valid].std() if valid.any() else 0.0
        of_images = np.clip(centred / (spread + 1e-4), -MOST, MOST)
    return {
        'text': np.broadcast_to(of_texts, rewards.shape),
        'representation': of_images,
        'flow': of_images,
    }


def _equal(texts: Sequence[Sequence]) -> np.ndarray:
    """float64 [groups, n, n]: for each text, 1 / m at the m texts of its group that are equal."""
    same = np.array([[[a == b for b in group] for a in group] for group in texts], float)
    return same / same.sum(2, keepdims=True)


@dataclass(frozen=True)
class Tokens:
    """A policy over the tokens of a stream; `name`: text or representation."""

    name: str
    targets: str

    @property
    def weight(self) -> str:
        """The batch array that says which tokens count."""
        return f'{self.name}_weight'

    def all_log_probs(self, outputs: Mapping) -> jax.Array:
        """float32 [B, n, V] of all values."""
        return jax.nn.log_softmax(outputs[f'{self.name}_logits'].whole(), -1)

    def log_probs(self, outputs: Mapping, batch: Arrays) -> jax.Array:
        """float32 [B, n] of what was sampled."""
        taken = jnp.maximum(batch[self.targets], 0)[..., None]
        return jnp.take_along_axis(self.all_log_probs(outputs), taken, -1)[..., 0]

    def reference(self, outputs: Mapping, batch: Arrays) -> jax.Array:
        """What the KL term compares with."""
        del batch
        return self.all_log_probs(outputs)

    def kl(self, outputs: Mapping, batch: Arrays) -> jax.Array:
        """KL(policy, reference) of each token, exact: the sum over all values, [B, n]."""
        own = self.all_log_probs(outputs)
        return jnp.sum(jnp.exp(own) * (own - batch[f'{self.name}_reference']), -1)

    def measures(self) -> dict[str, Callable]:
        """What is logged beside the ratio."""
        return {'entropy': lambda outputs, batch: entropy(self.all_log_probs(outputs))}


@dataclass(frozen=True)
class Flow:
    """The policy of the stochastic steps of the flow, from z at t to `z_next` at `t_next`.

    `with_dt`: whether the KL is that of the two normal distributions, with the step size in its
    denominator (paper), or without it (the authors' code).
    """

    step: Callable
    level: float
    noise_scale: float
    floor: float
    with_dt: bool
    name: str = 'flow'
    weight: str = 'pixel_weight'

    def _moved(self, x: jax.Array, batch: Arrays):
        real = batch['pixel_image'] >= 0
        # Padding moves too, or the gradient of its infinite density would be NaN.
        t, t_next = jnp.where(real, batch['t'], 0.25), jnp.where(real, batch['t_next'], 0.5)
        return self.step(x, batch['z'], t, t_next, self.level, self.noise_scale, self.floor)

    def log_probs(self, outputs: Mapping, batch: Arrays) -> jax.Array:
        """float32 [B, P]: that of the image and step of each patch."""
        values = flow.log_density(batch['z_next'], *self._moved(outputs['x'], batch))
        return mean_of_image(values, batch)

    def reference(self, outputs: Mapping, batch: Arrays) -> jax.Array:
        """What the KL term compares with."""
        del batch
        return outputs['x']

    def kl(self, outputs: Mapping, batch: Arrays) -> jax.Array:
        """Mean over the values of an image, [B, P]."""
        mean, std = self._moved(outputs['x'], batch)
        other, _ = self._moved(batch['flow_reference'], batch)
        variance = std**2
        if not self.with_dt:
            step = batch['t_next'] - batch['t']
            variance /= jnp.where(batch['pixel_image'] >= 0, step, 1.0)
        return mean_of_image(jnp.mean((mean - other) ** 2, -1) / (2 * variance), batch)

    def measures(self) -> dict[str, Callable]:
        """Nothing beside the ratio."""
        return {}


Policy = Tokens | Flow


def policies(config: ConfigDict) -> dict[str, Policy]:
    """Those of `config.grpo.policies`."""
    c = config.grpo
    known = {
        'text': Tokens('text', 'text_targets'),
        'representation': Tokens('representation', 'code_targets'),
        'flow': Flow(
            flow.STOCHASTIC[c.flow.sampler],
            c.flow.level,
            config.flow.noise_scale,
            config.flow.t_eps,
            c.flow.kl_with_dt,
        ),
    }
    return {name: known[name] for name in c.policies}


def objective(config: ConfigDict, model) -> Objective:
    """GRPO with the policies of `config.grpo`, as `jitted.build` takes it."""
    terms: dict[str, Term] = {}
    weights: dict[str, float] = {}
    for name, policy in policies(config).items():
        ratio = _ratio(policy)
        surrogate, clipped = clipped_surrogate(name, ratio, config.grpo.clip[name])
        terms[f'policy_{name}'] = Term(policy.weight, surrogate)
        weights[f'policy_{name}'] = 1.0
        measures = {'ratio': ratio, 'clipped': clipped, **policy.measures()}
        if config.grpo.kl[name]:
            terms[f'kl_{name}'] = Term(policy.weight, policy.kl)
            weights[f'kl_{name}'] = config.grpo.kl[name]
        for what, value in measures.items():
            terms[f'{what}_{name}'] = Term(policy.weight, value)
            weights[f'{what}_{name}'] = 0.0

    def prepare(state, batch):
        return dict(batch), state.codebook, {}

    def complete(state, rows, part):
        del state, part
        return rows  # the rollout has sampled all of it

    return Objective(prepare, complete, terms, weights)


def _ratio(policy: Policy) -> Callable:
    def ratio(outputs: Mapping, batch: Arrays) -> jax.Array:
        return jnp.exp(policy.log_probs(outputs, batch) - batch[f'{policy.name}_old'])

    return ratio


def clipped_surrogate(name: str, ratio: Callable, epsilon: float) -> tuple[Callable, Callable]:
    """(-min(r A, clip(r, 1 - epsilon, 1 + epsilon) A), whether it is clipped), for each token."""

    def both(outputs, batch):
        r, advantage = ratio(outputs, batch), batch[f'{name}_advantage']
        return r * advantage, jnp.clip(r, 1 - epsilon, 1 + epsilon) * advantage

    def value(outputs, batch):
        return -jnp.minimum(*both(outputs, batch))

    def clipped(outputs, batch):
        free, held = both(outputs, batch)
        return (held < free).astype(jnp.float32)

    return value, clipped


def entropy(log_probs: jax.Array) -> jax.Array:
    """In nats: [..., V] -> [...]."""
    return -jnp.sum(jnp.exp(log_probs) * log_probs, -1)


def mean_of_image(values: jax.Array, batch: Arrays) -> jax.Array:
    """[B, P] -> [B, P]: the mean over the patches of the same image."""
    images = jnp.arange(batch['pixel_counts'].shape[1])
    own = (batch['pixel_image'][..., None] == images).astype(values.dtype)
    known = jnp.where(batch['pixel_image'] >= 0, values, 0.0)  # padding may be infinite
    sums = jnp.einsum('bp,bpi->bi', known, own)
    return jnp.einsum('bi,bpi->bp', sums / jnp.maximum(own.sum(1), 1), own)
