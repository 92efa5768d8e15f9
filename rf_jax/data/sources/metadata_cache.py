"""What reading a whole data set told of its examples, kept beside it for the next start.

A set of many pictures takes hours to be read through, and without this every process of every
start would.
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

FORMAT = 2  # raise it where captions are cleaned or sizes are read otherwise
_THREADS = 16  # they wait for the disk
_EVERY = 10.0  # seconds between lines of progress
_SHORT = 2**12  # examples that are read anew each time: sooner done than written
_BLOCK = 2**14  # examples that wait for their turn at a time
# Examples of a line of the file: the JSON parser keeps the interpreter to itself until it is done,
# and a process whose heartbeat waits for it too long counts as lost (runtime/heartbeat.py).
_LINE = 2**8

Found = tuple[tuple[str, ...], tuple[int, int] | str]  # captions; (height, width), or what is wrong


def survey(
    name: str, of: str, folder: str, count: int, read: Callable[[int], Found]
) -> list[Found]:
    """`read(i)` for i in 0 .. count - 1, or what an earlier survey in `folder` kept `of` the same.

    `of` says all that the answer follows from; `name` is for the log. A folder that cannot be
    written is told, and surveyed again at the next start.
    """
    if count < _SHORT:
        return _read_all(name, count, read)
    of = f'format {FORMAT} of {count} examples of {of}'
    digest = hashlib.blake2b(of.encode(), digest_size=8).hexdigest()
    path = epath.Path(folder) / f'rf_jax.{digest}.jsonl.gz'
    kept = _load(path, of)
    if kept is not None:
        logging.info('%s: sizes and captions are taken from %s', name, path)
        return kept
    found = _read_all(name, count, read)
    _keep(path, of, found)
    return found


def _load(path: epath.Path, of: str) -> list[Found] | None:
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(path.read_bytes())) as lines:
            if json.loads(next(lines)) != of:
                return None
            return [
                (tuple(captions), size if isinstance(size, str) else tuple(size))
                for line in lines
                for captions, size in json.loads(line)
            ]
    except FileNotFoundError:
        return None
    except (OSError, EOFError, zlib.error, ValueError, TypeError, StopIteration) as error:
        logging.warning('%s cannot be read (%s); the set is read again', path, error)
        return None


def _keep(path: epath.Path, of: str, found: list[Found]) -> None:
    content = io.BytesIO()
    with gzip.GzipFile(fileobj=content, mode='wb', compresslevel=5) as file:
        file.writelines(_lines(of, found))
    # Whole or not at all, whoever else writes the same.
    temporary = path.with_name(f'{path.name}.{secrets.token_hex(6)}.tmp')
    try:
        temporary.write_bytes(content.getvalue())
        temporary.replace(path)
    except Exception as error:  # a bucket's own kinds too
        with contextlib.suppress(Exception):
            temporary.unlink(missing_ok=True)
        logging.warning('%s cannot be kept (%s): each start reads the whole set', path, error)


def _lines(of: str, found: list[Found]) -> Iterator[bytes]:
    """JSON: what the survey is of, then _LINE examples a line."""
    yield json.dumps(of).encode() + b'\n'
    for start in range(0, len(found), _LINE):
        yield json.dumps(found[start : start + _LINE]).encode() + b'\n'


def _read_all(name: str, count: int, read: Callable[[int], Found]) -> list[Found]:
    found: list[Found] = []
    began = told = time.monotonic()
    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, count, _BLOCK):
            for each in pool.map(read, range(start, min(start + _BLOCK, count))):
                found.append(each)
                now = time.monotonic()
                if now - told > _EVERY:
                    told, left = now, (now - began) / len(found) * (count - len(found))
                    done = len(found), count, left
                    logging.info('%s: read %d of %d examples, ETA %.0f s', name, *done)
    return found
