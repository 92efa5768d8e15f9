"""The index of a shard: where each of its samples lies and what it needs of a row, in 16 bytes.

It is a file beside the shard, with .index appended to the shard's name: a header, one `SAMPLE` per
sample, and one `IMAGE` per image of a conversation. On a disk it is memory-mapped; from a bucket it
is read in one request.
"""

from dataclasses import dataclass, field

import numpy as np

from rf_jax.runtime import storage
from rf_jax.runtime.errors import UserError

SUFFIX = '.index'
BLOCK = 512  # bytes that offsets and lengths count, as in a tar file
MOST = 2**16 - 1  # largest value of a two-byte field

# offset, blocks: of its bytes in the shard, in blocks of 512 bytes. height, width: pixels of its
# image as shown. prompt: tokens of its longest caption. answer: of its longest caption or
# question and answer. images: how many.
# Of a conversation: height and width hold the number of its first image among the IMAGEs (`first`),
# prompt the tokens of all its text, with those of the chat format, before anything is truncated.
SAMPLE = np.dtype(
    [
        ('offset', '<u4'),
        ('blocks', '<u2'),
        ('height', '<u2'),
        ('width', '<u2'),
        ('prompt', '<u2'),
        ('answer', '<u2'),
        ('images', '<u2'),
    ]
)
IMAGE = np.dtype([('height', '<u2'), ('width', '<u2'), ('generated', '<u2')])
_HEADER = np.dtype(
    [
        ('magic', 'S8'),
        ('samples', '<u8'),
        ('images', '<u8'),
        ('shard_bytes', '<u8'),
        ('tokenizer', 'S32'),
    ]
)
_MAGIC = b'rf_jax 1'

assert SAMPLE.itemsize == 16
assert _HEADER.itemsize == 64


@dataclass(frozen=True)
class Index:
    """`samples`: SAMPLE[S]; `images`: IMAGE[M], only of conversations; `shard_bytes`: size of the
    shard; `tokenizer`: the first 32 digits of the checksum of the tokenizer that counted.
    """

    samples: np.ndarray
    shard_bytes: int
    tokenizer: str
    images: np.ndarray = field(default_factory=lambda: np.zeros(0, IMAGE))

    def __len__(self) -> int:
        return len(self.samples)

    def to_bytes(self) -> bytes:
        """The content of the file."""
        header = np.zeros((), _HEADER)
        header['magic'] = _MAGIC
        header['samples'], header['images'] = len(self.samples), len(self.images)
        header['shard_bytes'] = self.shard_bytes
        header['tokenizer'] = self.tokenizer[:32].encode()
        return header.tobytes() + self.samples.tobytes() + self.images.tobytes()


def path_of(shard: str) -> str:
    """The path of the index of a shard."""
    return f'{shard}{SUFFIX}'


def read(path: str, mapped: bool = True) -> Index:
    """The index in a file; from a disk its arrays are memory-mapped, if `mapped`.

    Raises UserError if it is not an index or is truncated, and as `storage.read`.
    """
    if mapped and storage.is_local(path):
        try:
            data = np.memmap(path, np.uint8, 'r')
        except ValueError:  # an empty file
            data = np.zeros(0, np.uint8)
        except OSError as error:
            raise UserError(f'the index {path} cannot be read: {error}') from None
    else:
        data = np.frombuffer(storage.read(path), np.uint8)
    if len(data) < _HEADER.itemsize or data[:8].tobytes() != _MAGIC:
        raise UserError(
            f'{path} is not the index of a shard, or is truncated; remove it and index again'
        )
    header = data[: _HEADER.itemsize].view(_HEADER)[0]
    samples = int(header['samples']) * SAMPLE.itemsize
    images = int(header['images']) * IMAGE.itemsize
    expected = _HEADER.itemsize + samples + images
    if len(data) != expected:
        raise UserError(
            f'{path} is truncated: {len(data):,} bytes, expected {expected:,} for '
            f'{int(header["samples"]):,} samples; remove it and index again'
        )
    body = data[_HEADER.itemsize :]
    return Index(
        body[:samples].view(SAMPLE),
        int(header['shard_bytes']),
        header['tokenizer'].decode(),
        body[samples:].view(IMAGE),
    )


def read_part(path: str, count: int, rows: slice, talks: bool) -> tuple[np.ndarray, np.ndarray]:
    """(SAMPLE[S], IMAGE[M]) of consecutive rows of an index of `count` samples, by two ranges.

    `talks`: they are conversations; otherwise M is 0. Raises as `storage.read_range`.
    """
    start, body = _HEADER.itemsize, _HEADER.itemsize + count * SAMPLE.itemsize
    samples = _range(path, start, SAMPLE, rows.start, rows.stop)
    if not talks or not len(samples):
        return samples, np.zeros(0, IMAGE)
    begin = int(first(samples[:1])[0])
    return samples, _range(path, body, IMAGE, begin, begin + int(samples['images'].sum(dtype=int)))


def _range(path: str, start: int, kind: np.dtype, begin: int, end: int) -> np.ndarray:
    size = kind.itemsize
    data = (
        storage.read_range(path, start + begin * size, (end - begin) * size) if end > begin else b''
    )
    return np.frombuffer(data, kind)


def first(samples: np.ndarray) -> np.ndarray:
    """int64[S]: the number of the first image of conversations SAMPLE[S]."""
    return samples['height'].astype(np.int64) << 16 | samples['width']


def set_first(samples: np.ndarray, numbers: np.ndarray) -> None:
    """Stores the numbers int64[S] of the first images of conversations SAMPLE[S]."""
    samples['height'], samples['width'] = numbers >> 16, numbers & MOST
