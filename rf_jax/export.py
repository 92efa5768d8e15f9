r"""Writes the weights of a run for other programs.

python -m rf_jax.export --workdir=runs/emoji --to=hf:exported
python -m rf_jax.export --workdir=runs/emoji --to=orbax:runs/start

hf: makes a folder with one folder that transformers opens for each part (`qwen3` or `qwen3_moe`,
`dinov3_vit` or `siglip2_vision_model`), and `rf_jax`, safetensors of the whole model by our own
names. orbax: makes the folder of a run without its optimizer, sharded over the devices here:
`rf_jax.sample` and `initialise_from` take it.
"""

from absl import flags, logging

from rf_jax.generation import weight_export
from rf_jax.runtime import checkpoint, cli, paths, storage
from rf_jax.runtime.errors import UserError, choose, require

_WORKDIR = flags.DEFINE(cli.ANY_PATH, 'workdir', None, 'Folder of the run.')
_TO = flags.DEFINE_string('to', None, 'hf: or orbax:, then a path that does not exist yet.')
_WEIGHTS = flags.DEFINE_enum(
    'weights',
    None,
    list(weight_export.WEIGHTS),
    'For hf: the averages (the default), which are what is evaluated, or the weights that training '
    'goes on with. orbax: has both.',
)
_CHECKPOINT = flags.DEFINE_integer(
    'checkpoint', None, 'Step of the checkpoint; the newest by default.', lower_bound=0
)


def main(_) -> None:
    run = paths.anywhere(_WORKDIR.value, '--workdir')
    kind, colon, name = _TO.value.partition(':')
    require(bool(colon), f'--to={_TO.value}: expected hf:FOLDER or orbax:FOLDER')
    write, folder = choose('--to', kind, weight_export.KINDS), paths.local(name, '--to')
    if not storage.exists(run / 'config.json'):
        raise UserError(f'--workdir={run} has no config.json; give the folder of a run')
    step = _CHECKPOINT.value
    step = checkpoint.latest(run / 'checkpoints')[0] if step is None else step
    require(checkpoint.has_step(run, step), f'--checkpoint={step}: {run} has no such checkpoint')
    with weight_export.new_folder(folder) as temporary:
        write(run, step, _WEIGHTS.value, temporary)
    logging.info('Step %d of %s is in %s', step, run, folder)


if __name__ == '__main__':
    cli.run(main, required=['workdir', 'to'])
