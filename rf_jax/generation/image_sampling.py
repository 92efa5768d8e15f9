"""Text to picture: representation tokens one by one, then the flow in pixels (paper, appendix A).

All functions are pure and batched; a sample's randomness depends on its own seed alone, so a batch
gives what the samples give one by one.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from rf_jax.generation import guidance, kv_cache, token_sampling
from rf_jax.models.unified import Unified
from rf_jax.training import flow

Arrays = Mapping[str, jax.Array]


@dataclass(frozen=True)
class Options:
    """Of one drawing; defaults are the paper's. See `config.sampling`."""

    steps: int = 25
    method: str = 'euler'
    top_k: int = 0
    temperature: float = 1.0
    guidance_representation: float = 2.0
    guidance_pixels: float = 3.0
    guidance_text: float = 0.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)

    def branches(self) -> dict[guidance.Branch, float]:
        """Weights of the pixel branches."""
        return guidance.pixel_weights(self.guidance_pixels, self.guidance_text)

    def contexts(self) -> tuple[bool, ...]:
        """Which contexts to keep: with text, without, or both; with text comes first."""
        need = set(guidance.token_weights(self.guidance_representation))
        need |= {text for text, _ in self.branches()}
        return tuple(sorted(need, reverse=True))


def options(config, **changes) -> Options:
    """`config.sampling` with changes; None changes nothing."""
    values = {name: config.sampling[name] for name in Options.__dataclass_fields__}
    values['guidance_interval'] = tuple(values['guidance_interval'])
    return Options(**values | {name: v for name, v in changes.items() if v is not None})


def draw(model: Unified, config, options: Options, params, rows, keys):
    """Pictures of the rows.

    rows: {(text kept, representation kept): arrays of `data.layout`} for all four, one sample a
    row; keys: one key a row. Gives (patches float32 [B, P, C] in [-1, 1], what
    `token_sampling.build` wrote before them [B, N, ...]).
    """
    contexts = options.contexts()
    batch = _stack([rows[text, True] for text in contexts])
    write = token_sampling.build(config)
    tokens, cache = write(model, options, params, batch, contexts, keys)
    caches = dict(zip(contexts, _split(cache, len(contexts))))
    drawn = draw_pixels(model, config, options, params, rows, caches, keys)
    return model.apply({'params': params}, drawn, rows[True, True], method='pixels'), tokens


def draw_pixels(model: Unified, config, options: Options, params, rows, caches, keys) -> jax.Array:
    """The flow from noise to pictures with the context cached: float32 [B, P, Z]."""
    branches = options.branches()
    batch = _stack([rows[branch] for branch in branches])
    cache = _stack_caches([caches[text] for text, _ in branches])
    conditional = rows[True, True]
    picture = conditional['pixel_counts'][:, 0]
    c = config.flow
    alpha = flow.shift_of(picture * config.data.patch_size**2, c.shift, c.base_pixels)
    times = flow.shift(flow.schedule(options.steps)[:, None], alpha)  # [steps + 1, B]
    patches = conditional['pixels'].shape[1]

    def predict(z, t):
        """Guided clean patches of z [B, P, Z] at t [B, P]."""
        tiled = (jnp.concatenate([a] * len(branches)) for a in (z, t))
        x = model.apply({'params': params}, *tiled, batch['pixel_cells'], method='embed_patches')
        x = kv_cache.after(model, params, batch, cache, x, (0, 0, patches))
        x = model.apply({'params': params}, x, method='predict')
        x = dict(zip(branches, jnp.split(x, len(branches))))
        guided = guidance.combine(x, branches)
        if options.guidance_interval == (0.0, 1.0) or (True, True) not in x:
            return guided
        low, high = options.guidance_interval
        return jnp.where(((t >= low) & (t <= high))[..., None], guided, x[True, True])

    def velocity(z, t):
        return flow.velocity(predict(z, t), z, t, c.t_eps)

    def step(z, pair):
        t, t_next = (jnp.broadcast_to(a[:, None], z.shape[:2]) for a in pair)
        return flow.METHODS[options.method](velocity, z, t, t_next), None

    noise = c.noise_scale * _noise(keys, patches, model.drawn)
    return jax.lax.scan(step, noise, (times[:-1], times[1:]))[0]


def _noise(keys, patches: int, channels: int) -> jax.Array:
    """Unit noise [B, P, Z]; patch p of a sample has its own key, whatever P the batch needs."""

    def of_patch(key, p):
        return jax.random.normal(jax.random.fold_in(key, 1_000_000 + p), (channels,))

    return jax.vmap(lambda k: jax.vmap(lambda p: of_patch(k, p))(jnp.arange(patches)))(keys)


def _stack(parts):
    return jax.tree.map(lambda *a: jnp.concatenate(a), *parts)


def _stack_caches(parts):
    return jax.tree.map(lambda *a: jnp.concatenate(a, 1), *parts)


def _split(cache, count: int):
    """Caches of `count` contexts stacked along the rows."""
    k, v = (jnp.split(a, count, axis=1) for a in cache)
    return list(zip(k, v))
