"""What a model forgets while it learns twenty new pictures, with adapters and in full:
`python launch/lora_trial.py --start=runs/emoji --workdir=runs/lora_trial`.

The pictures are drawn here: five patterns in four pairs of colours. Both variants of
configs/finetune_emoji.py train on them, and are compared where their average first reaches the same
loss on the new pictures, by the loss, retrieval and captions of the emoji.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from configs import finetune_emoji
from rf_jax.data import pipeline, source_list
from rf_jax.evaluation import retrieval
from rf_jax.generation.sampler import Sampler
from rf_jax.runtime import checkpoint
from rf_jax.training import losses, step, train_loop
from rf_jax.training.state import State

SIZE = 64
EVERY = 20  # steps between measurements
BATCHES = 8  # of a measurement, always the same
COLUMNS = ('', 'step', 'trained', 'loss, new', 'loss, emoji', 'new: nearest', 'new: exact caption',
           'emoji: among the 10 nearest', 'emoji: exact caption')  # fmt: skip
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


class Arm(NamedTuple):
    """A trained variant: its workdir, trained parameters, and losses by step."""

    folder: Path
    trained: int
    curve: dict[int, dict[str, float]]

    def first_at(self, loss: float) -> int:
        """The first step whose loss on the new pictures is at most this."""
        return next(n for n, values in self.curve.items() if values['new'] <= loss)


def train(variant: str, start: Path, workdir: Path, sources: dict[str, str], steps: int) -> Arm:
    config = finetune_emoji.get_config(variant)
    config.initialise_from, config.data.sources = str(start), sources['new']
    config.steps, config.log.samples_every = steps, EVERY
    config.checkpoint.update(every=EVERY, keep_period=EVERY)
    run = train_loop.build(config, workdir / variant)
    measure, curve = Losses(run, start, sources), {}

    def note(number, average, writer):
        del writer
        curve[number] = measure(average)
        print(variant, number, curve[number], flush=True)

    note(0, checkpoint.restore_numpy(start / 'checkpoints', only='ema')[1]['ema'], None)
    state = train_loop.train(run, note)
    note(steps, run.average(state), None)
    factors = [leaf for path, leaf in named(state.params) if not path.startswith('encoder/')]
    return Arm(run.workdir, sum(leaf.size for leaf in factors), curve)


def named(tree):
    """[(path, leaf)]"""
    return [
        (jax.tree_util.keystr(path, simple=True, separator='/'), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]


def row(name, sampler: Sampler, trained: int, values: dict[str, float], sources, samples) -> str:
    """A line of the table."""
    cells = [name, str(sampler.step), f'{trained:,}']
    cells += [f'{values[source]:.3f}' for source in ('new', 'emoji')]
    for source in ('new', 'emoji'):
        (found,) = source_list.build(sources[source], 10**8)
        result = retrieval.evaluate(sampler, found, min(samples, len(found)), seed=0)
        near = result.top1 if source == 'new' else result.top10
        cells += [f'{100 * near:.1f}', f'{100 * result.exact:.1f}']
    return f'| {" | ".join(cells)} |'


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--start', type=Path, default=Path('runs/emoji'))
    parser.add_argument('--workdir', type=Path, default=Path('runs/lora_trial'))
    parser.add_argument('--steps', type=int, default=300)
    parser.add_argument('--samples', type=int, default=200, help='emoji generated and captioned')
    given = parser.parse_args()
    draw(given.workdir / 'pictures')
    sources = {'new': f'folder:{given.workdir / "pictures"}', 'emoji': 'emoji'}
    arms = {
        name: train(name, given.start, given.workdir, sources, given.steps)
        for name in finetune_emoji.VARIANTS
    }
    reached = max(min(v['new'] for v in arm.curve.values()) for arm in arms.values())
    print(f'| {" | ".join(COLUMNS)} |')
    print(f'|{" --- |" * len(COLUMNS)}')
    before = Sampler.load(given.start)
    losses_before = arms['lora'].curve[0]
    print(row('before', before, 0, losses_before, sources, given.samples), flush=True)
    for name, arm in arms.items():
        number = arm.first_at(reached)
        sampler = Sampler.load(arm.folder, number)
        print(row(name, sampler, arm.trained, arm.curve[number], sources, given.samples))


if __name__ == '__main__':
    main()
