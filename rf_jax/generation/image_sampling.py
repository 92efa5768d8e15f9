"""Text to image: representation tokens one by one, then the flow (paper, appendix A).

All functions are pure and batched. The randomness of an example depends only on its own key, so a
batch gives what its examples give one by one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rf_jax.data.batch import Batch
from rf_jax.generation import guidance, kv_cache, token_sampling
from rf_jax.models.unified import Unified
from rf_jax.runtime.errors import choose, require
from rf_jax.training import bounds, flow

SCALES = ('guidance_representation', 'guidance_pixels', 'guidance_text', 'guidance_image')


@dataclass(frozen=True)
class Options:
    """How images are generated: the fields of `config.sampling`; the defaults are the paper's."""

    steps: int = 25
    method: str = 'euler'
    top_k: int = 0
    temperature: float = 1.0
    guidance_representation: float = 2.0
    guidance_pixels: float = 3.0
    guidance_text: float = 0.0
    guidance_image: float = 0.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)

    def weights(self) -> guidance.Weights:
        """Of the scales."""
        pixels = guidance.pixel_weights(
            self.guidance_pixels, self.guidance_text, self.guidance_image
        )
        if self.guidance_interval != (0.0, 1.0):  # outside, the whole context alone decides
            pixels.setdefault((guidance.ALL, True), 0.0)
        tokens = guidance.token_weights(self.guidance_representation, self.guidance_image)
        return guidance.Weights(pixels, tokens)

    def weights_of(self, count: int) -> guidance.Weights:
        """The same for each of `count` images."""
        return guidance.stacked([self.weights()] * count, self.weights())

    def program(self) -> 'Options':
        """What programs are compiled for: the options with the default scales, as weights are
        arguments.
        """
        defaults = {name: getattr(Options, name) for name in SCALES}
        return replace(self, **defaults)

    def without_images(self) -> 'Options':
        """The same where there are no other images to be guided by."""
        return replace(self, guidance_image=0.0)


def options(config: ConfigDict, **changes) -> Options:
    """`config.sampling` with changes; a value of None changes nothing.

    A run that was trained before there was an option has its default. Raises UserError for an
    unknown method.
    """
    fields = Options.__dataclass_fields__
    values = {name: config.sampling.get(name, field.default) for name, field in fields.items()}
    values |= {name: value for name, value in changes.items() if value is not None}
    values['guidance_interval'] = tuple(values['guidance_interval'])
    choose('sampling.method', values['method'], flow.METHODS)
    return Options(**values)


def change(config: ConfigDict, changes: Mapping[str, Any]) -> None:
    """Sets fields of `config.sampling`. Raises UserError for an unknown one or a wrong value."""
    known = [name for name in config.sampling if name != 'sharding']
    for name, value in changes.items():
        require(name in known, f'sampling has no field {name!r}; fields: {", ".join(known)}')
        bounds.check({f'sampling.{name}': value})
    options(config, method=changes.get('method'))
    for name, value in changes.items():
        config.sampling[name] = list(value) if isinstance(value, tuple) else value  # as in JSON


def generate(
    model: Unified,
    config: ConfigDict,
    options: Options,
    params,
    rows: Mapping[guidance.Branch, Batch],
    keys: jax.Array,
    weights: guidance.Weights,
) -> tuple[jax.Array, jax.Array]:
    """Images of the rows.

    rows: a batch for each branch of the weights, and for the contexts with representation
    (`inputs.generation_rows`), one example a row; keys [B]; weights: those of the scales, which
    `options` are not read for. Gives (patches float32 [B, P, C] in [-1, 1], representation tokens
    [B, N, ...] as `token_sampling.sample` says).
    """
    contexts = weights.contexts()
    batch = _stack([rows[context, True] for context in contexts])
    tokens, cache = token_sampling.sample(model, options, params, batch, weights, keys)
    caches = dict(zip(contexts, _split(cache, len(contexts))))
    latents = generate_latents(model, config, options, params, rows, caches, keys, weights.pixels)
    bound = model.bind({'params': params})
    return bound.pixels(latents, rows[guidance.ALL, True]), tokens


class State(NamedTuple):
    """Images between two chunks of `generate`: first their tokens are written, then z is moved."""

    writing: token_sampling.Writing
    z: jax.Array  # [B, P, Z], the noise until all tokens are there


def begin(
    model: Unified, config: ConfigDict, params, rows, keys: jax.Array, contexts: Sequence[str]
) -> State:
    """Images of the rows before their first token. `begin`, `write`, `move` and the model's
    `pixels` give what `generate` gives, up to rounding; `rows` as there, `contexts` those of the
    weights.
    """
    batch = _stack([rows[context, True] for context in contexts])
    writing = token_sampling.begin(model, params, batch, keys.shape[0])
    return State(writing, noise(model, config, rows, keys))


def write(
    model: Unified,
    options: Options,
    params,
    rows,
    keys: jax.Array,
    state: State,
    first,
    last,
    weights: guidance.Weights,
) -> State:
    """The tokens of the places [first, last) of `token_sampling.places`."""
    batch = _stack([rows[context, True] for context in weights.contexts()])
    writing = token_sampling.write(
        model, options, params, batch, weights, keys, state.writing, first, last
    )
    return state._replace(writing=writing)


def move(
    model: Unified,
    config: ConfigDict,
    options: Options,
    params,
    rows,
    state: State,
    first,
    last,
    weights: guidance.Weights,
) -> State:
    """The steps [first, last) of the flow."""
    contexts = weights.contexts()
    caches = dict(zip(contexts, _split(state.writing.cache, len(contexts))))
    given = model, config, options, params, rows, caches, state.z
    z = integrate(*given, first, last, weights.pixels)
    return state._replace(z=z)


def generate_latents(
    model: Unified, config: ConfigDict, options: Options, params, rows, caches, keys, branches
) -> jax.Array:
    """Integrates the flow from noise at t = 0 to clean patches or latents: float32 [B, P, Z].

    caches: {context: keys and values of all tokens before the pixels}; branches: weights of the
    pixel branches.
    """
    z = noise(model, config, rows, keys)
    return integrate(model, config, options, params, rows, caches, z, 0, options.steps, branches)


def integrate(
    model: Unified,
    config: ConfigDict,
    options: Options,
    params,
    rows,
    caches,
    z,
    first,
    last,
    branches,
) -> jax.Array:
    """The steps [first, last) of the flow, which may be traced, from z [B, P, Z] before them."""
    batch = _stack([rows[branch] for branch in branches])
    cache = _stack_caches([caches[context] for context, _ in branches])
    conditional = rows[guidance.ALL, True]
    pixels = conditional['pixel_counts'][:, 0] * config.data.patch_size**2
    times = times_of(config, options, pixels)
    patches = conditional['pixels'].shape[1]

    def predict(z, t):
        """Guided prediction of the clean latents from z [B, P, Z] at t [B, P]."""
        tiled = (jnp.concatenate([a] * len(branches)) for a in (z, t))
        bound = model.bind({'params': params})  # here, as flax binds within one trace only
        x = bound.embed_patches(*tiled, batch['pixel_cells'])
        x = kv_cache.after(model, params, batch, cache, x, (0, 0, patches))
        x = dict(zip(branches, jnp.split(bound.predict(x), len(branches))))
        guided = guidance.combine(x, branches)
        if options.guidance_interval == (0.0, 1.0):
            return guided
        low, high = options.guidance_interval
        return jnp.where(((t >= low) & (t <= high))[..., None], guided, x[guidance.ALL, True])

    def velocity(z, t):
        return flow.velocity(predict(z, t), z, t, config.flow.t_eps)

    def step(i, z):
        t, t_next = (jnp.broadcast_to(a[:, None], z.shape[:2]) for a in (times[i], times[i + 1]))
        return flow.METHODS[options.method](velocity, z, t, t_next)

    return jax.lax.fori_loop(first, last, step, z)


def times_of(config: ConfigDict, options: Options, pixels) -> jax.Array:
    """Times of the flow [steps + 1, B] of images of `pixels` [B]; [steps + 1] of one number."""
    alpha = flow.shift_of(pixels, config.flow.shift, config.flow.base_pixels)
    return flow.shift(flow.schedule(options.steps).reshape(-1, *[1] * jnp.ndim(alpha)), alpha)


def noise(model: Unified, config: ConfigDict, rows, keys: jax.Array) -> jax.Array:
    """Where the flow begins, float32 [B, P, Z]."""
    patches = rows[guidance.ALL, True]['pixels'].shape[1]
    return config.flow.noise_scale * unit_noise(keys, patches, model.flow_channels)


def unit_noise(keys: jax.Array, patches: int, channels: int) -> jax.Array:
    """Unit noise [B, P, Z]. Each patch has its own key, so the noise does not depend on P."""

    def of_patch(key, p):
        return jax.random.normal(jax.random.fold_in(key, 1_000_000 + p), (channels,))

    return jax.vmap(lambda k: jax.vmap(lambda p: of_patch(k, p))(jnp.arange(patches)))(keys)


def _stack(batches):
    return jax.tree.map(lambda *a: jnp.concatenate(a), *batches)


def _stack_caches(caches):
    return jax.tree.map(lambda *a: jnp.concatenate(a, -4), *caches)


def _split(cache: kv_cache.Cache, count: int) -> list[kv_cache.Cache]:
    """The caches of `count` contexts that are stacked along the rows."""
    leaves, structure = jax.tree.flatten(cache)
    parts = zip(*(jnp.split(a, count, axis=-4) for a in leaves))
    return list(map(structure.unflatten, parts))
