"""What a run reports: grids and captions during training, a table and a grid at its end."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import jax
import numpy as np
from absl import logging

from rf_jax.data import contact_sheet, fitting, image_ops, source_list
from rf_jax.evaluation import code_content, retrieval, scoring
from rf_jax.evaluation.inspection import Inspector
from rf_jax.generation import guidance, inputs, token_sampling
from rf_jax.generation.placement import Placement
from rf_jax.generation.sampler import ROWS, Sampler
from rf_jax.runtime import distributed, errors, metrics, paths, sharding, storage
from rf_jax.runtime.errors import UserError
from rf_jax.training import jitted, lora
from rf_jax.training.state import State
from rf_jax.training.train_loop import Run

COLUMNS = 8
SHOWN = 24  # pairs in the grid at the end


def first_images(run: Run) -> tuple[object, Sequence[int]]:
    """The first source with images, and their numbers; (None, []) without one."""
    if not run.batches.pools.count('text_to_image'):
        return None, []
    source, _ = run.batches.pools.example('text_to_image', 0)
    return source, source_list.with_image(source)


def sampler_of(run: Run) -> Sampler:
    """A sampler of the run's model, sharded as in training; `params` are still to be set."""
    placement = Placement.of(run.mesh)
    model = placement.model(run.config, run.tokenizer.size)
    return Sampler(run.config, model, None, run.tokenizer, placement)


def while_training(run: Run) -> Callable[[int, Any, metrics.MetricWriter], None]:
    """A hook `(step, ema, writer)` that writes generated images and captions to WORKDIR/samples.

    All hosts generate together, with the EMA parameters sharded as in training; the first host
    writes.
    """
    source, numbers = first_images(run)
    rng = np.random.default_rng(run.config.seed)
    chosen = retrieval.readable(source, rng.permutation(numbers), run.config.log.samples)
    prompts = [source.record(i).captions[0] for i in chosen]
    sampler = sampler_of(run)  # compiled once, for changing parameters
    sizes = [fitting.image_size(*image.shape[:2], run.config) for image in chosen.values()]

    def show(step: int, ema: Any, writer: metrics.MetricWriter) -> None:
        if not chosen:
            return
        sampler.params = sampler.placement.params(ema)
        generated = sampler.generate(prompts, run.config.seed, sizes, number=0)
        captions = sampler.caption(list(chosen.values()))
        sampler.params = None  # the next step reuses the state's memory
        if not distributed.is_main():
            return
        sheet = contact_sheet.grid([each.image for each in generated], COLUMNS, prompts)
        writer.image(step, 'generated', sheet)
        lines = [f'{prompt} -> {caption}' for prompt, caption in zip(prompts, captions)]
        writer.text(step, 'captions', '\n\n'.join(lines))
        folder = run.workdir / 'samples'
        try:
            if storage.is_local(folder):
                folder.mkdir(exist_ok=True)
            made_by = {'step': step, 'seed': run.config.seed, 'prompts': '\n'.join(prompts)}
            image_ops.save_png(folder / f'{step:08d}.png', sheet, made_by)
            storage.write(folder / f'{step:08d}.txt', ('\n'.join(lines) + '\n').encode())
        except (OSError, UserError) as error:
            logging.warning('Cannot write the samples of step %d: %s', step, error)

    return show


def check(run: Run, memory: float | None = None) -> None:
    """Raises UserError before training if generation during or after it cannot work.

    `memory`: bytes of a device; None reads it from the device, which a CPU does not report.
    """
    config, samples = run.config, run.config.evaluation.samples
    if samples and scoring.trains_on_scenes(config):
        scoring.check(config, run.tokenizer, scoring.Amount.of(samples))
    stats = jax.local_devices()[0].memory_stats() or {}
    memory = memory or stats.get('bytes_limit')
    generates = scoring.generates(config) and first_images(run)[0] is not None
    if not memory or not generates:
        return
    size, held = jitted.nbytes_per_device, run.abstract
    average = size(run.abstract_average)
    while_training = size(held) - sum(size(getattr(held, name)) for name in config.offload)
    at_end = average  # the rest of the state is freed by then
    if lora.enabled(config):  # merged into a copy
        while_training += average
        at_end += size((held.ema, held.base))
    elif 'ema' in config.offload:
        while_training += average
    generating = copied_bytes(run) + cache_bytes(run)
    for field, value, beside in (
        ('evaluation.samples', samples, at_end),
        ('log.samples_every', config.log.samples_every, while_training),
    ):
        needed = beside + generating if value else 0.0
        if needed > memory:
            raise UserError(
                f'{field}={value}: generation needs at least {needed / 1e9:.1f} GB of a device, '
                f'which has {memory / 1e9:.1f}. Shard the model over more devices (mesh.fsdp, '
                f'mesh.tensor), or set {field}=0'
            )


def copied_bytes(run: Run) -> float:
    """Bytes on a device of the layers, which are copied to have them one by one, if they are."""
    layers = run.abstract_average['backbone']['layers']
    return 0.0 if Placement.of(run.mesh).stacked else jitted.nbytes_per_device(layers)


def cache_bytes(run: Run) -> float:
    """Bytes on a device of the KV cache of the images that are generated together."""
    sampler = sampler_of(run)
    requests = [inputs.request(run.config, '', 0)]
    options = sampler.options()
    weights = options.without_images().weights()
    contexts = weights.contexts()
    rows = inputs.generation_rows(run.config, run.tokenizer, run.model.channels, requests)
    row = rows[guidance.ALL, True]
    batch = {name: np.concatenate([array] * len(contexts)) for name, array in row.items()}
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
    sample_tokens = partial(token_sampling.sample, run.model, options)
    _, cache = jax.eval_shape(
        lambda params, batch, keys: sample_tokens(params, batch, weights, keys),
        *(run.abstract_average, batch, keys),
    )
    per_device = sampler.placement.full(ROWS) / sampler.placement.multiple
    return per_device * sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(cache))


def finish(run: Run, state: State) -> int:
    """Evaluates a run that was not stopped, logs where its time went, and gives the exit code."""
    step = int(state.step)
    if not run.stopped and run.config.evaluation.samples:
        state = state.replace(params=None, opt_state=None)  # only the EMA is evaluated
        with run.goodput.phase('evaluation'):
            _evaluate(run, state)
    run.goodput.save(step, distributed.is_main())
    logging.info('%s', run.goodput.table())
    logging.info('Peak memory %.1f GB', metrics.peak_memory_gb())
    return errors.INTERRUPTED if run.stopped else errors.DONE


def _evaluate(run: Run, state: State) -> None:
    """Errors are only logged: the training is complete and saved."""
    try:
        table = at_end(run, state)
        if distributed.is_main():
            print(table)
    except Exception as error:
        distributed.abort(error, errors.DONE)  # others may be waiting in a collective
        logging.exception(
            'The evaluation failed; the training is complete and saved. Once the cause is fixed, '
            'python -m rf_jax.evaluate --workdir=%s evaluates it',
            run.workdir,
        )


def at_end(run: Run, state: State) -> str:
    """Evaluates a finished run and writes the result and grids to its workdir.

    Returns the table to print.
    """
    sampler = sampler_of(run)
    average = run.average(state)
    sampler.params = sampler.placement.params(average)
    source, numbers = first_images(run)
    if not len(numbers):
        return 'no images: nothing to evaluate'
    samples = min(run.config.evaluation.samples, len(numbers))
    codebook = sampler.placement.gather(state.codebook)
    trained = Inspector(sampler, codebook, int(state.step))
    table = evaluate(trained, source, run.workdir, samples, run.config.seed)
    generates = run.config.data.tasks.get('text_to_image', 0) > 0
    if generates and scoring.has_codes(run.config) and not scoring.trains_on_scenes(run.config):
        ema = sharding.to_device_memory(average)
        share = code_content.codes_over_an_epoch(run, state.replace(ema=ema))
        table += f'\ncodebook: {share:.1%} of the prototypes are used over an epoch'
    return table


def evaluate(
    run: Inspector, source, workdir: paths.AnyPath, samples: int, seed: int, amount=None
) -> str:
    """Evaluates a run and writes the files; returns the table.

    A run on scenes is scored by the judge (`amount`: scoring.Amount, by default about `samples`),
    any other run by retrieval of `samples` images of the source.
    """
    if scoring.trains_on_scenes(run.sampler.config):
        amount = amount or scoring.Amount.of(samples)
        score = scoring.score(run.sampler, amount, np.asarray(run.codebook), seed)
        made_by = {'step': run.step, 'seed': seed, 'amount': amount.to_dict()}
        made_by['sampling'] = dict(run.sampler.config.sampling)
        return write_score(score, made_by, workdir)
    result = retrieval.evaluate(run.sampler, source, samples, seed)
    return write(result, {'step': run.step, 'seed': seed}, workdir)


def write_score(score: scoring.Score, made_by: dict, workdir: paths.AnyPath) -> str:
    """The first host writes `score.json`, beginning with `made_by`, a grid of each side, and one of
    images with the maps drawn of them.

    `made_by`: step, seed and amount. Returns the table.
    """
    lines = [scoring.table(score.values)]
    try:
        for side, images in score.shown.items() if distributed.is_main() else ():
            grid = workdir / f'grid_{side}.png'
            prompts = score.values['shown'][side]
            sheet = contact_sheet.grid(images, COLUMNS, prompts)
            text = {name: made_by[name] for name in ('step', 'seed')}
            image_ops.save_png(grid, sheet, text | {'prompts': '\n'.join(prompts)})
            lines.append(f'grid: {grid}')
        if score.maps.images and distributed.is_main():
            grid = workdir / 'grid_maps.png'
            sheet = contact_sheet.grid(score.maps.images, score.maps.columns, score.maps.names)
            image_ops.save_png(grid, sheet, {name: made_by[name] for name in ('step', 'seed')})
            lines.append(f'grid: {grid}')
        if distributed.is_main():
            text = json.dumps(made_by | score.values, indent=1)
            storage.write(workdir / 'score.json', text.encode())
    except (OSError, UserError) as error:
        logging.warning('Cannot write the grids and score.json: %s', error)
    return '\n'.join(lines)


def write(result: retrieval.Result, made_by: dict, workdir: paths.AnyPath) -> str:
    """The first host writes `grid.png` and `result.json`. Returns the table, with the grid's path.

    `made_by`: step and seed, kept in both. In the grid each image has the size of the generated one
    beside it, which is black if the run does not train generation.
    """
    generated = result.generated or [np.zeros_like(truth) for truth in result.truth]
    answers = result.answers or [''] * result.count
    images, captions = [], []
    for i in range(min(SHOWN, result.count)):
        images += [image_ops.resize(result.truth[i], *generated[i].shape[:2]), generated[i]]
        captions += [result.labels[i], f'> {answers[i]}']
    grid = workdir / 'grid.png'
    kept = made_by | asdict(result)
    for name in ('generated', 'truth'):
        del kept[name]
    table = result.table()
    try:
        if distributed.is_main():
            image_ops.save_png(grid, contact_sheet.grid(images, COLUMNS, captions), made_by)
            table += f'\ngrid: {grid} (pairs: image and label, generated image and "> caption")'
            storage.write(workdir / 'result.json', json.dumps(kept, indent=1).encode())
    except (OSError, UserError) as error:
        logging.warning('Cannot write grid.png and result.json: %s', error)
    return table
