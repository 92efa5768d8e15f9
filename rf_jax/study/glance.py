"""What RF does, on one sheet.

    python -m rf_jax.study.glance --rf=runs/pixel_rf --pixels=runs/pixel --out=glance.png

A column for each prompt: the tokens that the RF model predicts, as a map; the image that it
generates from them; and the image that the model without tokens generates. A token is shown as the
mean patch of the training images that have it.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from rf_jax.data import contact_sheet, source_list
from rf_jax.evaluation import retrieval
from rf_jax.evaluation.inspection import Inspector
from rf_jax.generation.generated_image import GeneratedImage
from rf_jax.generation.sampler import Sampler
from rf_jax.runtime import workdir
from rf_jax.runtime.errors import require

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
    return contact_sheet.grid(shown, count, names)


def write(rf: str, pixels: str, prompts: Sequence[str], seed: int, out: Path) -> None:
    """Generates the images of both runs and writes the sheet. Raises UserError."""
    require(
        out.suffix.lower() == '.png' and not out.is_dir(),
        f'--out={out}: expected the name of a PNG file, as in glance.png',
    )
    workdir.check_writable(out.parent, 'out')
    inspector = Inspector.load(rf)
    config = inspector.sampler.config.data
    sources = source_list.build(config.sources, config.max_pixels)
    shown = source_list.with_images(sources, inspector.sampler.tokenizer, config)[0]
    numbers = source_list.with_image(shown)
    training = [*retrieval.readable(shown, numbers, EXAMPLES).values()]
    generated = inspector.sampler.generate(prompts, seed)
    without = Sampler.load(pixels).generate(prompts, seed)
    Image.fromarray(sheet(inspector, generated, without, training)).save(out)


def _main() -> None:
    from absl import flags

    from rf_jax.runtime import cli

    flags.DEFINE(cli.PATH, 'rf', None, 'Workdir of a model with representation tokens.')
    flags.DEFINE(cli.PATH, 'pixels', None, 'Workdir of a model without.')
    flags.DEFINE_multi_string('prompt', PROMPTS, 'What to generate; may be repeated.')
    flags.DEFINE_integer('seed', 0, 'Seed of all images.', 0)
    flags.DEFINE(cli.PATH, 'out', 'glance.png', 'PNG to write.')

    def main(argv):
        del argv
        given = flags.FLAGS
        write(given.rf, given.pixels, given.prompt, given.seed, Path(given.out))

    cli.run(main, required=['rf', 'pixels'])


if __name__ == '__main__':
    _main()
