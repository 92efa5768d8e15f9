"""What a run shows: grids and captions while training, a table and a grid at its end."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from rf_jax.data import images, pipeline, png, source_list
from rf_jax.evaluation import codebook_usage, retrieval, scoring
from rf_jax.evaluation.inspection import Inspector
from rf_jax.generation import token_sampling
from rf_jax.generation.placement import Placement
from rf_jax.generation.sampler import ROWS, Sampler
from rf_jax.runtime import distributed, metrics, sharding
from rf_jax.runtime.errors import UserError
from rf_jax.training import jitted
from rf_jax.training.state import State
from rf_jax.training.train_loop import Run

COLUMNS = 8
SHOWN = 24  # pairs in the grid of the end


def first_pictures(run: Run) -> tuple[object, Sequence[int]]:
    """The first source with pictures and their numbers; (None, []) if there is none."""
    for source, *_ in run.batches.examples['text_to_image'][:1]:
        return source, source_list.pictured(source)
    return None, []


def sampler_of(run: Run) -> Sampler:
    """The run's model as training shards it, for parameters that `placement.params` gives."""
    placement = Placement.of(run.mesh)
    model = placement.model(run.config, run.tokenizer.size)
    return Sampler(run.config, model, None, run.tokenizer, placement)


def while_training(run: Run) -> Callable[[int, Any, metrics.MetricWriter], None]:
    """A hook `(step, ema, writer)`: drawings and descriptions into WORKDIR/samples.

    All hosts draw together, with the averaged weights sharded as in training; the first one writes.
    """
    source, numbers = first_pictures(run)
    rng = np.random.default_rng(run.config.seed)
    chosen = retrieval.readable(source, rng.permutation(numbers), run.config.log.samples)
    prompts = [source.record(i).captions[0] for i in chosen]
    sampler = sampler_of(run)  # compiled once, weights change
    sizes = [pipeline.picture_size(*picture.shape[:2], run.config) for picture in chosen.values()]
    requests = [sampler.request(p, run.config.seed, size=s) for p, s in zip(prompts, sizes)]

    def show(step: int, ema: Any, writer: metrics.MetricWriter) -> None:
        if not chosen:
            return
        sampler.params = sampler.placement.params(ema)
        drawn = sampler.draw(requests)
        answers = sampler.describe(list(chosen.values()))
        sampler.params = None  # the step that follows reuses the state's memory
        if not distributed.first():
            return
        sheet = images.grid(drawn, COLUMNS, prompts)
        writer.image(step, 'drawn', sheet)
        lines = [f'{prompt} -> {answer}' for prompt, answer in zip(prompts, answers)]
        writer.text(step, 'described', '\n\n'.join(lines))
        folder = run.workdir / 'samples'
        try:
            folder.mkdir(exist_ok=True)
            made_by = {'step': step, 'seed': run.config.seed, 'prompts': '\n'.join(prompts)}
            png.write(folder / f'{step:08d}.png', sheet, made_by)
            (folder / f'{step:08d}.txt').write_text('\n'.join(lines) + '\n', encoding='utf-8')
        except OSError as error:
            logging.warning('Samples of step %d cannot be written: %s', step, error)

    return show


def check(run: Run, memory: float | None = None) -> None:
    """Raises UserError before a training that could not draw on its way or be evaluated at its end.

    `memory`: bytes of a device; None asks the device, and a CPU has no answer.
    """
    config, samples = run.config, run.config.evaluation.samples
    if samples and scoring.applies(config):
        scoring.check(config, run.tokenizer, scoring.Amount.of(samples))
    stats = jax.local_devices()[0].memory_stats() or {}
    memory = memory or stats.get('bytes_limit')
    draws = scoring.draws(config) and first_pictures(run)[0] is not None
    if not memory or not draws:
        return
    average = jitted.nbytes_per_device(run.abstract.ema)
    state = jitted.nbytes_per_device(run.abstract)
    state -= sum(jitted.nbytes_per_device(getattr(run.abstract, name)) for name in config.offload)
    while_training = state + (average if 'ema' in config.offload else 0.0)
    for field, asked, held in (
        ('evaluation.samples', samples, average),  # the rest of the state is gone by then
        ('log.samples_every', config.log.samples_every, while_training),
    ):
        needed = held + cache_bytes(run) if asked else 0.0
        if needed > memory:
            raise UserError(
                f'{field}={asked}: drawing needs at least {needed / 1e9:.1f} GB of a device, and '
                f'it has {memory / 1e9:.1f}. Shard the model over more devices (mesh.fsdp, '
                f'mesh.tensor), or set {field}=0'
            )


def cache_bytes(run: Run) -> float:
    """Bytes on a device of the keys and values of the pictures that are drawn together."""
    sampler = sampler_of(run)
    request = sampler.request('', 0)
    options = sampler.options()
    contexts = options.contexts()
    row = sampler.rows([request])[True, True]
    batch = {name: np.concatenate([array] * len(contexts)) for name, array in row.items()}
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
    write = partial(token_sampling.build(run.config), run.model, options)
    _, cache = jax.eval_shape(
        lambda params, batch, keys: write(params, batch, contexts, keys),
        *(run.abstract.ema, batch, keys),
    )
    rows = sampler.placement.full(ROWS) / sampler.placement.multiple
    return rows * sum(a.size * a.dtype.itemsize for a in cache)


def at_end(run: Run, state: State) -> str:
    """Evaluates, writes the result and grids into the workdir; the table to print."""
    sampler = sampler_of(run)
    sampler.params = sampler.placement.params(state.ema)
    source, numbers = first_pictures(run)
    if not len(numbers):
        return 'no pictures: nothing to evaluate'
    samples = min(run.config.evaluation.samples, len(numbers))
    codebook = sampler.placement.gather(state.codebook)
    trained = Inspector(sampler, codebook, int(state.step))
    table = evaluate(trained, source, run.workdir, samples, run.config.seed)
    drawn = run.config.data.tasks.get('text_to_image', 0) > 0
    if drawn and scoring.has_codes(run.config) and not scoring.applies(run.config):
        share = codebook_usage.codes_over_an_epoch(run, state.replace(ema=sharding.near(state.ema)))
        table += f'\ncodebook: {share:.1%} of the prototypes are used over an epoch'
    return table


def evaluate(run: Inspector, source, workdir: Path, samples: int, seed: int, amount=None) -> str:
    """Files and the table of a run by what it has learned.

    Scenes are put to the judge (`amount`: scoring.Amount, default: as fits `samples`); pictures of
    any other source have to be found again, `samples` of them.
    """
    if scoring.applies(run.sampler.config):
        amount = amount or scoring.Amount.of(samples)
        score = scoring.score(run.sampler, amount, np.asarray(run.codebook), seed)
        asked = {'step': run.step, 'seed': seed, 'amount': amount.to_dict()}
        return write_score(score, asked, workdir)
    result = retrieval.evaluate(run.sampler, source, samples, seed)
    return write(result, {'step': run.step, 'seed': seed}, workdir)


def write_score(score: scoring.Score, asked: dict, workdir: Path) -> str:
    """`score.json`, with what was asked, and a grid of each side, by the first host; the table."""
    lines = [scoring.table(score.values)]
    try:
        for side, pictures in score.shown.items() if distributed.first() else ():
            grid = workdir / f'grid_{side}.png'
            prompts = score.values['shown'][side]
            sheet = images.grid(pictures, COLUMNS, prompts)
            made_by = {'step': asked['step'], 'seed': asked['seed'], 'prompts': '\n'.join(prompts)}
            png.write(grid, sheet, made_by)
            lines.append(f'grid: {grid}')
        if distributed.first():
            text = json.dumps(asked | score.values, indent=1)
            (workdir / 'score.json').write_text(text, encoding='utf-8')
    except OSError as error:
        logging.warning('The grids and score.json cannot be written: %s', error)
    return '\n'.join(lines)


def write(result: retrieval.Result, asked: dict, workdir: Path) -> str:
    """`grid.png` and `result.json`, by the first host; the table, with the grid's path if written.

    `asked`: step and seed, kept in the grid, where each picture has the size of its drawing.
    """
    drawn = result.drawn or [np.zeros_like(truth) for truth in result.truth]  # not trained: black
    answers = result.answers or [''] * result.count
    pictures, captions = [], []
    for i in range(min(SHOWN, result.count)):
        pictures += [images.resize(result.truth[i], *drawn[i].shape[:2]), drawn[i]]
        captions += [result.labels[i], f'> {answers[i]}']
    grid = workdir / 'grid.png'
    kept = asdict(result)
    for name in ('drawn', 'truth'):
        del kept[name]
    table = result.table()
    try:
        if distributed.first():
            png.write(grid, images.grid(pictures, COLUMNS, captions), asked)
            table += f'\ngrid: {grid} (pairs: picture with its label, drawing with "> answer")'
            (workdir / 'result.json').write_text(json.dumps(kept, indent=1), encoding='utf-8')
    except OSError as error:
        logging.warning('grid.png or result.json cannot be written: %s', error)
    return table
