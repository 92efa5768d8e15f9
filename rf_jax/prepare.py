r"""Makes a prepared set of pictures and text that training reads from disks or buckets.

python -m rf_jax.prepare --source=webdataset:/data/laion --out=/data/set --size=288
python -m rf_jax.prepare --source='parquet:/data/*.parquet' --out=gs://bucket/set --size=1024 \
    --tokenizer=/models/Qwen3-0.6B --runner=DataflowRunner --project=... --region=...

Leaves out what cannot be used, resizes and re-encodes, counts tokens, shuffles, and writes shards,
`set.json` last. The same command resumes where it was interrupted. Flags that are not named below
are Beam's.
"""

import contextlib
import os

from absl import flags, logging

from rf_jax.data import resizing
from rf_jax.data.tokenizer import load_tokenizer
from rf_jax.runtime import cli, environment, storage, workdir
from rf_jax.runtime.errors import Unavailable, UserError

_SOURCE = flags.DEFINE_string(
    'source',
    None,
    'What to read: a comma-separated list of webdataset:PATH, parquet:PATH (also in a bucket), '
    'folder:PATH, tfds:NAME.',
)
_OUT = flags.DEFINE(cli.ANY_PATH, 'out', None, 'Folder of the set, also in a bucket.')
_SIZE = flags.DEFINE_integer(
    'size', None, 'Longest side of an image in pixels: the largest of data.sizes.', lower_bound=1
)
_TOKENIZER = flags.DEFINE_string(
    'tokenizer', '', 'As tokenizer.path; by default one is trained on the texts.'
)
_VOCABULARY = flags.DEFINE_integer(
    'vocabulary', 8192, 'Most tokens of a tokenizer that is trained.', lower_bound=1
)
_ENCODING = flags.DEFINE_enum('encoding', 'jpeg', ['jpeg', 'webp'], 'Of images, at quality 95.')
_RESIZER = flags.DEFINE_enum(
    'resizer', 'pillow', list(resizing.BY_NAME), 'As data.resizer; simd halves the time.'
)
_SHARD_MEGABYTES = flags.DEFINE_integer(
    'shard_megabytes', 1024, 'Size of a shard, about.', lower_bound=1
)
_SEED = flags.DEFINE_integer('seed', 0, 'Of the order of the samples.', lower_bound=0)
_WORKERS = flags.DEFINE_integer(
    'workers', environment.cores(), 'Processes on this machine.', lower_bound=1
)


def main(argv) -> None:
    logging.set_verbosity(logging.ERROR)  # Beam warns of Google's libraries that are not there
    try:
        from rf_jax.preparation import preparing, source_flag
        from rf_jax.preparation.beam_run import Runner
        from rf_jax.preparation.settings import Settings
    except ImportError as error:
        raise UserError(f"{error.name} is not installed: pip install 'rf_jax[prepare]'") from None
    logging.set_verbosity(logging.INFO)
    out = _OUT.value.rstrip('/')
    out = os.path.abspath(out) if storage.is_local(out) else out
    resizing.named(_RESIZER.value)  # is it installed?
    given = load_tokenizer(_TOKENIZER.value) if _TOKENIZER.value else None
    settings = Settings(
        source_flag.with_absolute_paths(_SOURCE.value),
        _SIZE.value,
        _ENCODING.value,
        given.checksum if given else f'trained, vocabulary={_VOCABULARY.value}',
        _SHARD_MEGABYTES.value,
        _SEED.value,
        _RESIZER.value,
    )
    runner = Runner(argv[1:], _WORKERS.value)
    with _lock(out):
        found = preparing.prepare(settings, out, given, _VOCABULARY.value, runner)
    logging.info('%s: %s', out, preparing.summary(found))


def _lock(out: str) -> contextlib.AbstractContextManager:
    """Held against other processes of this machine, or of all that share the disk of `out`. A
    bucket has no locks: of two machines, the one that ends first removes the work of both, and the
    other fails; the set is whole then.
    """
    from rf_jax.preparation import files

    if storage.is_local(out):
        workdir.check_writable(out, 'out')
    lock = workdir.lock(files.temporary_folder(out))
    if lock is None:
        raise Unavailable(f'another process prepares {out}: wait until it ends, or stop it')
    return lock


if __name__ == '__main__':
    cli.run(main, required=['source', 'out', 'size'], others=True)
