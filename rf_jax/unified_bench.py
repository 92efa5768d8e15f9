"""Describe images, generate them again from the descriptions, compare (after Unified-Bench):

    python -m rf_jax.unified_bench --workdir=runs/both --encoder=dino=dinov2-large \\
        --encoder=clip=clip-vit-large-patch14 --images=reference_images

Without --images: new scenes of a run on scenes, where the judge counts the objects that come back.
Without --encoder: the run's own, which says little of a run that was rewarded by it.
"""

import json
from pathlib import Path

from absl import flags

from rf_jax.data import image_ops
from rf_jax.evaluation import scoring, unified_bench
from rf_jax.evaluation.image_scores import image_files
from rf_jax.generation.sampler import Sampler
from rf_jax.runtime import cli, paths, storage, workdir
from rf_jax.runtime.errors import UserError

_WORKDIR = flags.DEFINE(cli.ANY_PATH, 'workdir', None, 'Folder of the run.')
_IMAGES = flags.DEFINE(cli.PATH, 'images', None, 'Folder of images; new scenes if not given.')
_COUNT = flags.DEFINE_integer('count', 200, 'Most images.', 1)
_ENCODERS = flags.DEFINE_multi_string(
    'encoder', [], 'NAME=FOLDER, several times: of a run, or of a model of transformers.'
)
_OUT = flags.DEFINE(cli.ANY_PATH, 'out', None, 'Folder for the results; the workdir by default.')
_SEED = flags.DEFINE_integer('seed', 0, 'Another seed gives other images.', 0)
_STEP = flags.DEFINE_integer(
    'checkpoint', None, 'Step of the checkpoint; the newest by default.', 0
)
_PLACEMENT = cli.placement_flags()


def main(argv):
    del argv
    out = paths.anywhere(_OUT.value or _WORKDIR.value, '--out')
    encoders = dict(map(unified_bench.encoder, _ENCODERS.value))
    sampler = Sampler.load(_WORKDIR.value, _STEP.value, **_PLACEMENT())
    config = sampler.config
    if not (scoring.generates(config) and config.data.tasks.get('image_to_text', 0) > 0):
        raise UserError(
            f'data.tasks={config.data.tasks.to_dict()} of the run: expected one that describes '
            '(image_to_text) and generates (text_to_image)'
        )
    scenes = []
    if _IMAGES.value:
        files = image_files(Path(_IMAGES.value), 'images')[: _COUNT.value]
        try:
            images = [image_ops.read_rgb(path, config.data.max_pixels) for path in files]
        except image_ops.BadImage as error:
            raise UserError(f'--images={_IMAGES.value}: {error}') from error
    else:
        source = scoring.new_scenes(config)
        count = min(_COUNT.value, len(source))
        images, scenes = zip(*((source.image(i), source.scene(i)) for i in range(count)))
    if _OUT.value:
        workdir.check_writable(out, flag='out')
    encoders = encoders or {'own': unified_bench.of_run(sampler)}
    result = unified_bench.evaluate(sampler, images, encoders, scenes, _SEED.value)
    made_by = {'step': sampler.step, 'seed': _SEED.value}
    image_ops.save_png(out / 'unified_bench.png', result.sheet(), made_by)
    text = json.dumps(made_by | result.values, indent=1)
    storage.write(out / 'unified_bench.json', text.encode())
    print(f'{result.table()}\nsheet: {out}/unified_bench.png')


if __name__ == '__main__':
    cli.run(main, required=['workdir'])
