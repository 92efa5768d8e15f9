"""What RF does, on one sheet.

    python -m rf_jax.study.glance --rf=runs/pixel_rf --pixels=runs/pixel --out=glance.png

A column for each prompt: the tokens that the RF model predicts, as a map; the image that it
generates from them; and the image that the model without tokens generates. A token is shown as the
mean patch of the training images that have it.
"""

from pathlib import Path

import numpy as np
from absl import flags
from PIL import Image

from rf_jax.data import image_ops, source_list
from rf_jax.evaluation.inspection import Inspector
from rf_jax.generation.generated_image import GeneratedImage
from rf_jax.generation.sampler import Sampler
from rf_jax.runtime import cli

PROMPTS = (
    'a circle',
    'three squares',
    'a green triangle',
    'a circle right of a triangle',
    'a yellow triangle and a white cross',
    'a purple square and a blue diamond',
)
ZOOM = 3  # pixels of the sheet for one of an image
EXAMPLES = 1000  # training images whose patches are averaged

_RF = flags.DEFINE(cli.PATH, 'rf', None, 'Workdir of a model with representation tokens.')
_PIXELS = flags.DEFINE(cli.PATH, 'pixels', None, 'Workdir of a model without.')
_PROMPT = flags.DEFINE_multi_string('prompt', PROMPTS, 'What to generate; may be repeated.')
_SEED = flags.DEFINE_integer('seed', 0, 'Seed of all images.')
_OUT = flags.DEFINE(cli.PATH, 'out', 'glance.png', 'PNG to write.')


def token_map(tokens: np.ndarray, means: dict[int, np.ndarray], side: int) -> np.ndarray:
    """uint8 [rows * side, columns * side, 3]; a token that no training patch has is black."""
    absent = np.zeros((side, side, 3), np.uint8)
    return np.block([[[means.get(int(token), absent)] for token in row] for row in tokens])


def sheet(inspector: Inspector, with_tokens: list[GeneratedImage], without, training) -> np.ndarray:
    """uint8 [height, width, 3] with the three rows; `training`: images to average patches of."""
    means, side = inspector.mean_pieces(training), inspector.side
    maps = [token_map(each.tokens, means, side) for each in with_tokens]
    rows = [maps, [each.image for each in with_tokens], [each.image for each in without]]
    count = len(with_tokens)
    names = [each.prompt for each in with_tokens]
    for row in ('RF: tokens, then these pixels', 'plain pixels'):
        names += [row, *[''] * (count - 1)]
    shown = [np.kron(image, np.ones((ZOOM, ZOOM, 1), np.uint8)) for row in rows for image in row]
    return image_ops.grid(shown, count, names)


def main(argv):
    del argv
    inspector = Inspector.load(_RF.value)
    config = inspector.sampler.config.data
    sources = source_list.build(config.sources, config.max_pixels)
    training = [sources[0].image(i) for i in range(min(EXAMPLES, len(sources[0])))]
    generated = inspector.sampler.generate(_PROMPT.value, _SEED.value)
    without = Sampler.load(_PIXELS.value).generate(_PROMPT.value, _SEED.value)
    Image.fromarray(sheet(inspector, generated, without, training)).save(Path(_OUT.value))


if __name__ == '__main__':
    cli.run(main, required=['rf', 'pixels'])
