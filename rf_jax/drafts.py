"""Writes a model's own drafts, judged and corrected, as conversations to train on.

python -m rf_jax.drafts --workdir=runs/redraw --out=drafts --count=2000
python -m rf_jax.train --config=configs/posttraining/think.py:redraw --workdir=runs/again \\
    --config.initialise_from=runs/redraw \\
    --config.data.sources=scenes:aligned/48/critique,folder:drafts
"""

from pathlib import Path

from absl import flags

from rf_jax.data import source_list
from rf_jax.evaluation import scoring, thinking
from rf_jax.generation.sampler import Sampler
from rf_jax.runtime import cli, model_flags, workdir
from rf_jax.runtime.errors import UserError, require

_WORKDIR = flags.DEFINE(cli.ANY_PATH, 'workdir', None, 'Folder of a run on scenes.')
_OUT = flags.DEFINE(cli.PATH, 'out', None, 'Folder of the conversations and images; a new one.')
_COUNT = flags.DEFINE_integer('count', 1000, 'Drafts, one of each of so many scenes.', 1)
_SEED = flags.DEFINE_integer('seed', 0, 'Another seed gives other prompts and drafts.', 0)
_STEP = flags.DEFINE_integer(
    'checkpoint', None, 'Step of the checkpoint; the newest by default.', 0
)
_PLACEMENT, _SAMPLING = model_flags.placement(), model_flags.sampling()


def main(argv):
    del argv
    out = Path(_OUT.value)
    require(
        not (out / 'conversations.jsonl').exists(),
        f'--out={out} has conversations.jsonl already: give a new folder',
    )
    sampler = Sampler.load(_WORKDIR.value, _STEP.value, **_PLACEMENT(), **_SAMPLING())
    data = sampler.config.data
    if not scoring.trains_on_scenes(sampler.config):
        raise UserError(f'data.sources={data.sources!r} of the run has no scenes to draw')
    source = next(s for s in source_list.build(data.sources, data.max_pixels) if s.procedural)
    workdir.check_writable(out, flag='out')
    count = min(_COUNT.value, len(source))
    right = thinking.write_drafts(sampler, source, count, out, _SEED.value)
    print(f'{count} drafts, {right} of them right: {out}')


if __name__ == '__main__':
    cli.run(main, required=['workdir', 'out'])
