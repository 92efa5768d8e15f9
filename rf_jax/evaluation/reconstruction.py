"""What the autoencoder preserves: real scenes, encoded, decoded and judged."""

import numpy as np

from rf_jax.data import fitting, image_ops, layout
from rf_jax.generation.sampler import Sampler
from rf_jax.scenes import judge


def evaluate(sampler: Sampler, source, count: int) -> dict[str, float]:
    """Measures over the first `count` scenes.

    `accepted`: the share whose caption the judge accepts after encoding and decoding, an upper
    bound for generated images; `error`: mean squared error of pixels in [-1, 1];
    `latent_deviation`: standard deviation of the latents, which should be about 1 as the flow's
    noise is.
    """
    model, patch = sampler.model, sampler.config.data.patch_size
    size = fitting.image_size(source.size, source.size, sampler.config)
    grid = size[0] // patch, size[1] // patch
    images = [image_ops.resize(source.image(i), *size) for i in range(count)]
    placement = sampler.placement
    rows = [[[layout.Pixels(*grid, image_ops.patchify(image, patch))]] for image in images]
    rows += [[]] * (placement.full(count) - count)
    capacity = dict(zip(layout.SIZES, layout.size(rows[0][0]).tolist()))
    batch = placement.inputs(layout.make_batch(rows, capacity, model.channels))
    variables = {'params': sampler.params}
    encode = placement.jit(lambda v, b: model.bind(v).clean(b))
    latents = encode(variables, batch)
    decode = placement.jit(lambda v, z, b: model.bind(v).pixels(z, b))
    patches = np.asarray(decode(variables, latents, batch))[:count]
    decoded = [image_ops.unpatchify(each, *size, patch) for each in patches]
    error = [np.mean((a - b / 127.5 + 1) ** 2) for a, b in zip(decoded, images)]
    decoded = [np.clip((each + 1) * 127.5 + 0.5, 0, 255).astype(np.uint8) for each in decoded]
    claims = [source.captions(i)[0].claim for i in range(count)]
    return {
        'accepted': float(np.mean([judge.accepts(c, p) for c, p in zip(claims, decoded)])),
        'error': float(np.mean(error)),
        'latent_deviation': float(np.asarray(latents)[:count].std()),
    }
