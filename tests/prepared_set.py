"""Sets in the format of `rf_jax.prepare`, made of a few samples by hand."""

import hashlib
import io

import numpy as np
from PIL import Image

from rf_jax.data.messages import ImagePart, Message, TextPart
from rf_jax.data.sentencepiece_tokenizer import SentencePieceTokenizer
from rf_jax.data.shards import index, sample, set_file, tar
from rf_jax.data.shards.building import IndexBuilder
from rf_jax.data.shards.sample import Sample

WORDS = ('a grey cat on a red sofa', 'two dogs', 'a very long street full of people in the rain')


def tokenizer():
    return SentencePieceTokenizer.train(list(WORDS) * 20, 300)


def png(height, width, value=0):
    file = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), value % 256, np.uint8)).save(file, 'PNG')
    return file.getvalue()


def captioned(number):
    """A sample and the sizes of its images; the caption ends with its number."""
    height, width = 16 + 16 * (number % 3), 32
    captions = tuple(f'{words} {number}' for words in WORDS[: 1 + number % 3])
    questions = (('which colour is it?', 'grey'),) if number % 2 else ()
    found = Sample(f's{number}', (png(height, width, number),), captions, (), '', questions)
    return found, [(height, width)]


def talk(number):
    count = 1 + number % 3
    shown = tuple(ImagePart(n) for n in range(count - 1))
    messages = (
        Message('user', (*shown, TextPart(f'draw <image> {number}'))),
        Message('assistant', (ImagePart(count - 1), TextPart('here'))),
    )
    sizes = [(16 + 16 * (n % 2), 32) for n in range(count)]
    return Sample(f't{number}', tuple(png(*s, number) for s in sizes), messages=messages), sizes


def write_shard(path, samples, tokenizer) -> index.Index:
    builder = IndexBuilder(tokenizer)
    with open(path, 'wb') as file:
        writer = tar.TarWriter(file)
        for number, (each, sizes) in enumerate(samples):
            at = writer.add(f'{number:09d}', sample.to_members(each, 'png'))
            builder.add(each, sizes, *at)
        writer.end()
    found = builder.index(writer.bytes)
    path.with_name(path.name + index.SUFFIX).write_bytes(found.to_bytes())
    return found


def write(folder, tokenizer, captions=(), conversations=()) -> str:
    """A set with shards of that many samples each; returns data.sources."""
    shards = {}
    for kind, make, counts in (
        ('captions', captioned, captions),
        ('conversations', talk, conversations),
    ):
        shards[kind], numbers = [], iter(range(sum(counts)))
        for number, count in enumerate(counts):
            path = folder / f'{kind}-{number:05d}.tar'
            write_shard(path, [make(next(numbers)) for _ in range(count)], tokenizer)
            data = path.read_bytes()
            digest = hashlib.blake2b(data, digest_size=8).hexdigest()
            shards[kind].append(set_file.Shard(path.name, count, len(data), digest))
    (folder / tokenizer.file).write_bytes(tokenizer.model_bytes)
    found = set_file.PreparedSet(shards, tokenizer.file, tokenizer.checksum, 48)
    set_file.write(str(folder), found)
    return f'prepared:{folder}'
