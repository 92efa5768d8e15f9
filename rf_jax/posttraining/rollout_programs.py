"""The jitted programs of rollouts, on the sampler of a run: all processes get complete results."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from rf_jax.data import layout
from rf_jax.data.batch import Batch
from rf_jax.evaluation import run_report
from rf_jax.generation import generated_image, guidance, inputs
from rf_jax.posttraining import policy, rollout
from rf_jax.training import flow


@dataclass(frozen=True)
class ImageRequest:
    """An image to sample after `prompt`; `height` and `width` in pixels, `seed` its own."""

    prompt: layout.Text
    height: int
    width: int
    seed: int


class RolloutPrograms:
    """Samples with the parameters of a step; `reference`: frozen parameters, sharded as these."""

    def __init__(self, run, reference: Any):
        self.config, self.tokenizer = run.config, run.tokenizer
        self.sampler = sampler = run_report.sampler_of(run)
        self.model, self.placement = sampler.model, sampler.placement
        self.channels, self.flow_channels = self.model.channels, self.model.flow_channels
        # A text ends where the model ends it, or goes on with an image.
        self.stops = *self.tokenizer.ends, self.tokenizer.image
        self.policies = policy.policies(run.config)
        self.reference = None if reference is None else self.placement.params(reference)
        c, length = run.config.grpo, run.config.grpo.text_tokens
        steps = rollout.FlowPolicy(
            c.flow.steps, *c.flow.stochastic, flow.STOCHASTIC[c.flow.sampler], c.flow.level
        )

        def images(params, row, seeds):
            keys = jax.vmap(jax.random.key)(seeds)
            return rollout.images(self.model, self.config, steps, params, row, keys)

        def texts(params, rows, lengths, seeds):
            keys = jax.vmap(jax.random.key)(seeds)
            return rollout.texts(self.model, length, self.stops, params, rows, lengths, keys)

        self._images, self._texts = self.placement.jit(images), self.placement.jit(texts)
        self._forward = {
            what: self.placement.jit(partial(self._measure, what), static_argnums=0)
            for what in ('log_probs', 'reference')
        }

    def _measure(self, what: str, name: str, params, batch: Batch):
        where = batch['tokens'], batch['z'], batch['t']
        outputs = self.model.apply({'params': params}, batch, *where)
        return getattr(self.policies[name], what)(outputs, batch)

    def images(self, params, requests: Sequence[ImageRequest]) -> rollout.Images:
        """One image of each request, as numpy arrays."""
        prompts = [each.prompt for each in requests]
        sizes = [(each.height, each.width) for each in requests]
        text = self.config.data.capacity.text
        rows = inputs.rows_after(self.config, self.channels, prompts, sizes, text)
        seeds = np.array([each.seed for each in requests], np.uint32)
        placed = self.placement.inputs((rows[guidance.ALL, True], seeds))
        return jax.tree.map(np.array, self._images(params, *placed))

    def whole_images(self, requests, found: rollout.Images) -> list[np.ndarray]:
        """uint8 [h, w, 3] of each."""
        patch, pool = self.config.data.patch_size, self.sampler.pool
        return [
            generated_image.from_patches(values, (each.height, each.width), patch, pool)
            for each, values in zip(requests, found.patches)
        ]

    def texts(self, params, pairs, seeds: np.ndarray) -> rollout.Texts:
        """A text for each (image or None, question), as numpy arrays."""
        rows, lengths = inputs.answer_rows(
            self.config, self.tokenizer, self.channels, pairs, self.config.grpo.text_tokens
        )
        placed = self.placement.inputs((rows, lengths, seeds.astype(np.uint32)))
        return jax.tree.map(np.asarray, self._texts(params, *placed))

    def log_probs(self, params, name: str, rows: Batch) -> np.ndarray:
        """Those of policy `name`, computed as in training: float32 [B, n]."""
        return np.asarray(self._forward['log_probs'](name, params, self.placement.inputs(rows)))

    def references(self, name: str, rows: Batch) -> np.ndarray:
        """What the KL term of policy `name` compares with."""
        inputs_ = self.placement.inputs(rows)
        return np.asarray(self._forward['reference'](name, self.reference, inputs_))

    def captions(self, images: Sequence[np.ndarray]) -> list[str]:
        """Greedy captions by the reference."""
        self.sampler.params = self.reference
        return self.sampler.caption(list(images))

    def decoded(self, asked: Sequence[tuple[str, int]], seed: int, sizes) -> list[np.ndarray]:
        """Images by the reference, with the guidance of `config.sampling`, each of its (height,
        width) in `sizes`. `asked`: caption and number; the same of all three is generated once.
        """
        self.sampler.params = self.reference
        once = dict.fromkeys(zip(asked, sizes))
        captions, numbers = zip(*(each for each, _ in once))
        found = self.sampler.generate(captions, seed, [size for _, size in once], numbers)
        images = dict(zip(once, (each.image for each in found)))
        for array in images.values():
            array.flags.writeable = False  # rewards share them
        return [images[each] for each in zip(asked, sizes)]
