"""The libraries that talk to gs:// and s3:// buckets: one set-up, retries, and our own errors.

TensorStore moves bytes, fsspec says what is there, with gcsfs or s3fs: the two that Orbax uses.
Credentials are those of the environment: application default credentials of Google; AWS_PROFILE,
AWS_ACCESS_KEY_ID, ~/.aws or the role of the machine for S3. STORAGE_EMULATOR_HOST and
AWS_ENDPOINT_URL name other servers.
"""

import functools
import os
import re
import time
from collections.abc import Callable
from logging import CRITICAL, getLogger
from typing import Any, TypeVar

from rf_jax.runtime.errors import Unavailable, UserError

ADDRESS = re.compile(r'(gs|s3)://[^/]+')
TRIES = 9  # of TensorStore, with pauses between that double
LIST_ATTEMPTS = 3  # of a listing or stat; gcsfs and s3fs also retry by themselves
FIRST_PAUSE = 0.5  # seconds; nine tries wait for 64 s in all
LAST_PAUSE = 16.0
STALL_TIMEOUT = 30  # seconds without a byte after which a request counts as failed
CALL_TIMEOUT = 900.0  # seconds for one call, with all tries
MISSING = b'\x02'  # TensorStore's generation of an object that is not there

T = TypeVar('T')


@functools.cache
def prepare() -> None:
    """Sets what the libraries read when they connect for the first time."""
    os.environ.setdefault('GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT', 'false')  # it asks before each call
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
    getLogger('gcsfs').setLevel(CRITICAL)  # it logs a traceback of every error that it raises
    emulator = os.environ.get('STORAGE_EMULATOR_HOST', '')
    if emulator:
        url = emulator if '://' in emulator else f'http://{emulator}'
        os.environ.setdefault('TENSORSTORE_GCS_HTTP_URL', url)
    os.environ.setdefault('TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS', str(STALL_TIMEOUT))
    os.environ.setdefault('TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES', '1')


def kvstore(path: str | os.PathLike) -> dict:
    """TensorStore's specification of a folder or file in a bucket."""
    prepare()
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
    if given('AWS_ACCESS_KEY_ID'):  # else TensorStore logs what other credentials are missing
        spec |= {'aws_credentials': {'type': 'environment'}}
    region = given('AWS_REGION') or given('AWS_DEFAULT_REGION')
    if endpoint := given('AWS_ENDPOINT_URL_S3') or given('AWS_ENDPOINT_URL'):
        spec |= {'endpoint': endpoint, 'aws_region': region or 'us-east-1'}
    elif region:
        spec |= {'aws_region': region}
    return spec


@functools.cache
def store(name: str) -> Any:
    """TensorStore's key-value store of gs://bucket or s3://bucket."""
    import tensorstore  # only where a bucket is used

    return tensorstore.KvStore.open(kvstore(f'{name}/')).result()


def file_system(folder: str | os.PathLike) -> tuple[Any, str]:
    """(fsspec's file system of a bucket, the folder there)"""
    prepare()
    import fsspec

    return fsspec.url_to_fs(os.fspath(folder))


def result(path: str | os.PathLike, start: Callable[[], Any]) -> Any:
    """The result of a request of TensorStore, which has tried again by itself."""
    try:
        return start().result(timeout=CALL_TIMEOUT)
    except TimeoutError:
        raise Unavailable(f'{path}: no answer within {CALL_TIMEOUT:.0f} s') from None
    except (ValueError, OSError) as error:  # TensorStore raises ValueError for every status
        status, reason = str(error).partition(':')[0], first_line(error)
        if status == 'OUT_OF_RANGE':
            raise too_short(path, None) from None
        if status == 'PERMISSION_DENIED':
            raise _refused(path, reason) from None
        if status == 'NOT_FOUND':
            raise UserError(f'{path}: there is no such bucket ({reason})') from None
        raise _gave_up(path, TRIES, reason) from None


def with_retries(path: str | os.PathLike, ask: Callable[[], T]) -> T:
    """What `ask` returns, tried again while the server or the connection fails."""
    pause = FIRST_PAUSE
    for left in reversed(range(LIST_ATTEMPTS)):
        try:
            return ask()
        except FileNotFoundError:
            raise
        except PermissionError as error:
            raise _refused(path, first_line(error)) from None
        except Exception as error:  # fsspec's libraries have many types
            if _is_refusal(error):
                raise _refused(path, first_line(error)) from None
            if not left:
                raise _gave_up(path, LIST_ATTEMPTS, first_line(error)) from None
        time.sleep(pause)
        pause = min(2 * pause, LAST_PAUSE)


def _is_refusal(error: Exception) -> bool:
    """Whether an error of gcsfs or s3fs says that credentials are missing or not enough."""
    code = str(getattr(error, 'code', ''))
    text = f'{type(error).__name__} {error}'
    words = ('Forbidden', 'Unauthorized', 'NoCredentials')
    return code in ('401', '403') or any(word in text for word in words)


def first_line(error: BaseException) -> str:
    """The first line of an error, without the body of the server's answer."""
    line = re.split(r' \[(?:http|curl|source|tensorstore)|\n', str(error).strip())[0]
    return line[:200] or type(error).__name__


def _refused(path, reason: str) -> UserError:
    return UserError(
        f'{path}: permission denied ({reason}); check the credentials of this '
        'machine and their role there (docs/usage.md#buckets)'
    )


def _gave_up(path, attempts: int, reason: str) -> Unavailable:
    return Unavailable(f'{path}: unreachable after {attempts} attempts: {reason}')


def too_short(path, end: int | None) -> UserError:
    wanted = 'the bytes asked for' if end is None else f'byte {end:,}'
    return UserError(f'{path} ends before {wanted}: it is truncated, or not the file meant')
