"""Describe images, generate them again from the descriptions, compare (after Unified-Bench):

    python -m rf_jax.unified_bench --workdir=runs/both --encoder=dino=dinov2-large \\
        --encoder=clip=clip-vit-large-patch14 --images=reference_images

The run given by --captioner describes, the one of --workdir generates: with both directions trained
apart, as in Unified-GRPO, the other one stays what it was. Without --captioner: one run does both.
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
from rf_jax.runtime import cli, model_flags, paths, storage, workdir
from rf_jax.runtime.errors import require

_WORKDIR = flags.DEFINE(cli.ANY_PATH, 'workdir', None, 'Folder of the run.')
_CAPTIONER = flags.DEFINE(
    cli.ANY_PATH, 'captioner', None, 'Folder of the run that describes; that of --workdir if none.'
)
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
_PLACEMENT, _SAMPLING = model_flags.placement(), model_flags.sampling()


def main(argv):
    del argv
    out = paths.anywhere(_OUT.value or _WORKDIR.value, '--out')
    encoders = unified_bench.encoders(_ENCODERS.value)
    sampler = Sampler.load(_WORKDIR.value, _STEP.value, **_PLACEMENT(), **_SAMPLING())
    captioner = sampler
    if _CAPTIONER.value:
        captioner = Sampler.load(_CAPTIONER.value, **_PLACEMENT(), **_SAMPLING())
    config = sampler.config
    for flag, run, able, task in (
        ('workdir', sampler, scoring.generates(config), 'generates (text_to_image)'),
        ('captioner' if _CAPTIONER.value else 'workdir', captioner,
         captioner.config.data.tasks.get('image_to_text', 0) > 0, 'describes (image_to_text)'),
    ):  # fmt: skip
        require(
            able,
            f'--{flag}: data.tasks={run.config.data.tasks.to_dict()}; expected one that {task}',
        )
    scenes = []
    if _IMAGES.value:
        files = image_files(Path(_IMAGES.value), 'images')[: _COUNT.value]
        images = unified_bench.read(files, config.data.max_pixels)
    else:
        source = scoring.new_scenes(config)
        count = min(_COUNT.value, len(source))
        images, scenes = zip(*((source.image(i), source.scene(i)) for i in range(count)))
    if _OUT.value:
        workdir.check_writable(out, flag='out')
    encoders = encoders or {'own': unified_bench.of_run(sampler)}
    result = unified_bench.evaluate(sampler, images, encoders, scenes, _SEED.value, captioner)
    made_by = {'step': sampler.step, 'seed': _SEED.value}
    if _CAPTIONER.value:
        made_by |= {'captioner': str(_CAPTIONER.value), 'step of captioner': captioner.step}
    image_ops.save_png(out / 'unified_bench.png', result.sheet(), made_by)
    text = json.dumps(made_by | result.values, indent=1)
    storage.write(out / 'unified_bench.json', text.encode())
    print(f'{result.table()}\nsheet: {out}/unified_bench.png')


if __name__ == '__main__':
    cli.run(main, required=['workdir'])
