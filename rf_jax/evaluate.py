"""Evaluate a trained run: `python -m rf_jax.evaluate --workdir=runs/emoji [--samples=100]`.

Runs on scenes are scored by the judge: --prompts per category, --images per prompt.
"""

from absl import flags

from rf_jax.data import source_list
from rf_jax.evaluation import inspection, run_report, scoring
from rf_jax.runtime import cli, model_flags, paths, workdir
from rf_jax.runtime.errors import UserError

_WORKDIR = flags.DEFINE(cli.ANY_PATH, 'workdir', None, 'Folder of the run.')
_SAMPLES = flags.DEFINE_integer(
    'samples',
    None,
    'Captions to generate from and images to describe (scenes: captions only). Default: '
    'evaluation.samples of the run.',
    1,
)
_PROMPTS = flags.DEFINE_integer('prompts', 50, 'Scenes: prompts per category and side.', 1)
_IMAGES = flags.DEFINE_integer('images', 4, 'Scenes: images per prompt.', 1)
_QUESTIONS = flags.DEFINE_integer('questions', 50, 'Scenes: questions per kind.', 1)
_CONVERSATIONS = flags.DEFINE_integer(
    'conversations',
    200,
    'Scenes: edits, images with follow-up questions, riddles, redrawn images, and maps of each '
    'kind, as far as trained.',
    0,
)
_GUIDED = flags.DEFINE_bool('guidance', True, 'Guide generation as config.sampling says.')
_SOURCES = flags.DEFINE_string(
    'sources', None, 'Evaluate on these in place of data.sources of the run, as in --sources=emoji.'
)
_OUT = flags.DEFINE(
    cli.ANY_PATH, 'out', None, 'Folder for the table and the grid; the workdir by default.'
)
_SEED = flags.DEFINE_integer(
    'seed',
    None,
    "Seed of the noise and, except for scenes, of the choice of images. Default: the run's.",
    0,
)
_STEP = flags.DEFINE_integer(
    'checkpoint', None, 'Step of the checkpoint; the newest by default.', 0
)
_PLACEMENT, _SAMPLING = model_flags.placement(), model_flags.sampling()


def main(argv):
    del argv
    run = inspection.Inspector.load(_WORKDIR.value, _STEP.value, **_PLACEMENT(), **_SAMPLING())
    config = run.sampler.config
    if not _GUIDED.value:
        config.sampling.guidance_representation = config.sampling.guidance_pixels = 1.0
        config.sampling.guidance_text = config.sampling.guidance_image = 0.0
    if _SOURCES.value is not None:
        config.data.sources = _SOURCES.value
    data, samples = config.data, _SAMPLES.value or config.evaluation.samples
    seed = config.seed if _SEED.value is None else _SEED.value
    if not samples:
        raise UserError('evaluation.samples=0 of the run: give --samples')
    try:
        sources = source_list.build(data.sources, data.max_pixels)
    except UserError as error:
        if _SOURCES.value is not None:
            raise
        raise UserError(
            f'{error}. If the data was moved, change data.sources in {_WORKDIR.value}/config.json'
        ) from None
    with_images = source_list.with_images(sources, run.sampler.tokenizer, data)
    if not with_images:
        of = 'of the run' if _SOURCES.value is None else '(--sources)'
        raise UserError(f'data.sources={data.sources!r} {of} has no images')
    amount = scoring.Amount(
        _PROMPTS.value, _IMAGES.value, samples, _QUESTIONS.value, _CONVERSATIONS.value
    )
    out = paths.anywhere(_OUT.value or _WORKDIR.value, '--out')
    if _OUT.value:
        workdir.check_writable(out, flag='out')
    print(run_report.evaluate(run, with_images[0], out, samples, seed, amount))


if __name__ == '__main__':
    cli.run(main, required=['workdir'])
