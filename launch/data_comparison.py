"""The same JPEGs from disk to batches by rf_jax, by webdataset and by grain, side by side.

    pip install -e '.[tfds,simd]' torch webdataset
    python launch/data_comparison.py --folder=/tmp/comparison

Makes 20,000 square JPEGs from a seed, in tar files and in ArrayRecord, each with a caption, and
reads all of them with each, taking turns after a part of them, `--rounds` in all:

rf_jax       `webdataset:` with packing: captions, resized images and tokens in rows of four
             streams; in threads of one process, and in two worker processes
webdataset   that library, shuffled, in torch's DataLoader with two workers; no packing
grain        `grain.MapDataset` of ArrayRecord, shuffled, with two worker processes; no packing

All decode with Pillow and resize to `--size` with its Lanczos filter; rf_jax and webdataset also
with data.resizer='simd'. Time counts from the first batch to the last, so starting processes and
indexing are left out. Prints images per second and processor time an image, of all processes, the
median and the range of the rounds, and the load of the machine: what other programs on it take
changes the first more than the second.
"""

import argparse
import contextlib
import io
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from absl import flags
from PIL import Image

from rf_jax.data import resizing

BATCH = 32
SHARD = 1000  # images
CANVASES = 24  # that images are cut from
LARGEST, SMALLEST = 512, 256  # sides of an image


def canvas(seed: int) -> Image.Image:
    """A picture of 1024 x 1024 with detail at all scales, like a photograph's, and edges."""
    rng, found = np.random.default_rng(seed), np.zeros((1024, 1024, 3), np.float32)
    for side in (4, 8, 16, 32, 64, 128, 256, 512):
        noise = Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8))
        found += np.asarray(noise.resize((1024, 1024), Image.Resampling.BICUBIC)) / side**0.7
    found = (found - found.mean()) / found.std() * 50 + 128
    for _ in range(12):
        y, x, height, width = rng.integers(0, 900, 2).tolist() + rng.integers(30, 300, 2).tolist()
        found[y : y + height, x : x + width] += rng.integers(-60, 60, 3)
    return Image.fromarray(found.clip(0, 255).astype(np.uint8))


def jpegs(count: int) -> Iterator[tuple[bytes, str]]:
    """(JPEG, caption)"""
    rng, canvases = np.random.default_rng(0), [canvas(seed) for seed in range(CANVASES)]
    for number in range(count):
        side = int(rng.integers(SMALLEST, LARGEST + 1))
        x, y = rng.integers(0, 1024 - side, 2).tolist()
        file = io.BytesIO()
        cut = canvases[number % CANVASES].crop((x, y, x + side, y + side))
        cut.save(file, 'JPEG', quality=90)
        yield file.getvalue(), f'picture {number}: a cut of {side} pixels from canvas {x} {y}'


def make(folder: Path, count: int) -> None:
    """Writes the tar files and the ArrayRecord file, unless they are there."""
    import webdataset
    from array_record.python.array_record_module import ArrayRecordWriter

    done = folder / f'{count}.done'
    if done.exists():
        return
    (folder / 'tars').mkdir(parents=True, exist_ok=True)
    records = ArrayRecordWriter(str(folder / 'images.array_record'), 'group_size:1')
    tars = webdataset.ShardWriter(str(folder / 'tars/%05d.tar'), maxcount=SHARD, verbose=0)
    with tars:
        for number, (encoded, caption) in enumerate(jpegs(count)):
            tars.write({'__key__': f'{number:09d}', 'jpg': encoded, 'txt': caption})
            text = caption.encode()
            records.write(len(text).to_bytes(4, 'little') + text + encoded)
    records.close()
    done.touch()


def resized(encoded: bytes, size: int, resizer: str = 'pillow') -> np.ndarray:
    """What a user writes without us: uint8 [size, size, 3]."""
    image = Image.open(io.BytesIO(encoded)).convert('RGB')
    return np.asarray(resizing.BY_NAME[resizer](image, size, size))


def config(folder: Path, size: int, threads: int, workers: int, resizer: str):
    """Rows of four images, eight rows a batch; each image is generated once a pass."""
    from configs import base

    found, patches = base.get_config(), (size // 16) ** 2
    found.data.sources = f'webdataset:{folder}/tars'
    found.data.update(
        patch_size=16, sizes=((size, 1.0),), batch_size=BATCH // 4, max_text_tokens=40,
        threads=threads, prefetch=2 * threads, workers=workers, lanes=max(1, workers),
        resizer=resizer,
    )  # fmt: skip
    found.data.tasks = {'text_to_image': 1.0}
    found.data.capacity.update(
        text=160, vision=0, representation=4 * (patches // 4 + 1), pixels=4 * patches,
        vision_images=0, pixel_images=4,
    )  # fmt: skip
    return found


def ours(
    folder: Path, count: int, size: int, threads: int, workers: int, resizer: str = 'pillow'
) -> Callable[[int, int], Iterator[int]]:
    """A function of (part, parts) that gives the number of images of each batch of a part."""
    from rf_jax.data import source_list
    from rf_jax.data.pipeline import Batches
    from rf_jax.data.sentencepiece_tokenizer import SentencePieceTokenizer

    asked = config(folder, size, threads, workers, resizer)
    sources = source_list.build(asked.data.sources, asked.data.max_pixels)
    tokenizer = SentencePieceTokenizer.train(sources[0].texts(2000), 1000)
    batches = Batches(asked, sources, tokenizer)  # indexes

    def run(part: int, parts: int):
        steps = [count // BATCH * at // parts for at in (part, part + 1)]
        for batch in batches.iterate(*steps):
            yield int((batch['pixel_counts'] > 0).sum())

    return run


def of_webdataset(
    folder: Path, count: int, size: int, resizer: str = 'pillow'
) -> Callable[[int, int], Iterator[int]]:
    import torch
    import webdataset

    def prepared(sample):
        return resized(sample['jpg'], size, resizer), sample['txt'].decode()

    def collated(samples):
        images, texts = zip(*samples)
        return torch.from_numpy(np.stack(images)), texts

    def run(part: int, parts: int):
        shards = sorted(str(path) for path in (folder / 'tars').glob('*.tar'))[part::parts]
        dataset = webdataset.WebDataset(shards, shardshuffle=len(shards)).shuffle(1000)
        dataset = dataset.map(prepared).batched(BATCH, collation_fn=collated)
        for images, _ in torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=2):
            yield len(images)

    return run


def of_grain(folder: Path, count: int, size: int) -> Callable[[int, int], Iterator[int]]:
    import grain

    def prepared(record):
        length = int.from_bytes(record[:4], 'little')
        return {'image': resized(record[4 + length :], size), 'text': record[4 : 4 + length]}

    def run(part: int, parts: int):
        source = grain.sources.ArrayRecordDataSource([str(folder / 'images.array_record')])
        dataset = grain.MapDataset.source(source).shuffle(seed=0)[part::parts].map(prepared)
        dataset = dataset.to_iter_dataset().batch(BATCH)
        workers = grain.MultiprocessingOptions(num_workers=2)
        for batch in dataset.mp_prefetch(workers):
            yield len(batch['image'])

    return run


def cpu_seconds(workers: dict[int, float]) -> float:
    """Of this process and its workers; what those used that have ended stays in `workers`."""
    for process in multiprocessing.active_children():
        with contextlib.suppress(OSError):  # it has just ended
            fields = Path(f'/proc/{process.pid}/stat').read_text().rpartition(')')[2].split()
            ticks = int(fields[11]) + int(fields[12])
            workers[process.pid] = ticks / os.sysconf('SC_CLK_TCK')
    return time.process_time() + sum(workers.values())


def measured(counts: Iterator[int]) -> tuple[float, float]:
    """(images per second, CPU milliseconds an image), both from the first batch to the last."""
    workers: dict[int, float] = {}
    next(counts)
    began, started, total = time.perf_counter(), cpu_seconds(workers), 0
    for count in counts:
        total += count
        ended, spent = time.perf_counter(), cpu_seconds(workers)
    return total / (ended - began), 1000 * (spent - started) / total


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--folder', type=Path, required=True)
    parser.add_argument('--images', type=int, default=20_000)
    parser.add_argument('--size', type=int, default=256)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--threads', type=int, default=2, help='data.threads of `rf_jax threads`')
    asked = parser.parse_args()
    make(asked.folder, asked.images)
    makers = {
        'rf_jax threads': partial(ours, threads=asked.threads, workers=0),
        'rf_jax workers': partial(ours, threads=1, workers=2),
        'webdataset': of_webdataset,
        'grain': of_grain,
        'rf_jax threads, simd': partial(ours, threads=asked.threads, workers=0, resizer='simd'),
        'rf_jax workers, simd': partial(ours, threads=1, workers=2, resizer='simd'),
        'webdataset, simd': partial(of_webdataset, resizer='simd'),
    }
    runs = {name: maker(asked.folder, asked.images, asked.size) for name, maker in makers.items()}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    loads = [os.getloadavg()[0]]
    for number in range(asked.rounds):
        order = list(runs)[number % len(runs) :] + list(runs)[: number % len(runs)]
        for name in order:
            rate, cpu = measured(runs[name](number, asked.rounds))
            found[name].append((rate, cpu))
            print(f'round {number + 1}  {name:21}{rate:8.0f} images/s{cpu:8.2f} ms', flush=True)
        loads.append(os.getloadavg()[0])
    print(
        f'{len(os.sched_getaffinity(0))} CPUs, load before and after each round '
        f'{", ".join(f"{load:.1f}" for load in loads)}'
    )
    for name, each in found.items():
        rates, cpus = zip(*each)
        print(
            f'{name:21}{statistics.median(rates):8.0f} images/s '
            f'({min(rates):.0f} to {max(rates):.0f}), {statistics.median(cpus):.2f} CPU ms an '
            f'image ({min(cpus):.2f} to {max(cpus):.2f})'
        )


if __name__ == '__main__':
    flags.FLAGS(sys.argv[:1])  # which grain's worker processes read
    main()
