"""What a model forgets while it learns twenty new pictures, with adapters and in full:
`python launch/lora_trial.py --start=runs/emoji --workdir=runs/lora_trial`.

The pictures are drawn here: five patterns in four pairs of colours. Variants of
configs/finetune_emoji.py train on them until the loss of their average on the new pictures is
`--loss`, and are compared by loss, retrieval and captions of the emoji.
"""

import argparse
import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from configs import finetune_emoji
from rf_jax.data import pipeline, source_list
from rf_jax.evaluation import retrieval
from rf_jax.generation.sampler import Sampler
from rf_jax.runtime import checkpoint, checkpoint_files
from rf_jax.training import losses, optimizer, step, train_loop
from rf_jax.training.state import State

SIZE = 64
EVERY = 10  # steps between measurements
BATCHES = 4  # of a measurement, always the same
ARMS = {'adapters': ('lora', 1e-3), 'all': ('full', 3e-4)}  # variant of the config, learning rate
COLUMNS = (
    *('', 'learning rate', 'step', 'trained', 'loss, new', 'loss, emoji', 'new: nearest'),
    *('new: exact caption', 'emoji: among the 10 nearest', 'emoji: exact caption'),
)
PATTERNS: dict[str, Callable] = {  # of the coordinates in [0, 1): where the first colour is
    'bars': lambda x, y: x * 4 % 1 < 0.5,
    'checkers': lambda x, y: (x * 4 % 1 < 0.5) == (y * 4 % 1 < 0.5),
    'rings': lambda x, y: np.hypot(x - 0.5, y - 0.5) * 8 % 1 < 0.5,
    'zigzag': lambda x, y: (y * 4 + np.abs(x * 4 % 1 - 0.5)) % 1 < 0.5,
    'wedge': lambda x, y: np.abs(x - 0.5) * 2 < y,
}
COLOURS = {
    'teal and peach': ((0, 128, 128), (255, 203, 164)),
    'lime and maroon': ((160, 230, 30), (110, 10, 40)),
    'navy and cream': ((20, 30, 100), (255, 250, 215)),
    'magenta and grey': ((210, 20, 160), (150, 150, 150)),
}


def draw(folder: Path) -> None:
    """Writes the pictures and captions.jsonl, as of a `folder:` source."""
    folder.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE
    lines = []
    for pattern, first in PATTERNS.items():
        for names, colours in COLOURS.items():
            pixels = np.where(first(x, y)[..., None], *np.array(colours, np.uint8))
            file = f'{pattern} {names}.png'.replace(' ', '_')
            Image.fromarray(pixels.astype(np.uint8)).save(folder / file)
            lines.append(json.dumps({'file': file, 'caption': f'{pattern} in {names}'}))
    (folder / 'captions.jsonl').write_text('\n'.join(lines) + '\n')


class Losses:
    """The loss of parameters on always the same batches and noise: {source: loss}."""

    def __init__(self, run: train_loop.Run, start: Path, sources: dict[str, str]):
        work = step.pretraining(run.config, run.model)
        loss = step.loss_function(run.config, run.model, work.terms)
        zero = jnp.zeros((), jnp.int32)
        _, saved = checkpoint.restore_numpy(start / 'checkpoints', only='codebook')

        def of_batch(params, number, batch):
            state = State(number, params, params, None, saved['codebook'], zero, zero)
            rows, *_ = work.prepare(state, batch)
            rows = work.complete(state, rows)
            return loss(params, rows, losses.counts(work.terms, rows))[0]

        self._of_batch = jax.jit(of_batch)
        self._batches = {}
        rows = np.arange(run.config.data.batch_size)
        for name, source in sources.items():
            found = source_list.build(source, run.config.data.max_pixels)
            batches = pipeline.Batches(run.config, found, run.tokenizer, rows)
            self._batches[name] = [batches.batch(number) for number in range(BATCHES)]

    def __call__(self, params) -> dict[str, float]:
        return {
            name: float(np.mean([self._of_batch(params, i, each) for i, each in enumerate(held)]))
            for name, held in self._batches.items()
        }


class Reached(Exception):
    """The loss is reached."""


def train(name: str, start: Path, workdir: Path, sources: dict[str, str], goal: float, most: int):
    """(workdir, {step: losses by source} up to the goal, trained parameters) of an arm."""
    variant, rate = ARMS[name]
    config = finetune_emoji.get_config(variant)
    config.optimizer.learning_rate = rate
    config.initialise_from, config.data.sources = str(start), sources['new']
    config.steps, config.evaluation.samples = most, 0
    config.log.samples_every = config.checkpoint.every = EVERY
    run = train_loop.build(config, workdir / name)
    measure, found = Losses(run, start, sources), {}

    def note(number, average, writer):
        del writer
        found[number] = measure(average)
        print(name, number, found[number], flush=True)
        if found[number]['new'] <= goal:
            raise Reached

    note(0, checkpoint.restore_numpy(start / 'checkpoints', only='ema')[1]['ema'], None)
    with contextlib.suppress(Reached):
        note(most, run.average(train_loop.train(run, note)), None)
    trained = [leaf for path, leaf in checkpoint_files.flatten(run.abstract.params).items()
               if not optimizer.frozen(path, config.optimizer.freeze)]  # fmt: skip
    return run.workdir, found, sum(leaf.size for leaf in trained)


def row(name, rate, trained: int, sampler: Sampler, values, sources, samples: int) -> str:
    """A line of the table."""
    cells = [name, rate, str(sampler.step), f'{trained:,}']
    cells += [f'{values[source]:.2f}' for source in sources]
    for source in sources:
        (found,) = source_list.build(sources[source], 10**8)
        result = retrieval.evaluate(sampler, found, min(samples, len(found)), seed=0)
        near = result.top1 if source == 'new' else result.top10
        cells += [f'{100 * near:.1f}', f'{100 * result.exact:.1f}']
    return f'| {" | ".join(cells)} |'


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--start', type=Path, default=Path('runs/emoji'))
    parser.add_argument('--workdir', type=Path, default=Path('runs/lora_trial'))
    parser.add_argument('--loss', type=float, default=1.0, help='to be reached on the pictures')
    parser.add_argument('--steps', type=int, default=600, help='at most')
    parser.add_argument('--samples', type=int, default=200, help='emoji generated and captioned')
    given = parser.parse_args()
    draw(given.workdir / 'pictures')
    sources = {'new': f'folder:{given.workdir / "pictures"}', 'emoji': 'emoji'}
    lines = [f'| {" | ".join(COLUMNS)} |', f'|{" --- |" * len(COLUMNS)}']
    for name, (_, rate) in ARMS.items():
        folder, found, trained = train(
            name, given.start, given.workdir, sources, given.loss, given.steps
        )
        if len(lines) == 2:
            lines.append(
                row('before', '', 0, Sampler.load(given.start), found[0], sources, given.samples)
            )
        sampler, values = Sampler.load(folder, max(found)), found[max(found)]
        lines.append(row(name, f'{rate:g}', trained, sampler, values, sources, given.samples))
        print(lines[-1], flush=True)
        jax.clear_caches()
    print('\n'.join(lines))


if __name__ == '__main__':
    main()
