"""Images for public benchmarks: where each has its prompts, and where its scorer looks."""

import csv
import io
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from absl import logging
from PIL import Image

from rf_jax.runtime import metrics, paths
from rf_jax.runtime.errors import UserError, require
from rf_jax.runtime.rng import fold

ROWS = 32  # images of one call of the sampler
# OneIG's categories, and the folder of each.
_ONEIG = {
    'Anime_Stylization': 'anime', 'Portrait': 'human', 'General_Object': 'object',
    'Text_Rendering': 'text', 'Knowledge_Reasoning': 'reasoning',
    'Multilingualism': 'multilingualism',
}  # fmt: skip


@dataclass(frozen=True)
class Prompt:
    """`id` names its images; `line` is what the benchmark says of it, in JSON."""

    id: str
    text: str
    line: str = ''


@dataclass(frozen=True)
class Benchmark:
    """`read(path)` gives the prompts; `images` for each; `path(prompt, number, model)` is where an
    image goes; `grid`: all images of a prompt in one file, 2 x 2; `beside(prompts, model)` gives
    {path: text} of the other files that its scorer reads.
    """

    read: Callable[[Path], list[Prompt]]
    images: int
    path: Callable[[Prompt, int, str], str]
    grid: bool = False
    beside: Callable[[Sequence[Prompt], str], dict[str, str]] = lambda prompts, model: {}

    @property
    def files(self) -> int:
        """Files of one prompt."""
        return 1 if self.grid else self.images


def _lines(path: Path) -> list[Prompt]:
    """A text file with one prompt per line."""
    return [Prompt(f'{i:05d}', line.strip()) for i, line in enumerate(paths.text_lines(path))]


def _jsonl(path: Path) -> list[Prompt]:
    """One object with a "prompt" per line: GenEval and GenEval 2."""
    lines = paths.text_lines(path)
    return [Prompt(f'{i:05d}', json.loads(line)['prompt'], line) for i, line in enumerate(lines)]


def _text_folder(path: Path) -> list[Prompt]:
    """A folder of text files, one prompt each: DPG-Bench."""
    if not path.is_dir():
        raise ValueError('expected the folder of prompts, one .txt each')
    files = sorted(path.glob('*.txt'))
    return [Prompt(file.stem, ' '.join(paths.read_text(file).split())) for file in files]


def _wise(path: Path) -> list[Prompt]:
    """A JSON list, or a folder of several, of objects with "prompt_id" and "Prompt"."""
    files = sorted(path.glob('*.json')) if path.is_dir() else [path]
    entries = [entry for file in files for entry in json.loads(paths.read_text(file))]
    found = [Prompt(str(entry['prompt_id']), entry['Prompt']) for entry in entries]
    return sorted(found, key=lambda prompt: int(prompt.id))


def _table(path: Path) -> Iterator[dict[str, str]]:
    yield from csv.DictReader(io.StringIO(paths.read_text(path), newline=''))


def _oneig(path: Path) -> list[Prompt]:
    """A CSV with category, id and prompt_en, or prompt_cn."""
    found = []
    for row in _table(path):
        folder = _ONEIG.get(row['category'])
        if folder is None:
            raise ValueError(f'unknown category {row["category"]!r}')
        found.append(Prompt(f'{folder}/{row["id"]}', row.get('prompt_en') or row['prompt_cn']))
    return found


def _unigenbench(path: Path) -> list[Prompt]:
    """A CSV with index and a column of prompts."""
    names = 'prompt', 'prompt_en', 'prompt_zh'
    found = []
    for row in _table(path):
        text = next((row[name] for name in names if row.get(name)), '')
        if not text:
            raise ValueError(f'no prompt in one of the columns {", ".join(names)}')
        found.append(Prompt(row['index'], text))
    return found


def _oneig_path(prompt: Prompt, number: int, model: str) -> str:
    folder, _, name = prompt.id.partition('/')
    return f'images/{folder}/{model}/{name}.webp'


def _geneval_metadata(prompts: Sequence[Prompt], model: str) -> dict[str, str]:
    return {f'{prompt.id}/metadata.jsonl': prompt.line for prompt in prompts}


def _geneval2_paths(prompts: Sequence[Prompt], model: str) -> dict[str, str]:
    return {'image_paths.json': json.dumps({p.text: f'{p.id}.png' for p in prompts}, indent=1)}


BENCHMARKS = {
    'geneval': Benchmark(
        _jsonl, 4, lambda p, n, _: f'{p.id}/samples/{n:04d}.png', beside=_geneval_metadata
    ),
    'dpg': Benchmark(_text_folder, 4, lambda p, n, _: f'{p.id}.png', grid=True),
    'wise': Benchmark(_wise, 1, lambda p, n, _: f'{p.id}.png'),
    'geneval2': Benchmark(_jsonl, 1, lambda p, n, _: f'{p.id}.png', beside=_geneval2_paths),
    'oneig': Benchmark(_oneig, 4, _oneig_path, grid=True),
    'unigenbench': Benchmark(_unigenbench, 4, lambda p, n, _: f'{p.id}_{n}.png'),
    'folder': Benchmark(_lines, 4, lambda p, n, _: f'{p.id}_{n}.png'),
}


def read(name: str, path: Path) -> list[Prompt]:
    """The prompts of a file or folder. Raises UserError if it is not what the benchmark ships."""
    try:
        found = BENCHMARKS[name].read(path)
        for prompt in found:
            if not isinstance(prompt.text, str):
                raise ValueError(f'the prompt {prompt.text!r} is not text')
            if not isinstance(prompt.id, str):
                raise ValueError(f'the prompt {prompt.text!r:.80} has no name')
    except OSError as error:
        raise UserError(f'--prompts={path} cannot be read: {error.strerror or error}') from None
    except (KeyError, ValueError, TypeError, csv.Error) as error:
        what = f'{error} is missing' if isinstance(error, KeyError) else error
        raise UserError(f'--prompts={path} is not the prompts of {name}: {what}') from None
    if not found:
        raise UserError(f'--prompts={path} has no prompts')
    if len({prompt.id for prompt in found}) < len(found):
        raise UserError(f'--prompts={path}: two prompts have the same id')
    safe = re.compile(r'(?!.*\.\.)[\w.-]+(/[\w.-]+)?')
    if bad := [prompt.id for prompt in found if not safe.fullmatch(prompt.id)]:
        raise UserError(f'--prompts={path}: {bad[0]!r} cannot be the name of a file')
    return found


def generate(
    sampler,
    name: str,
    prompts: Sequence[Prompt],
    out: Path,
    model: str,
    seed: int = 0,
    size: tuple[int, int] | None = None,
    weights: str = '',
) -> None:
    """Writes the images that are missing in `out`, by a `Sampler`; `model` names it in paths.
    `weights`: checksum of its checkpoint, as two runs may have one name.

    The randomness of an image depends on (seed, benchmark, prompt, number). OUT.json, beside the
    folder, says what the images are of. Raises UserError if it says something else, and if an image
    is missing at the end.
    """
    benchmark = BENCHMARKS[name]
    how = {f'sampling.{field}': value for field, value in asdict(sampler.options()).items()}
    _same_origin(out, {'benchmark': name, 'model': model, 'checkpoint': sampler.step,
                       'weights': weights, 'seed': seed, 'size': size and list(size),
                       'prompts': fold(*(f'{p.id} {p.text}' for p in prompts)), **how})  # fmt: skip
    for path, text in benchmark.beside(prompts, model).items():
        replace(out / path, text.encode())
    todo = missing(benchmark, prompts, out, model)
    logging.info('%d of %d files are missing', len(todo), len(prompts) * benchmark.files)
    each = benchmark.images if benchmark.grid else 1  # images of a file
    at_once, began = max(1, ROWS // each), time.monotonic()
    for start in range(0, len(todo), at_once):
        chunk = todo[start : start + at_once]
        wanted = [(i, n + k) for i, n in chunk for k in range(each)]
        images = sampler.generate(
            [prompts[i].text for i, _ in wanted],
            fold(seed, name) % 2**31,
            size,
            # The same text under two numbers gives two images.
            number=[i * benchmark.images + n for i, n in wanted],
        )
        for at, (i, n) in enumerate(chunk):
            own = [image.image for image in images[at * each : (at + 1) * each]]
            write(out / benchmark.path(prompts[i], n, model), own)
        done = start + len(chunk)
        seconds = (time.monotonic() - began) / done * (len(todo) - done)
        logging.info('%d of %d files | ETA %s', done, len(todo), metrics.duration(seconds))
    absent = missing(benchmark, prompts, out, model)
    require(not absent, f'{len(absent)} images are missing in {out}: run the same command again')


def _same_origin(out: Path, origin: dict) -> None:
    """Images of one folder are of one model, sampled in one way. Raises UserError."""
    folder = Path(os.path.abspath(out))  # '.' has no name
    require(bool(folder.name), f'--out={out}: expected a folder that has a name')
    path = folder.with_name(f'{folder.name}.json')
    if not path.exists():
        replace(path, json.dumps(origin).encode())
    origin = json.loads(json.dumps(origin))
    try:
        before = json.loads(path.read_text(encoding='utf-8'))
        require(isinstance(before, dict), 'not an object')
    except (OSError, ValueError):  # OSError: a folder
        raise UserError(f'--out={out}: {path} is of something else: give another --out') from None
    # Older files do not say how images were sampled.
    changed = [name for name, value in origin.items() if before.get(name, value) != value]
    if changed:
        was, now = before.get(changed[0]), origin[changed[0]]
        raise UserError(
            f'--out={out} has images with {changed[0]}={was!r}, and these would have {now!r}: give '
            'another folder'
        )


def missing(
    benchmark: Benchmark, prompts: Sequence[Prompt], out: Path, model: str
) -> list[tuple[int, int]]:
    """[(index of the prompt, number of the file)] of the files that do not exist."""
    return [
        (i, number)
        for i, prompt in enumerate(prompts)
        for number in range(benchmark.files)
        if not (out / benchmark.path(prompt, number, model)).exists()
    ]


def write(path: Path, images: Sequence[np.ndarray]) -> None:
    """Writes one image, or a grid of two columns, complete or not at all."""
    rows = [np.concatenate(images[i : i + 2], 1) for i in range(0, len(images), 2)]
    image = Image.fromarray(np.concatenate(rows))
    kind = {'.webp': ('WEBP', {'lossless': True}), '.png': ('PNG', {})}[path.suffix]
    file = io.BytesIO()
    image.save(file, kind[0], **kind[1])
    replace(path, file.getvalue())


def replace(path: Path, data: bytes) -> None:
    """Writes a file under a temporary name, then renames it: scorers read what is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'.{path.name}.part')
    part.write_bytes(data)
    os.replace(part, path)
