"""Pictures and captions from a seed, tar files of them, and prepared sets to look into."""

import io
import json

import numpy as np
from PIL import Image

from rf_jax.data.shards import index
from rf_jax.data.shards.reader import Shards
from rf_jax.data.shards.tar import TarWriter
from rf_jax.data.shards.tar_format import Tar
from rf_jax.preparation import preparing, source_flag
from rf_jax.preparation.settings import Settings

COLOURS = ('red', 'green', 'blue', 'grey')


def caption(number):
    return f'picture {number} of a {COLOURS[number % 4]} thing'


def picture(number, longest=40):
    """uint8 [h, w, 3], smooth."""
    rng = np.random.default_rng(number)
    height, width = rng.integers(longest // 2, longest, 2)
    coarse = rng.integers(0, 256, (3, 4, 3), np.uint8)
    return np.array(Image.fromarray(coarse).resize((int(width), int(height))))


def encoded(pixels, name='JPEG', **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, name, **options)
    return file.getvalue()


def talk(number):
    """Messages about one image, which they ask for and which the assistant draws."""
    return [
        {'role': 'user', 'content': f'draw {caption(number)}'},
        {'role': 'assistant', 'content': [{'type': 'image'}, {'type': 'text', 'text': 'here'}]},
    ]


def write_tar(path, numbers, conversations=(), longest=40):
    """As img2dataset writes them: {key}.jpg, .json, .txt; conversations are {key}.json, .0.png."""
    with open(path, 'wb') as file:
        writer = TarWriter(file)
        for number in numbers:
            image = encoded(picture(number, longest), quality=90)
            entry = {'caption': caption(number), 'url': 'x', 'key': f'{number:09d}'}
            members = {'jpg': image, 'json': json.dumps(entry).encode()}
            writer.add(f'{number:09d}', members | {'txt': caption(number).encode()})
        for number in conversations:
            entry = json.dumps({'messages': talk(number), 'key': f'{number:09d}'}).encode()
            members = {'json': entry, '0.png': encoded(picture(number), 'PNG')}
            writer.add(f'{number:09d}', members)
        writer.end()


def prepare(source, out, workers=1, given=None, **changes):
    from rf_jax.preparation.beam_run import Runner

    values = {
        'size': 32,
        'encoding': 'jpeg',
        'tokenizer': 'trained',
        'shard_megabytes': 1,
        'seed': 0,
    }
    source = source_flag.with_absolute_paths(source)
    return preparing.prepare(
        Settings(source, **{**values, **changes}), str(out), given, 400, Runner([], workers)
    )


def shards(out, found, kind='captions'):
    paths = [f'{out}/{shard.name}' for shard in found.shards[kind]]
    counts = [shard.samples for shard in found.shards[kind]]
    return Shards(paths, counts, lambda path: index.read(index.path_of(path)), Tar(1))


def keys(out, found, kind='captions'):
    opened = shards(out, found, kind)
    return [opened.read(number).key for number in range(len(opened))]
