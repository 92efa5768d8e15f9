"""The exponential moving average (EMA) of the weights.

The quantizer uses its encoder, inference all of it.
"""

import re

import jax
import jax.numpy as jnp

from rf_jax.training import lora, optimizer, weight_sources


def warm_up(step, offset: float):
    """Largest decay at `step`, counted from 0: (1 + step) / (offset + step).

    Offset 2 weights all steps so far equally; offset 10 favours the newest ninth of them.
    """
    return (1.0 + step) / (offset + step)


def window(decay: float, offset: float, step: int) -> float:
    """Number of steps that the average covers after `step` (from 0): 1 / weight of the newest one.

    `offset` of the warm-up; 0: no warm-up.
    """
    if offset:
        decay = min(decay, warm_up(step, offset))
    return 1.0 / (1.0 - decay)


def window_at_end(config) -> float:
    """Number of steps that the average covers after the last step of a run."""
    c = config.ema
    return window(c.decay, c.warmup_offset if c.warmup else 0, config.steps - 1)


def average(config, ema, params, step: jax.Array):
    """The average after `step`: a float32 tree like `params`; the encoder has its own decay.

    New parameters (`weight_sources.new`, and adapters) always warm up, since their average starts
    from random weights. If `ema.warmup` is off, the others continue the average of the sources in
    `initialise_from`.
    """
    c, from_scratch = config.ema, weight_sources.new(config)
    warm = warm_up(step, c.warmup_offset)

    def blend(path, old, current):
        decay = c.encoder_decay if path.startswith('encoder/') else c.decay
        new = lora.is_adapter(path) or any(re.search(pattern, path) for pattern in from_scratch)
        if c.warmup or new:
            decay = jnp.minimum(decay, warm)
        return old + (1 - decay) * (current - old)

    names = optimizer.paths(params)
    leaves = map(blend, names, jax.tree.leaves(ema), jax.tree.leaves(params))
    return jax.tree.unflatten(jax.tree.structure(params), list(leaves))
