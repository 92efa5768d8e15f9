"""Where GRPO gets its batches: a rollout every `grpo.updates` steps, with rewards and advantages.

A rollout is a function of (seed, step, parameters), so a run that was killed repeats it exactly.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any

import numpy as np
from absl import logging

from rf_jax.data import spans
from rf_jax.evaluation.image_features import Encoder
from rf_jax.generation import inputs
from rf_jax.models import representation
from rf_jax.posttraining import asking, episodes, policy, rewards, rollout_metrics
from rf_jax.posttraining.rewards import Reward
from rf_jax.posttraining.rollout_programs import RolloutPrograms
from rf_jax.runtime import distributed
from rf_jax.runtime.errors import UserError, choose, require
from rf_jax.training import flow, lora
from rf_jax.training.state import State
from rf_jax.training.step_metrics import StepMetrics


def check(config) -> None:
    """Raises UserError for fields of `config.grpo` that are missing or do not fit together."""
    if 'grpo' not in config:
        raise UserError(
            'the config has no field grpo: rf_jax.reinforce runs those of '
            'configs/posttraining/grpo.py and unified_grpo.py; rf_jax.train runs the others'
        )
    require(
        not lora.enabled(config),
        f'lora.rank={config.lora.rank}: GRPO trains no adapters, set it to 0',
    )
    c = config.grpo
    trainable = choose('grpo.episode', c.episode, episodes.EPISODES).policies
    for name in c.policies:
        choose(f'grpo.policies (grpo.episode={c.episode!r})', name, dict.fromkeys(trainable))
    if not c.policies:
        raise UserError(f'grpo.policies is empty; known: {", ".join(trainable)}')
    _check_weights(c)
    choose('grpo.std', c.std, dict.fromkeys(policy.STDS))
    choose('grpo.prompts', c.prompts, asking.PROMPTS)
    choose('grpo.flow.sampler', c.flow.sampler, flow.STOCHASTIC)
    policy.check_numbers(config)
    episodes.groups_of(config)
    kind, name = representation.of(config), config.model.representation.kind
    if (kind.tokens or 'representation' in c.policies) and not kind.learns_codebook:
        raise UserError(
            f'model.representation.kind={name!r}: GRPO needs discrete tokens (forcing), or a kind '
            "without tokens and grpo.policies=('flow',)"
        )
    _check_steps(config)
    for field in ('checkpoint.every', 'checkpoint.keep_period', 'steps'):
        value = attrgetter(field)(config)
        require(
            value % c.updates == 0,
            f'{field}={value} is not a multiple of grpo.updates={c.updates}: a run can only go on '
            'where a rollout begins',
        )


def _check_weights(c) -> None:
    """Raises UserError for weights that are none, and for rewards that the episode cannot use."""
    try:
        weights = {name: float(weight) for name, weight in c.rewards}
    except (TypeError, ValueError):
        weights = {'': float('nan')}
    if not np.isfinite(list(weights.values())).all() or len(weights) < len(c.rewards):
        raise UserError(
            f'grpo.rewards={c.rewards!r}: expected pairs (name, weight), each name once; as a '
            'flag: --config.grpo.rewards="((\'judge\', 1.0),)"'
        )
    usable = episodes.EPISODES[c.episode].rewards
    for name, weight in weights.items():
        own = name not in rewards.REWARDS and name != rewards.SIMILARITY
        if not (own or name in usable) and (weight or name == rewards.SIMILARITY):
            raise UserError(
                f'grpo.rewards: {name!r} has nothing to reward in grpo.episode={c.episode!r}; of '
                f'the rewards of the package, it can use {", ".join(usable)}'
            )


def weights_of(config, more: Mapping[str, Reward]) -> dict[str, float]:
    """The weight of each reward; those of the user have 1, unless `grpo.rewards` says another."""
    given = {name: float(weight) for name, weight in config.grpo.rewards}
    return given | {name: given.get(name, 1.0) for name in more}


def name_rewards(config, more: Mapping[str, Reward]) -> None:
    """Adds the rewards of the user to `grpo.rewards`, so that the workdir remembers them. Raises
    UserError as `rewards.chosen`.
    """
    weights = weights_of(config, more)
    rewards.chosen(weights, more)
    config.grpo.rewards = tuple(weights.items())


def _check_steps(config) -> None:
    """The steps of the flow that have noise, and the room for them in a row."""
    c, capacity = config.grpo, config.data.capacity
    first, last = c.flow.stochastic if len(c.flow.stochastic) == 2 else (0, 0)
    if not 0 <= first < last < c.flow.steps:
        raise UserError(
            f'grpo.flow.stochastic={c.flow.stochastic}: expected (first, last) with 0 <= first < '
            f'last < grpo.flow.steps={c.flow.steps}; the last step has no noise'
        )
    height, width = inputs.largest_square(config)
    images = last - first if 'flow' in c.policies else 0
    patches = images * height * width // config.data.patch_size**2
    if capacity.pixels < patches or capacity.pixel_images < images:
        raise UserError(
            f'grpo.flow.stochastic={c.flow.stochastic} needs data.capacity.pixels={patches} and '
            f'data.capacity.pixel_images={images}: each trained step has its own noisy image'
        )


def check_text(config, tokenizer) -> None:
    """Raises UserError if a row cannot hold a sampled text and what is before it."""
    c, data, chat = config.grpo, config.data, tokenizer.chat
    asked = chat.question_and_answer - len(chat.after['assistant'])
    if episodes.EPISODES[c.episode].questions:
        asked += spans.question_room(tokenizer, data.max_text_tokens)
    if 'text' in c.policies and asked + c.text_tokens > data.capacity.text:
        raise UserError(
            f'grpo.text_tokens={c.text_tokens} and the {asked} before them '
            f'(data.max_text_tokens={data.max_text_tokens}) exceed '
            f'data.capacity.text={data.capacity.text}'
        )


class Collector:
    """A feed of `train_loop.train`. `reference`: frozen parameters, never saved with the run."""

    def __init__(self, run, reference: Any, more: Mapping[str, Reward] | None = None):
        """`more`: rewards of the user by name. Raises UserError."""
        check_text(run.config, run.tokenizer)
        self.run, self.config = run, run.config
        self.rollouts = RolloutPrograms(run, reference)
        self.encoder = Encoder(self.rollouts.sampler, self.rollouts.reference)
        self.weights = weights_of(self.config, more or {})
        self.rewards = rewards.chosen(self.weights, more or {})
        self.policies = self.rollouts.policies
        self.episode = episodes.EPISODES[self.config.grpo.episode]
        self._check_sources()
        c, multiple = self.config.grpo, self.rollouts.placement.multiple
        sampled = episodes.groups_of(self.config) * c.group_size
        require(
            sampled % multiple == 0,
            f'a rollout samples {sampled} texts or images at once (data.batch_size, grpo.updates, '
            f'grpo.images={c.images}), which is not a multiple of the {multiple} devices of the '
            'mesh that share them',
        )

    def _check_sources(self) -> None:
        """Raises UserError where prompts or rewards need scenes and there are none."""
        if any(hasattr(source, 'scene') for source in self.run.batches.sources):
            return
        c = self.config.grpo
        needing = [f'the reward {name!r}' for name in rewards.OF_SCENES if self.weights.get(name)]
        if 'judge' in self.episode.rewards and c.prompts != 'captions':
            needing.append(f"grpo.prompts={c.prompts!r} (expected 'captions')")
        require(
            not needing,
            f'data.sources={self.config.data.sources} has no scenes, needed '
            f'by {" and ".join(needing)}; rewards of your own: --reward=my_rewards.py:brightness '
            '--config.grpo.rewards="((\'brightness\', 1.0),)"',
        )

    def __call__(self, run, start: int, metrics: StepMetrics) -> Callable[[State], Mapping]:
        """The batches from step `start` on."""
        number, updates = start, self.config.grpo.updates
        require(
            number % updates == 0,
            f'the run is at step {number}, in the middle of a rollout of grpo.updates={updates} '
            'steps: go on with the grpo.updates of before',
        )
        rows: dict = {}

        def next_batch(state: State):
            nonlocal number, rows
            if not number % updates:
                with run.goodput.phase('rollout'):
                    rows, seen = self.collect(state.params, number)
                metrics.writer.scalars(number + 1, seen)
                if number // updates % max(self.config.log.every // updates, 1) == 0:
                    logging.info('%s', rollout_metrics.line(seen))
            size, part = self.config.data.batch_size, number % updates
            number += 1
            own = part * size + run.batches.rows
            return {name: array[own] for name, array in rows.items()}

        return next_batch

    def collect(self, params: Any, number: int) -> tuple[dict, dict[str, float]]:
        """(rows of `grpo.updates` batches with all fields of the objective, metrics)."""
        params = self.rollouts.placement.params(params)
        found = self.episode.collect(self.run, self.rollouts, params, number)
        values = self._rewards(found)
        counted = {name: weight for name, weight in self.weights.items() if weight}
        total = sum(weight * values[name] for name, weight in counted.items())
        valid = np.isfinite(total).all(1)
        shape = len(total), self.config.grpo.group_size, self.config.grpo.images
        texts = episodes.texts_of(found.samples, self.config)
        advantages = policy.by_policy(total.reshape(shape), self.config.grpo.std, texts)
        errors: list[float] = []
        parts = [
            self._complete(params, rows, log_probs, advantages, valid, errors)
            for rows, log_probs in zip(found.rows, found.log_probs)
        ]
        texts = shape[0] * shape[1]
        rows = {name: _in_turn([part[name] for part in parts], texts) for name in parts[0]}
        seen = rollout_metrics.of(found, values, total.reshape(shape), valid, self.episode)
        return rows, seen | {'rollout/log_prob_error': max(errors)}

    def _rewards(self, found: episodes.Collected) -> dict[str, np.ndarray]:
        """{name: float64 [groups, n]}, NaN where a reward failed, equal in all processes.

        Plain functions are called by the first process; the encoder runs on all of them. Raises
        UserError if no group has all rewards that count.
        """
        groups = list(zip(found.asked, found.shown, found.samples))
        shape = len(self.rewards), len(groups), len(groups[0][2])
        counts: Counter = Counter()

        def computed() -> bytes:
            seconds = self.config.grpo.reward_seconds
            values = rewards.of_groups(self.rewards, groups, seconds, counts)
            return np.array(list(values.values()), np.float64).tobytes()

        sent = np.frombuffer(distributed.broadcast(computed)).reshape(shape)
        values = dict(zip(self.rewards, sent))
        if rewards.SIMILARITY in self.weights:
            values[rewards.SIMILARITY] = self._similarity(groups)
        counted = sum(values[name] for name, weight in self.weights.items() if weight)
        if not np.isfinite(counted).all(1).any():
            raise UserError(
                'no group of this rollout has all its rewards (grpo.rewards, --reward); the '
                f'warnings above say why: {dict(counts)}'
            )
        return values

    def _similarity(self, groups) -> np.ndarray:
        """Cosine of the features of source and sample, under the reference's encoder."""
        values = []
        for _, source, samples in groups:
            if source.image is None:
                raise UserError("grpo.rewards: 'similarity' needs an episode that shows an image")
            a, *others = self.encoder([source.image, *(each.image for each in samples)])
            values.append(np.array(others) @ a)
        return np.array(values, np.float64)

    def _complete(self, params, rows, log_probs, advantages, valid, errors: list[float]) -> dict:
        """The rows, one for each text or each sample, with advantages, old log-probabilities, and
        references; rows of groups without rewards do not count. Adds to `errors` how far these are
        from those of the rollout.
        """
        rows, count = dict(rows), len(rows['segment'])
        counts = np.repeat(valid, count // len(valid)).astype(np.float32)
        for name, own in self.policies.items():
            by_text = advantages[name].reshape(-1, self.config.grpo.images)
            each = by_text[:, : count // len(by_text)].astype(np.float32).ravel()
            weight = rows[own.weight]
            rows[f'{name}_old'] = self.rollouts.log_probs(params, name, rows)
            if name in log_probs:
                errors.append(_error(rows[f'{name}_old'], weight, log_probs[name]))
            rows[own.weight] = weight * counts[:, None]
            rows[f'{name}_advantage'] = np.broadcast_to(each[:, None], weight.shape)
            if self.config.grpo.kl[name]:
                rows[f'{name}_reference'] = self.rollouts.references(name, rows)
        return rows


def _in_turn(parts: Sequence[np.ndarray], texts: int) -> np.ndarray:
    """The rows of each text in turn: its own, and those of its images."""
    by_text = [part.reshape(texts, -1, *part.shape[1:]) for part in parts]
    return np.concatenate(by_text, 1).reshape(-1, *parts[0].shape[1:])


def _error(again: np.ndarray, weight: np.ndarray, sampled: np.ndarray) -> float:
    """Mean over the rows that count of the difference of their mean log-probability, in training
    and rollout; 0 without such rows.
    """
    counted = weight.sum(1) > 0
    if not counted.any():
        return 0.0
    again, weight, sampled = again[counted], weight[counted], sampled[counted]
    again = (again * weight).sum(1) / weight.sum(1)
    real = np.arange(sampled.shape[1]) < (weight > 0).sum(1)[:, None]
    return float(np.abs(again - (sampled * real).sum(1) / real.sum(1)).mean())
