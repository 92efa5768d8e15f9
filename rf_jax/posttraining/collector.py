"""Where GRPO gets its batches: a rollout every `grpo.updates` steps, with rewards and advantages.

A collection is a function of (seed, step, parameters), so a run that is killed repeats it.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from absl import logging

from rf_jax.evaluation.image_features import Encoder
from rf_jax.models import representation
from rf_jax.posttraining import asking, episodes, policy, rewards
from rf_jax.posttraining.rewards import Reward
from rf_jax.posttraining.rollouts import Rollouts
from rf_jax.runtime import distributed
from rf_jax.runtime.errors import UserError, choose
from rf_jax.training import flow
from rf_jax.training.state import State
from rf_jax.training.step_metrics import StepMetrics


def check(config) -> None:
    """Raises UserError for fields of `config.grpo` that do not fit together."""
    c = config.grpo
    _, _, trainable = choose('grpo.episode', c.episode, episodes.EPISODES)
    for name in c.policies:
        choose(f'grpo.policies (grpo.episode={c.episode!r})', name, dict.fromkeys(trainable))
    if not c.policies:
        raise UserError(f'grpo.policies is empty; known: {", ".join(trainable)}')
    try:
        {name: float(weight) for name, weight in c.rewards}
    except (TypeError, ValueError):
        raise UserError(
            f'grpo.rewards={c.rewards!r}: expected pairs (name, weight); as a flag: '
            '--config.grpo.rewards="((\'judge\', 1.0),)"'
        ) from None
    choose('grpo.std', c.std, dict.fromkeys(policy.STDS))
    choose('grpo.prompts', c.prompts, asking.PROMPTS)
    choose('grpo.flow.sampler', c.flow.sampler, flow.STOCHASTIC)
    episodes.groups_of(config)
    kind, name = representation.of(config), config.model.representation.kind
    if (kind.tokens or 'representation' in c.policies) and not kind.learns_codebook:
        raise UserError(
            f'model.representation.kind={name!r}: GRPO needs discrete tokens (forcing), or a kind '
            "without tokens and grpo.policies=('flow',)"
        )
    first, last = c.flow.stochastic
    if not 0 <= first < last < c.flow.steps:
        raise UserError(
            f'grpo.flow.stochastic={c.flow.stochastic}: expected (first, last) with 0 <= first < '
            f'last < grpo.flow.steps={c.flow.steps}; the last step has no noise'
        )
    if config.checkpoint.every % c.updates:
        raise UserError(
            f'checkpoint.every={config.checkpoint.every} is not a multiple of grpo.updates='
            f'{c.updates}: a run can only go on where a rollout begins'
        )


class Collector:
    """A feed of `train_loop.train`. `reference`: frozen parameters, never saved with the run."""

    def __init__(self, run, reference: Any, more: Mapping[str, Reward] | None = None):
        """`more`: rewards of the user by name, of weight 1 unless `grpo.rewards` says another.
        Raises UserError.
        """
        self.run, self.config = run, run.config
        self.rollouts = Rollouts(run, reference)
        own = {
            'similarity': rewards.similarity(
                Encoder(self.rollouts.sampler, self.rollouts.reference)
            )
        }
        self.weights = dict.fromkeys(more or {}, 1.0) | dict(self.config.grpo.rewards)
        self.rewards = rewards.chosen(self.weights, own | dict(more or {}))
        self.policies = self.rollouts.policies
        self.episode, *_ = episodes.EPISODES[self.config.grpo.episode]
        self.counts: Counter = Counter()

    def __call__(self, run, start: int, metrics: StepMetrics) -> Callable[[State], Mapping]:
        """The batches from step `start` on."""
        number, updates = start, self.config.grpo.updates
        rows: dict = {}

        def next_batch(state: State):
            nonlocal number, rows
            if not number % updates:
                with run.goodput.phase('rollout'):
                    rows, seen = self.collect(state.params, number)
                metrics.writer.scalars(number + 1, seen)
                logging.info('%s', line(seen))
            size, part = self.config.data.batch_size, number % updates
            number += 1
            own = part * size + run.batches.rows
            return {name: array[own] for name, array in rows.items()}

        return next_batch

    def collect(self, params: Any, number: int) -> tuple[dict, dict[str, float]]:
        """(rows of `grpo.updates` batches with all fields of the objective, metrics)."""
        params = self.rollouts.placement.params(params)
        found = self.episode(self.run, self.rollouts, params, number)
        values = self._rewards(found)
        total = sum(weight * values[name] for name, weight in self.weights.items())
        advantage = policy.advantages(total, self.config.grpo.std)
        valid = np.isfinite(total).all(1)
        errors: list[float] = []
        parts = [
            self._complete(params, rows, log_probs, advantage, valid, errors)
            for rows, log_probs in zip(found.rows, found.log_probs)
        ]
        # The rows of a sample follow each other.
        rows = {
            name: np.stack([part[name] for part in parts], 1).reshape(-1, *parts[0][name].shape[1:])
            for name in parts[0]
        }
        return rows, self._metrics(found, values, total, valid) | {
            'rollout/log_prob_error': max(errors)
        }

    def _rewards(self, found: episodes.Collected) -> dict[str, np.ndarray]:
        """As `rewards.of_groups`; computed once, so that all processes have the same."""
        groups = list(zip(found.asked, found.shown, found.samples))
        shape = len(self.rewards), len(groups), len(groups[0][2])

        def computed() -> bytes:
            seconds = self.config.grpo.reward_seconds
            values = rewards.of_groups(self.rewards, groups, seconds, self.counts)
            return np.stack(list(values.values())).astype(np.float64).tobytes()

        values = np.frombuffer(distributed.broadcast(computed)).reshape(shape)
        return dict(zip(self.rewards, values))

    def _complete(self, params, rows, log_probs, advantage, valid, errors: list[float]) -> dict:
        """The rows with advantages, old log-probabilities, and references; rows of groups without
        rewards do not count. Adds to `errors` how far these are from those of the rollout.
        """
        rows, each = dict(rows), advantage.astype(np.float32).ravel()
        counts = np.repeat(valid, advantage.shape[1]).astype(np.float32)
        for name, own in self.policies.items():
            weight = rows[own.weight]
            rows[f'{name}_old'] = self.rollouts.log_probs(params, name, rows)
            if name in log_probs:
                errors.append(_error(rows[f'{name}_old'], weight, log_probs[name]))
            rows[own.weight] = weight * counts[:, None]
            rows[f'{name}_advantage'] = np.broadcast_to(each[:, None], weight.shape)
            if self.config.grpo.kl[name]:
                rows[f'{name}_reference'] = self.rollouts.references(name, rows)
        return rows

    def _metrics(self, found, values, total, valid) -> dict[str, float]:
        """What is logged of a collection; the rewards apart, so that reward hacking is seen."""
        with np.errstate(all='ignore'):
            seen = {f'reward/{name}': float(np.nanmean(each)) for name, each in values.items()}
            seen['reward/total'] = float(np.nanmean(total))
            spread = total[valid].std(1)
        seen['reward/spread_in_group'] = float(spread.mean()) if valid.any() else float('nan')
        seen['reward/groups_all_alike'] = float((spread < 1e-6).mean()) if valid.any() else 1.0
        seen['rollout/groups_skipped'] = float(self.counts['groups_skipped'])
        samples = [sample for group in found.samples for sample in group]
        if samples[0].text:
            seen['rollout/words'] = float(np.mean([len(s.text.split()) for s in samples]))
            seen['rollout/different_texts'] = _different(found, lambda s: s.text)
        if samples[0].image is not None:
            seen['rollout/pixel_spread'] = _pixel_spread(found)
        return seen


def _error(again: np.ndarray, weight: np.ndarray, sampled: np.ndarray) -> float:
    """Mean over rows of the difference of their mean log-probability, in training and rollout."""
    again = (again * weight).sum(1) / weight.sum(1)
    counted = np.maximum((sampled != 0).sum(1), 1)
    return float(np.abs(again - sampled.sum(1) / counted).mean())


def _different(found: episodes.Collected, key: Callable) -> float:
    """Share of the samples of a group that differ from each other: 1 if all do."""
    return float(np.mean([len(set(map(key, group))) / len(group) for group in found.samples]))


def _pixel_spread(found: episodes.Collected) -> float:
    """Standard deviation of a pixel over the images of a group, of 255."""
    groups = [np.stack([s.image for s in group]).astype(np.float32) for group in found.samples]
    return float(np.mean([group.std(0).mean() for group in groups]))


def line(seen: Mapping[str, float]) -> str:
    """The metrics of a collection in one line."""
    return ' | '.join(f'{name} {value:.3g}' for name, value in seen.items())
