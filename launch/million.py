"""Makes a million pictures, prepares them while killing the process, and checks every one.

python launch/million.py --folder=/data/million [--samples=1000000] [--kills=5] [--seed=0]
    [--workers=2]

Writes tar files as img2dataset does, then runs `rf_jax.prepare` on them. SIGKILL ends it at random
moments of both passes, and it is started again. At the end every sample must be in the set once,
with its caption and the bytes of its image. Prints samples/s, the most memory of all processes
together, and sizes. Then a pass over the set is planned in four lanes on 1, 2 and 4 processes, and
on 2 that become 4 half-way. The exit code is 0 if nothing is lost or doubled. An hour on 2 cores.
"""

import argparse
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from configs import emoji
from rf_jax.data import source_list
from rf_jax.data.pipeline import Batches
from rf_jax.data.shards import index, set_file
from rf_jax.data.shards.reader import Shards
from rf_jax.data.shards.tar import TarWriter
from rf_jax.data.shards.tar_format import Tar
from rf_jax.data.tokenizer import load_tokenizer
from rf_jax.runtime.rng import generator

SIZE = 48  # longest side of a picture, pixels
PER_TAR = 10_000
LANES = 4
SHARD_MEGABYTES = 64
COLOURS = ('red', 'green', 'blue', 'yellow', 'grey', 'black', 'white', 'brown')
LATE = 3.0  # seconds; a kill comes within this many of its moment


def caption(number: int) -> str:
    return f'picture {number} of something {COLOURS[number % len(COLOURS)]}'


def picture(number: int, seed: int) -> bytes:
    """A JPEG of soft colours."""
    rng = generator(seed, 'picture', number)
    height, width = rng.integers(SIZE // 2, SIZE + 1, 2).tolist()
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
    file = io.BytesIO()
    coarse.resize((width, height)).save(file, 'JPEG', quality=90)
    return file.getvalue()


def write_tar(folder: Path, samples: int, seed: int, number: int) -> np.ndarray:
    """uint32[S]: CRC-32 of the images of one tar file."""
    first, path = number * PER_TAR, folder / f'{number:05d}.tar'
    sums = []
    with open(path, 'wb') as file:
        writer = TarWriter(file)
        for n in range(first, min(first + PER_TAR, samples)):
            image, text = picture(n, seed), caption(n)
            entry = json.dumps({'caption': text, 'key': f'{n:09d}', 'status': 'success'})
            members = {'jpg': image, 'txt': text.encode(), 'json': entry.encode()}
            writer.add(f'{n:09d}', members)
            sums.append(zlib.crc32(image))
        writer.end()
    return np.array(sums, np.uint32)


def session_bytes(session: int) -> int:
    """Memory of all processes of a session, without counting shared pages twice."""
    total = 0
    for process in Path('/proc').glob('[0-9]*'):
        try:
            fields = (process / 'stat').read_text().rpartition(')')[2].split()
            if int(fields[3]) == session:
                rollup = (process / 'smaps_rollup').read_text()
                total += 1024 * int(re.search(r'Pss:\s+(\d+)', rollup)[1])
        except (OSError, TypeError):  # it has ended
            continue
    return total


def finished(out: Path) -> int:
    """Units and shards that are done."""
    try:
        return sum(bool(re.match(r'[0-9a-f]{16}\.', n)) and n.endswith('.json')
                   for n in os.listdir(out / 'cleaned'))  # fmt: skip
    except FileNotFoundError:
        return 0


def run(command: list[str], out: Path, until: int | None, late: float) -> tuple[int | None, int]:
    """(exit code, most bytes of memory); SIGKILL once `until` units and shards are done."""
    process = subprocess.Popen(command, start_new_session=True)
    peak = 0
    while process.poll() is None:
        peak = max(peak, session_bytes(process.pid))
        if until is not None and finished(out) >= until:
            time.sleep(late)
            process.send_signal(signal.SIGKILL)
        time.sleep(0.5)
    return process.returncode, peak


def checked(out: Path, samples: int, sums: np.ndarray) -> Iterator[str]:
    """What is wrong with the set."""
    found = set_file.read(str(out))
    shards = found.shards['captions']
    paths, counts = [f'{out}/{each.name}' for each in shards], [each.samples for each in shards]
    opened = Shards(paths, counts, lambda path: index.read(index.path_of(path)), Tar(1))
    seen = np.zeros(samples, np.int64)
    for number in range(len(opened)):
        sample = opened.read(number)
        key = int(sample.key)
        seen[key] += 1
        if sample.captions != (caption(key),) or zlib.crc32(sample.images[0]) != sums[key]:
            yield f'sample {number} is not as it was written'
    if (seen != 1).any():
        yield f'{(seen == 0).sum()} samples are missing, {(seen > 1).sum()} are there twice or more'
    if found.left_out:
        yield f'left out: {found.left_out}'


def batches_of(out: Path, rows: np.ndarray) -> Batches:
    config = emoji.get_config()
    config.data.update(sources=f'prepared:{out}', lanes=LANES, sizes=((32, 1.0),))
    config.data.tasks.image_to_text = 0.0
    config.data.capacity.update(text=400, vision=0, representation=64, pixels=64)
    config.data.capacity.update(vision_images=0, pixel_images=16)
    (source,) = source_list.build(config.data.sources, 10**8)
    return Batches(config, [source], load_tokenizer(source.tokenizer), rows)


def planned(out: Path, rows: np.ndarray, first: int, last: int) -> np.ndarray:
    """Samples of the first pass that a process with these rows reads in steps first .. last - 1."""
    batches = batches_of(out, rows)
    found = (row for step in range(first, last) for row in batches.examples(step))
    return np.array([each.index for row in found for each in row if each.epoch == 0], np.int64)


def passed(out: Path, processes: Sequence[int]) -> Iterator[str]:
    """What is wrong with a pass of training over the set, whose parts have so many processes."""
    rows = np.arange(emoji.get_config().data.batch_size)
    batches = batches_of(out, rows)
    # Lanes of random sizes end their first pass a little apart.
    steps = round(1.02 * batches.plan.steps_per_epoch) + 2 * batches.plan.steps_per_window
    seen = np.zeros(len(batches.pools['text_to_image of 1']), np.int64)
    for part, count in enumerate(processes):
        first, last = (steps * at // len(processes) for at in (part, part + 1))
        with ProcessPoolExecutor(count, get_context('spawn')) as pool:
            parts = [pool.submit(planned, out, own, first, last) for own in np.split(rows, count)]
            for each in parts:
                np.add.at(seen, each.result(), 1)
    if (seen != 1).any():
        yield f'{(seen == 0).sum()} samples are not in a pass, {(seen > 1).sum()} twice or more'


def gigabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob('*') if path.is_file()) / 1e9


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--folder', type=Path, required=True)
    parser.add_argument('--samples', type=int, default=1_000_000)
    parser.add_argument('--kills', type=int, default=5)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--workers', type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    tars, out = options.folder / 'tars', options.folder / 'set'
    tars.mkdir(parents=True)
    began, count = time.monotonic(), -(-options.samples // PER_TAR)
    with ProcessPoolExecutor(options.workers) as pool:
        write = partial(write_tar, tars, options.samples, options.seed)
        sums = np.concatenate(list(pool.map(write, range(count))))
    print(f'wrote {len(sums):,} pictures, {gigabytes(tars):.2f} GB, '
          f'in {time.monotonic() - began:.0f} s', flush=True)  # fmt: skip
    command = [sys.executable, '-m', 'rf_jax.prepare', f'--source=webdataset:{tars}',
               f'--out={out}', f'--size={SIZE}', f'--workers={options.workers}',
               f'--shard_megabytes={SHARD_MEGABYTES}']  # fmt: skip
    rng = random.Random(options.seed)
    steps = count + round(gigabytes(tars) * 1e9 / 2**20 / SHARD_MEGABYTES)
    moments = sorted(rng.randrange(steps) for _ in range(options.kills))
    began, peaks = time.monotonic(), []
    for moment in [*moments, None]:
        start = time.monotonic()
        code, peak = run(command, out, moment, rng.uniform(0, LATE))
        peaks.append(peak)
        print(f'ended with {code} after {time.monotonic() - start:.0f} s, {finished(out)} units '
              f'and shards done; {peak / 1e9:.2f} GB of memory', flush=True)  # fmt: skip
        if code != (0 if moment is None else -signal.SIGKILL):
            return 1
    spent = time.monotonic() - began
    print(f'prepared in {spent:.0f} s with {options.kills} kills, {len(sums) / spent:.0f} '
          f'samples/s; at most {max(peaks) / 1e9:.2f} GB; the set has {gigabytes(out):.2f} GB',
          flush=True)  # fmt: skip
    wrong = list(checked(out, options.samples, sums))
    print('\n'.join(wrong[:10]) or 'every sample is there once, as it was written', flush=True)
    for processes in ((1,), (2,), (4,), (2, 4)):
        found = list(passed(out, processes))
        then = ' then '.join(map(str, processes))
        print(f'{then} processes: ' + (found or ['every sample comes once a pass'])[0], flush=True)
        wrong += found
    return int(bool(wrong))


if __name__ == '__main__':
    sys.exit(main())
