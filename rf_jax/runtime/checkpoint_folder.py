"""Where the checkpoints of a run are: on a disk, or in a bucket, where a folder cannot be renamed.

In a bucket Orbax writes to the folder of the step at once, and `commit_success.txt` there last: a
checkpoint without it is unfinished, and nothing reads it.
"""

import os
import secrets
from collections.abc import Iterable, Iterator

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers as policies

from rf_jax.runtime import buckets, distributed, paths, storage
from rf_jax.runtime.errors import Unavailable, UserError

COMMIT_FILE = 'commit_success.txt'  # Orbax's name
# Seconds for one save, at the end of which it fails however far it is. Orbax's own 1,200 are too
# few for 70 GB at 50 MB/s.
SAVE_TIMEOUT = 7200


def of(directory: str | os.PathLike) -> epath.Path:
    """The folder in the form that Orbax takes: from the root, or in a bucket. Raises UserError."""
    found = paths.anywhere(directory, 'directory')
    if storage.is_local(found):
        return epath.Path(found).resolve()
    if os.fspath(found).startswith('s3://'):
        _teach_s3()
    return found


def steps(directory: str | os.PathLike) -> list[int]:
    """Steps of the finished checkpoints in a folder, damaged or not, in order."""
    return sorted(newest_first(directory))


def newest_first(directory: str | os.PathLike) -> Iterator[int]:
    """`steps` from the last on, each looked at when it is asked for."""
    return (step for step in reversed(_folders(directory)) if _finished(directory, step))


def newest(directory: str | os.PathLike) -> int:
    """The last of `steps`, or -1, without a look at the others."""
    return next(newest_first(directory), -1)


def has(directory: str | os.PathLike, step: int) -> bool:
    """Whether `step` is one of `steps`, without a look at the others. Raises UserError if the
    folder cannot be read.
    """
    try:
        return step in _folders(directory) and _finished(directory, step)
    except OSError as error:  # of this machine
        raise UserError(f'{directory} cannot be read: {error.strerror}') from None


def agreed_steps(directory: str | os.PathLike, found: Iterable[int]) -> list[int]:
    """The steps that this process has found, from the last on. All processes must call it.

    Raises Unavailable if another one has found others, as a file system may show a host an older
    listing: each would restore another step, which makes one state of two.
    """
    order = sorted(found, reverse=True)
    shown = f'the steps {", ".join(map(str, order)) or "none"}'
    distributed.check_same(shown, f'the listing of {directory}', Unavailable)
    return order


def _folders(directory: str | os.PathLike) -> list[int]:
    return sorted(int(name) for name in storage.names(directory) if name.isdecimal())


def _finished(directory: str | os.PathLike, step: int) -> bool:
    folder = f'{os.fspath(directory)}/{step}'
    return storage.is_local(folder) or storage.exists(f'{folder}/{COMMIT_FILE}')


def discard(directory: epath.Path, step: int) -> None:
    """Removes what a failed save of a step has left. Raises OSError, for a bucket UserError."""
    if storage.is_local(directory):
        for folder in directory.glob(f'{step}.orbax-checkpoint-tmp*'):
            folder.rmtree()
    elif not _finished(directory, step):
        storage.delete_folder(directory / str(step))


def rename(folder: epath.Path, other: epath.Path) -> None:
    """Gives a checkpoint another name. In a bucket its files are copied there, then deleted: it
    stays complete under the old name until it is complete under the new one.
    """
    if storage.is_local(folder):
        folder.rename(other)
    else:
        storage.copy_within_bucket(folder, other)
        storage.delete_folder(folder)


def take_over(directory: epath.Path) -> 'Claim':
    """Claims the folder and, in a bucket and in process 0, removes unfinished checkpoints.

    Raises UserError if the bucket does not permit what Orbax asks for.
    """
    main = jax.process_index() == 0
    if main and os.fspath(directory).startswith('gs://'):
        _check_metadata(directory)
    claim = Claim(directory)
    if main and not storage.is_local(directory):
        for step in _folders(directory):
            discard(directory, step)
    return claim


def _check_metadata(directory: epath.Path) -> None:
    """Asks for the bucket's own metadata, as Orbax does whenever it lists checkpoints."""
    from google.api_core.exceptions import Forbidden, Unauthorized
    from google.cloud import storage as google

    name = buckets.ADDRESS.match(os.fspath(directory))[0]
    try:
        google.Client().get_bucket(name.removeprefix('gs://'))
    except Exception as error:  # as many types as for fsspec
        text = f'{name}: Orbax cannot read its metadata ({buckets.first_line(error)})'
        if isinstance(error, Forbidden | Unauthorized):
            role = 'storage.buckets.get, as in roles/storage.legacyBucketReader'
            raise UserError(f'{text}; give this account {role}') from None
        if 'Project was not passed' in str(error):
            raise UserError(f'{text}; set GOOGLE_CLOUD_PROJECT') from None
        raise Unavailable(text) from None


def open_manager(
    directory: epath.Path, every: int, keep: int, keep_period: int
) -> ocp.CheckpointManager:
    """Orbax's manager, as `checkpoint.Checkpoints` takes these numbers.

    Raises Unavailable if a bucket fails; tries only once, since in there processes wait for one
    another.
    """
    kept, due = [policies.LatestN(keep)], [policies.FixedIntervalPolicy(every)]
    if keep_period:
        kept.append(policies.EveryNSteps(keep_period))
        due.append(policies.FixedIntervalPolicy(keep_period))
    options = ocp.CheckpointManagerOptions(
        save_decision_policy=policies.AnySavePolicy(due),
        preservation_policy=policies.AnyPreservationPolicy(kept),
        # Of a bucket, `take_over` has: Orbax would raise one failure again at every save.
        cleanup_tmp_directories=storage.is_local(directory),
        async_options=ocp.AsyncOptions(timeout_secs=SAVE_TIMEOUT),
    )
    try:
        return ocp.CheckpointManager(directory, options=options)
    except Exception as error:  # as many types as for fsspec
        if storage.is_local(directory):
            raise
        text = f'{directory}: Orbax cannot open it ({buckets.first_line(error)})'
        raise Unavailable(text) from None


class Claim:
    """Ends a run in a bucket once another process trains there.

    Buckets have no locks that end with a process, and a run that was lost must resume at once. So
    the newest process owns the checkpoints, and an older one finds out before it writes another.
    """

    def __init__(self, directory: epath.Path):
        """Owns the folder from now on, if it is in a bucket; process 0 does it for all."""
        writes = jax.process_index() == 0 and not storage.is_local(directory)
        self._file = f'{directory}.owner' if writes else None
        self._own = secrets.token_hex(16).encode()
        if self._file:
            storage.write(self._file, self._own)

    def check(self) -> None:
        """Raises UserError if another process owns the folder now."""
        if not self._file:
            return
        try:
            owner = storage.read(self._file)
        except (FileNotFoundError, UserError):  # deleted, or a save that fails too and is logged
            return
        if owner != self._own:
            raise UserError(
                f'another process has begun to train in {os.path.dirname(self._file)}, from its '
                'newest checkpoint: this one stops and saves nothing more. Two runs need two '
                'folders (--workdir)'
            )


def _teach_s3() -> None:
    """Lets Orbax write to s3:// as to gs://, the only bucket that its arrays know (0.12).

    All the rest is there: epath lists both, TensorStore reads and writes both. So these functions
    of Orbax answer for both: what is a bucket, and how TensorStore opens it.
    """
    from orbax.checkpoint._src.path import gcs_utils
    from orbax.checkpoint._src.serialization import tensorstore_utils

    if getattr(gcs_utils, '_rf_jax_s3', False):
        return
    needed = {gcs_utils: ('_GCS_PATH_PREFIX', 'get_kvstore_for_gcs'),
              tensorstore_utils: ('_use_gcs_driver', '_normalize_path')}  # fmt: skip
    if not all(hasattr(module, name) for module, names in needed.items() for name in names):
        raise UserError(
            f'checkpoints cannot be written to s3:// with orbax-checkpoint {ocp.__version__}, '
            'which knows gs:// only; use gs://, a file system, or orbax-checkpoint 0.12'
        )
    of_gcs, schemes = gcs_utils.get_kvstore_for_gcs, ('gs://', 's3://')
    normalize = tensorstore_utils._normalize_path

    def kvstore(path: str) -> dict:
        return buckets.kvstore(path) if path.startswith('s3://') else of_gcs(path)

    gcs_utils.get_kvstore_for_gcs = kvstore
    gcs_utils._GCS_PATH_PREFIX = schemes
    tensorstore_utils._use_gcs_driver = lambda path: path.startswith(schemes)
    tensorstore_utils._normalize_path = lambda path: normalize(path).replace('s3:/', 's3://')
    gcs_utils._rf_jax_s3 = True
