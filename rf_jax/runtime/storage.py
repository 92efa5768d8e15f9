"""Bytes of files on this machine, in gs:// and in s3:// buckets, by the same few functions.

TensorStore moves the bytes and tries again; epath, that is fsspec with gcsfs or s3fs, says what is
there. Orbax uses the same two. Credentials are those of the environment: Google's application
default credentials, and AWS_PROFILE, AWS_ACCESS_KEY_ID, ~/.aws or the role of the machine.
STORAGE_EMULATOR_HOST and AWS_ENDPOINT_URL name servers other than Google's and Amazon's.

All functions can be called from many threads. They raise FileNotFoundError for what is not there,
UserError for what the same command will meet again (no permission, no such bucket, a library that
is not installed), Unavailable once all tries have failed, and for local files OSError as usual.
"""

import errno
import functools
import os
import re
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import tensorstore
from etils import epath

from rf_jax.runtime.errors import Unavailable, UserError

BUCKET = re.compile(r'(gs|s3)://[^/]+')
TRIES = 9  # of TensorStore, with pauses between that double
ASKED = 3  # tries of a look at what is there: gcsfs and s3fs try again by themselves
FIRST_PAUSE = 0.5  # seconds; nine tries wait for 64 s in all
LAST_PAUSE = 16.0
STALLED = 30  # seconds without a byte after which a request counts as failed
LONGEST = 900.0  # seconds for one call, with all tries

T = TypeVar('T')


def is_local(path: str | os.PathLike) -> bool:
    """Whether a path is on this machine, not in a bucket."""
    return not BUCKET.match(os.fspath(path))


def read(path: str | os.PathLike) -> bytes:
    """The whole file."""
    if is_local(path):
        return Path(path).read_bytes()
    return _read(path, None)


def read_range(path: str | os.PathLike, offset: int, length: int) -> bytes:
    """Exactly `length` bytes from `offset`; UserError if the file ends before."""
    if not length:
        return b''
    if is_local(path):
        with open(path, 'rb') as file:
            data = os.pread(file.fileno(), length, offset)
            while 0 < len(data) < length:  # Linux reads 2 GiB at a time at most
                more = os.pread(file.fileno(), length - len(data), offset + len(data))
                if not more:
                    break
                data += more
    else:
        data = _read(path, slice(offset, offset + length))
    if len(data) != length:
        raise _too_short(path, offset + length)
    return data


def size(path: str | os.PathLike) -> int:
    """Bytes of a file."""
    if is_local(path):
        return os.stat(path).st_size
    return _patiently(path, lambda: located(path).stat().length)


def write(path: str | os.PathLike, data: bytes) -> None:
    """Writes a file that others see whole or not at all; makes its folder."""
    if not is_local(path):
        bucket, key = _split(path)
        _result(path, lambda: bucket.write(key, bytes(data)))
        return
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Processes on two hosts may have the same pid.
    temporary = path.with_name(f'.{path.name}.{secrets.token_hex(6)}.tmp')
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def exists(path: str | os.PathLike) -> bool:
    """Whether there is a file or a folder. A bucket's folder exists while it has files."""
    if is_local(path):
        return os.path.exists(path)
    try:
        _patiently(path, lambda: located(path).stat())
    except FileNotFoundError:
        return False
    return True


def names(folder: str | os.PathLike) -> list[str]:
    """Sorted names of the files and folders in a folder; [] if it does not exist, as a bucket
    cannot tell that from an empty one.
    """
    try:
        if is_local(folder):
            return sorted(os.listdir(folder))
        found = _patiently(folder, lambda: [path.name for path in located(folder).iterdir()])
    except FileNotFoundError:
        return []
    own = located(folder).name  # some programs write an empty object as a mark of the folder
    return sorted(set(found) - {'', own}) if own in found else sorted(found)


def located(path: str | os.PathLike) -> epath.Path:
    """The path as one of epath, which must not be made otherwise: this sets up its libraries."""
    if not is_local(path):
        _prepare()
    return epath.Path(path)


@functools.cache
def _prepare() -> None:
    """Sets what the libraries read when they connect for the first time."""
    os.environ.setdefault(
        'GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT', 'false'
    )  # asks for each bucket's kind
    try:
        import fsspec
        import gcsfs  # noqa: F401
        import s3fs  # noqa: F401
    except ImportError as error:
        raise UserError(
            f'gs:// and s3:// need {error.name}, which is not installed: '
            "pip install 'rf_jax[buckets]'"
        ) from None
    os.environ['EPATH_USE_TF'] = 'false'  # else TensorFlow, where installed, which has no s3://
    for name in ('gs', 'gcs', 's3'):  # other processes write there too
        fsspec.config.conf.setdefault(name, {})['use_listings_cache'] = False
    emulator = os.environ.get('STORAGE_EMULATOR_HOST', '')
    if emulator:
        url = emulator if '://' in emulator else f'http://{emulator}'
        os.environ.setdefault('TENSORSTORE_GCS_HTTP_URL', url)
    os.environ.setdefault('TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS', str(STALLED))
    os.environ.setdefault('TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES', '1')


def kvstore(path: str | os.PathLike) -> dict:
    """TensorStore's specification of a folder or file in a bucket."""
    _prepare()
    scheme, _, rest = os.fspath(path).partition('://')
    bucket, _, key = rest.partition('/')
    retries = {
        'max_retries': TRIES - 1,
        'initial_delay': f'{FIRST_PAUSE}s',
        'max_delay': f'{LAST_PAUSE}s',
    }
    if scheme == 'gs':
        return {'driver': 'gcs', 'bucket': bucket, 'path': key, 'gcs_request_retries': retries}
    spec = {'driver': 's3', 'bucket': bucket, 'path': key, 's3_request_retries': retries}
    given = os.environ.get
    region = given('AWS_REGION') or given('AWS_DEFAULT_REGION')
    if endpoint := given('AWS_ENDPOINT_URL_S3') or given('AWS_ENDPOINT_URL'):
        spec |= {'endpoint': endpoint, 'aws_region': region or 'us-east-1'}
    elif region:
        spec |= {'aws_region': region}
    return spec


@functools.cache
def _bucket(name: str) -> tensorstore.KvStore:
    return tensorstore.KvStore.open(kvstore(f'{name}/')).result()


def _split(path: str | os.PathLike) -> tuple[tensorstore.KvStore, str]:
    """The bucket, and the name of the object there."""
    text = os.fspath(path)
    name = BUCKET.match(text)[0]
    return _bucket(name), text[len(name) + 1 :]


def _read(path: str | os.PathLike, part: slice | None) -> bytes:
    bucket, key = _split(path)
    found = _result(path, lambda: bucket.read(key, byte_range=part))
    if found.state != 'value':
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(path))
    return found.value


def _result(path: str | os.PathLike, start: Callable[[], tensorstore.Future]):
    """The result of a request of TensorStore, which has tried again by itself."""
    try:
        return start().result(timeout=LONGEST)
    except TimeoutError:
        raise Unavailable(f'{path}: no answer within {LONGEST:.0f} s') from None
    except (ValueError, OSError) as error:  # TensorStore raises ValueError for every status
        status, reason = str(error).partition(':')[0], short(error)
        if status == 'OUT_OF_RANGE':
            raise _too_short(path, None) from None
        if status == 'PERMISSION_DENIED':
            raise _refused(path, reason) from None
        if status == 'NOT_FOUND':
            raise UserError(f'{path}: there is no such bucket ({reason})') from None
        raise _gave_up(path, reason) from None


def _patiently(path: str | os.PathLike, ask: Callable[[], T]) -> T:
    """What `ask` returns, tried again while the server or the connection fails."""
    pause = FIRST_PAUSE
    for left in reversed(range(ASKED)):
        try:
            return ask()
        except FileNotFoundError:
            raise
        except PermissionError as error:
            raise _refused(path, short(error)) from None
        except Exception as error:  # fsspec's libraries have many types
            if _is_refusal(error):
                raise _refused(path, short(error)) from None
            if not left:
                raise _gave_up(path, short(error)) from None
        time.sleep(pause)
        pause = min(2 * pause, LAST_PAUSE)


def _is_refusal(error: Exception) -> bool:
    """Whether an error of gcsfs or s3fs says that credentials are missing or not enough."""
    code = str(getattr(error, 'code', ''))
    text = f'{type(error).__name__} {error}'
    return code in ('401', '403') or any(x in text for x in ('Forbidden', 'NoCredentials'))


def short(error: BaseException) -> str:
    """The first line of an error, without the body of the server's answer."""
    line = re.split(r' \[(?:http|curl|source|tensorstore)|\n', str(error).strip())[0]
    return line[:200] or type(error).__name__


def _refused(path, reason: str) -> UserError:
    return UserError(
        f'{path}: the bucket gives no permission ({reason}); check the credentials of this '
        'machine and their role there (launch/README.md#buckets)'
    )


def _gave_up(path, reason: str) -> Unavailable:
    return Unavailable(f'{path}: the bucket cannot be reached, tried again and again: {reason}')


def _too_short(path, end: int | None) -> UserError:
    wanted = 'the bytes asked for' if end is None else f'byte {end:,}'
    return UserError(f'{path} ends before {wanted}: it is truncated, or not the file meant')
