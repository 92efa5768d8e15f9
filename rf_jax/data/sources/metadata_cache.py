"""Sizes and texts of a whole data set, cached beside it for the next start.

Reading through a large data set takes hours, and without a cache every process would do it at every
start.
"""

import contextlib
import gzip
import hashlib
import io
import json
import secrets
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from absl import logging
from etils import epath

FORMAT = 2  # increase it when captions are cleaned or sizes are read in another way
_THREADS = 16  # they wait for the disk
_LOG_EVERY = 10.0  # seconds between progress lines
_MIN_COUNT = 2**12  # smaller sets are read each time, which is faster than caching them
_BLOCK = 2**14  # examples that are queued at a time
# Examples per line of the file: the JSON parser holds the interpreter lock until it is done, and a
# process whose heartbeat is delayed too long counts as lost (runtime/heartbeat.py).
_LINE = 2**8

# Captions; (height, width), or the error. Of a conversation: its JSON; each image's size or error.
Metadata = tuple[tuple[str, ...], tuple | str]


def cached_scan(
    name: str, key: str, folder: str, count: int, read: Callable[[int], Metadata]
) -> list[Metadata]:
    """`read(i)` for i in 0 .. count - 1, from the cache in `folder` if an earlier scan left one.

    `key` describes everything that the result depends on; `name` is for the log. If the folder is
    not writable, a warning is logged and the next start scans again.
    """
    if count < _MIN_COUNT:
        return _read_all(name, count, read)
    key = f'format {FORMAT} of {count} examples of {key}'
    digest = hashlib.blake2b(key.encode(), digest_size=8).hexdigest()
    path = epath.Path(folder) / f'rf_jax.{digest}.jsonl.gz'
    cached = _load(path, key)
    if cached is not None:
        logging.info('%s: sizes and texts read from the cache %s', name, path)
        return cached
    found = _read_all(name, count, read)
    _save(path, key, found)
    return found


def _load(path: epath.Path, key: str) -> list[Metadata] | None:
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(path.read_bytes())) as lines:
            if json.loads(next(lines)) != key:
                return None
            return [
                (tuple(captions), size if isinstance(size, str) else tuple(size))
                for line in lines
                for captions, size in json.loads(line)
            ]
    except FileNotFoundError:
        return None
    except (OSError, EOFError, zlib.error, ValueError, TypeError, StopIteration) as error:
        logging.warning('%s cannot be read (%s); scanning the data set again', path, error)
        return None


def _save(path: epath.Path, key: str, found: list[Metadata]) -> None:
    content = io.BytesIO()
    with gzip.GzipFile(fileobj=content, mode='wb', compresslevel=5) as file:
        file.writelines(_lines(key, found))
    # Atomic, even if several processes write the same file.
    temporary = path.with_name(f'{path.name}.{secrets.token_hex(6)}.tmp')
    try:
        temporary.write_bytes(content.getvalue())
        temporary.replace(path)
    except Exception as error:  # storage backends raise errors of their own
        with contextlib.suppress(Exception):
            temporary.unlink(missing_ok=True)
        logging.warning(
            '%s cannot be written (%s): every start will scan the whole data set', path, error
        )


def _lines(key: str, found: list[Metadata]) -> Iterator[bytes]:
    """JSON: the key, then _LINE examples per line."""
    yield json.dumps(key).encode() + b'\n'
    for start in range(0, len(found), _LINE):
        yield json.dumps(found[start : start + _LINE]).encode() + b'\n'


def _read_all(name: str, count: int, read: Callable[[int], Metadata]) -> list[Metadata]:
    found: list[Metadata] = []
    began = logged = time.monotonic()
    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, count, _BLOCK):
            for each in pool.map(read, range(start, min(start + _BLOCK, count))):
                found.append(each)
                now = time.monotonic()
                if now - logged > _LOG_EVERY:
                    logged, left = now, (now - began) / len(found) * (count - len(found))
                    done = len(found), count, left
                    logging.info('%s: read %d of %d examples, ETA %.0f s', name, *done)
    return found
