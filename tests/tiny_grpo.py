"""Reinforcement of the shrunk base config: runs, their feeds, and rewards of which the optimum is
known.
"""

import jax
import numpy as np
from shrink import initialised_once, programs_once, shrink, trained_once

from configs import base
from configs.posttraining import grpo
from rf_jax.posttraining import collector, policy
from rf_jax.posttraining.collector import Collector
from rf_jax.training import train_loop


def config_of(changes=None):
    config = shrink(base.get_config())
    with config.unlocked():
        config.grpo = grpo.fields()
    config.data.batch_size = 16
    config.data.capacity.update(pixels=32, pixel_images=2)
    config.model.representation.codebook_size = 8
    config.optimizer.update(learning_rate=0.01, warmup_steps=1, weight_decay=0.0)
    config.grpo.update_from_flattened_dict(
        {'prompts': 'captions', 'text_tokens': 4, 'flow.steps': 4, 'flow.stochastic': (0, 2)}
    )
    config.grpo.rewards = (('own', 1.0),)
    config.update_from_flattened_dict(changes or {})
    return config


def built(workdir, changes=None, devices=1):
    config = config_of(changes)
    collector.check(config)
    with trained_once(), programs_once():
        run = train_loop.build(config, workdir, jax.devices()[:devices], policy.objective)
    return initialised_once(run)


def fed(run, state, reward):
    return Collector(run, jax.tree.map(lambda x: x.copy(), state.ema), {'own': reward})


def code_five(prompt, source, sample):
    return float(np.mean(sample.tokens == 5))


def begins_with_a(prompt, source, sample):
    words = sample.text.split()
    return float(np.mean([word[0] == 'a' for word in words])) if words else 0.0


def bright(prompt, source, sample):
    return float(sample.image.mean()) / 255


def moved(state):
    """Off the initial point, where all images are grey."""

    def noisy(x):
        return x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape)

    return state.replace(params=jax.tree.map(noisy, state.params))


def trained(workdir, reward, changes, **options):
    """(state, mean reward of each step) of a run from random weights."""
    run = built(workdir, changes)
    new = run.initialise
    run.initialise = lambda: moved(new())
    seen = []

    def noted(*asked):
        seen.append(reward(*asked))
        return seen[-1]

    feed = fed(run, run.initialise(), noted)
    state = train_loop.train(run, feed=feed, unit=run.config.grpo.updates, **options)
    return state, np.reshape(seen, (run.config.steps, -1)).mean(1)
