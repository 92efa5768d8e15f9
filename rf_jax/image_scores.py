"""FID, KID and CLIP score of a folder of images, with weights that are on this machine:

    python -m rf_jax.image_scores --images=out --reference=real --inception=weights.pth \\
        --clip=clip-vit-base-patch16 --prompts=prompts.txt

--reference and --inception belong together, and so do --clip and --prompts; one of the pairs is
enough. Needs `pip install 'rf_jax[image_scores]'`.
"""

from pathlib import Path

from absl import flags

from rf_jax.evaluation import image_scores
from rf_jax.evaluation.benchmarks import BENCHMARKS
from rf_jax.runtime import cli
from rf_jax.runtime.errors import require

_IMAGES = flags.DEFINE(cli.PATH, 'images', None, 'Folder of the images, as benchmarks writes it.')
_REFERENCE = flags.DEFINE(cli.PATH, 'reference', None, 'Folder of real images, for FID and KID.')
_INCEPTION = flags.DEFINE(cli.PATH, 'inception', None, "torch-fidelity's weights of InceptionV3.")
_CLIP = flags.DEFINE(cli.PATH, 'clip', None, 'Folder of a CLIPModel, as save_pretrained writes it.')
_PROMPTS = flags.DEFINE(cli.PATH, 'prompts', None, 'Prompts of the images, as given to benchmarks.')
_NAME = flags.DEFINE_enum('name', 'folder', list(BENCHMARKS), 'What --prompts and --images are of.')
_SIZE = flags.DEFINE_integer(
    'size', 0, 'FID, KID: resize the shorter side to it and crop the centre; 0: as they are.', 0
)
_SUBSET = flags.DEFINE_integer('kid_subset', 1000, 'Images in each subset of KID.', 2)


def main(argv):
    del argv
    given = {
        flag.name: flag.value and Path(flag.value)
        for flag in (_IMAGES, _REFERENCE, _INCEPTION, _CLIP, _PROMPTS)
    }
    for one, other in (('reference', 'inception'), ('clip', 'prompts')):
        for name, needed in ((one, other), (other, one)):
            require(not given[name] or bool(given[needed]), f'--{name} needs --{needed} as well')
    require(
        bool(given['reference'] or given['clip']),
        'give --reference and --inception for FID and KID, --clip and --prompts for CLIP score',
    )
    images, values = given['images'], {}
    if given['clip']:  # the prompts are checked before anything is computed
        pairs = image_scores.prompted(images, _NAME.value, given['prompts'])
    if given['reference']:
        values |= image_scores.distances(
            images, given['reference'], given['inception'], _SIZE.value, _SUBSET.value
        )
    if given['clip']:
        values |= image_scores.clip_score(pairs, given['clip'])
    print(image_scores.table(values))


if __name__ == '__main__':
    cli.run(main, required=['images'])
