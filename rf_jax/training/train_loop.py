"""A run: build it from the config, start or resume, train, save (design rules 9 and 10)."""

import contextlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import jax
import numpy as np
from absl import logging

import rf_jax
from rf_jax.data import captions, pipeline, source_list
from rf_jax.data.tokenizer import KINDS, Tokenizer, parse_tokenizer
from rf_jax.runtime import (
    checkpoint,
    compilation,
    distributed,
    goodput,
    mesh,
    metrics,
    paths,
    profiling,
    sharding,
    storage,
    workdir,
)
from rf_jax.runtime.errors import require
from rf_jax.training import (
    base_weights,
    checks,
    ema,
    initial_weights,
    jitted,
    lora,
    run_tokenizer,
    state,
    validation,
    weight_sources,
)
from rf_jax.training.step_metrics import StepMetrics


@dataclass(kw_only=True)
class Run(jitted.Programs):
    """A training run: its programs, and the data that they run on.

    `stopped`: whether a signal ended the last `train`, even at the last step.
    """

    workdir: paths.AnyPath
    tokenizer: Tokenizer
    batches: pipeline.Batches
    held_out: pipeline.Batches | None  # of `validation.sources`
    goodput: goodput.Goodput
    data: str  # source_list.summary
    stopped: bool = False

    def put(
        self, batch: Mapping[str, np.ndarray], stop: bool | None = None
    ) -> dict[str, jax.Array]:
        """Puts a batch on the devices, with rows sharded over the data axes.

        `stop`: for the train step, whether this process was asked to stop. With several processes
        it travels with the batch, and comes back in the metrics of the step.
        """
        rows, count = self.batches.rows, self.config.data.batch_size
        found = {
            name: mesh.put_rows(self.mesh, array, rows, count) for name, array in batch.items()
        }
        if stop is not None and jax.process_count() > 1:
            found['stop'] = mesh.put_flag(self.mesh, stop)
        return found


def with_absolute_paths(config):
    """A copy of the config with absolute paths in `data.sources`, `validation.sources` and, if its
    checkpoints need those weights, `initialise_from`.

    So a run can be evaluated or resumed from any working directory.
    """
    config = config.copy_and_resolve_references()
    for group in (config.data, config.validation):
        group.sources = source_list.with_absolute_paths(group.sources)
    if lora.enabled(config):
        config.initialise_from = weight_sources.with_absolute_paths(config)
    return config


def build(
    config,
    folder: str | os.PathLike,
    devices=None,
    objective_of: Callable | None = None,
) -> Run:
    """A run without its state, for a workdir; `objective_of` as in `jitted.build`. Raises UserError
    for a config that cannot run.
    """
    folder = paths.anywhere(folder, '--workdir')
    spent = goodput.Goodput(folder)
    mesh_, rows = checks.start(config, devices)
    # The first process decides: a file system may show another an older listing, and the branches
    # exchange values.
    started = distributed.broadcast(lambda: str(checkpoint.exists_in(folder)).encode()) == b'True'
    if started:  # the run goes on from its own
        checks.check_version(folder)
        checks.check_command(config, folder)
        checks.check_adapters(config, folder)
    else:
        initial_weights.check(config)
    config = with_absolute_paths(config)
    workdir.check_writable(folder)
    distributed.check_shared(folder)
    compilation.use_cache(config.compilation_cache)
    open_sources = partial(source_list.build, config.data.sources, config.data.max_pixels)
    one_first = source_list.caches_metadata(config.data.sources)
    found = distributed.main_first(open_sources) if one_first else open_sources()
    data = source_list.summary(found)
    distributed.check_same(data, 'data.sources')
    tokenizer = parse_tokenizer(
        distributed.broadcast(lambda: run_tokenizer.find(config, folder, found).model_bytes)
    )
    if one_first:  # the index of shards, which needs the tokenizer
        open_shards = partial(source_list.open_shards, found, tokenizer, config.data)
        distributed.check_same(distributed.main_first(open_shards), 'data.sources')
    distributed.connect(mesh_)
    process = jax.process_index()
    require(process in rows, f'process {process} has none of the devices of the run')
    batches = pipeline.Batches(config, found, tokenizer, rows[process])
    held_out = validation.open_batches(config, tokenizer, rows[process])
    if distributed.is_main():
        captions.warn_of_truncation(found, tokenizer, config.data)
    built = jitted.build(config, tokenizer.size, mesh_, objective_of=objective_of)
    own = {'workdir': folder, 'tokenizer': tokenizer, 'batches': batches, 'goodput': spent}
    return Run(**vars(built), **own, data=data, held_out=held_out)


def start_state(run: Run, checkpoints: checkpoint.Checkpoints) -> tuple[int, state.State]:
    """(steps done, state): 1. from the run's own newest checkpoint that restores, 2. at step 0 with
    weights of other runs or pretrained ones (`initialise_from`), 3. newly initialised.
    """
    total = run.config.steps
    restored = checkpoints.restore(run.abstract.saved())
    if restored:
        if distributed.is_main():
            checks.warn_of_changes(run.config, run.workdir)
            checks.warn_of_other_data(run.data, run.workdir)
        logging.info('Resumed %s at step %d of %d', run.workdir, restored[0], total)
        if restored[0] >= total:
            logging.info('Nothing to train; raise steps (--config.steps) to continue')
        return restored[0], base_weights.beside(run, restored[1])
    if not weight_sources.listed(run.config):
        if distributed.is_main():
            checks.warn_of_new_weights(run.config)
        logging.info('Started %s from new weights, %d steps', run.workdir, total)
        return 0, run.initialise()
    current, sources = initial_weights.from_sources(run)
    for source in sources:
        logging.info('Started %s, %d steps, from %s', run.workdir, total, source)
        checks.warn_of_source_run(run.config, source.folder, source.step)
    if distributed.is_main():
        weight_sources.keep(sources, run.workdir)
    base_weights.record(run, sources)
    return 0, current


def write_start(run: Run) -> None:
    """Writes what is needed to reopen the run: config, tokenizer, versions, parameters."""
    if distributed.is_main():
        for other in KINDS.keys() - {run.tokenizer.file}:  # of a start with another config
            storage.delete(run.workdir / other)
    versions = {'rf_jax': rf_jax.__version__, 'jax': jax.__version__,
                'tokenizer_sha256': run.tokenizer.checksum, 'data': run.data}  # fmt: skip
    workdir.write_run_files(
        run.workdir,
        {
            'config.json': run.config.to_json_best_effort(indent=2),
            run.tokenizer.file: run.tokenizer.model_bytes,
            'version.json': json.dumps(versions, indent=2),
            'parameters.txt': sharding.overview(run.abstract.params),
        },
    )


# `feed(run, start, metrics) -> next_batch(state)`, called before every step from `start` on.
Feed = Callable[[Run, int, StepMetrics], Callable[[state.State], Mapping[str, np.ndarray]]]


def from_batches(run: Run, start: int, metrics: StepMetrics) -> Callable:
    """The batches of `run.batches`, prefetched."""
    batches = run.batches.iterate(start, run.config.steps)

    def next_batch(_: state.State):
        with metrics.waiting():
            return next(batches)

    return next_batch


def train(
    run: Run,
    on_samples: Callable | None = None,
    traced: tuple[int, int] | None = None,
    feed: Feed | None = None,
    unit: int = 1,
) -> state.State:
    """Trains to `config.steps`, resuming from the newest checkpoint that restores.

    `on_samples(step, ema, writer)` generates samples while training. `traced`: first and last step
    of a profile. `feed`: where batches come from, by default `run.batches`; a run can go on at
    multiples of `unit` steps. Ctrl-C and SIGTERM in any process save and return the current state
    (see its `step`). Raises UserError for a non-finite state, which is never saved, and if the last
    checkpoint cannot be written.
    """
    config, spent, run.stopped = run.config, run.goodput, False
    c = config.checkpoint
    checkpoints = checkpoint.Checkpoints(
        run.workdir / 'checkpoints', c.every, c.keep, c.keep_period
    )
    start, current = start_state(run, checkpoints)
    write_start(run)
    logging.info('%s', sharding.overview(current.params))
    covered = ema.window_at_end(config)
    logging.info('EMA of the weights: covers %.0f of %d steps at the end', covered, config.steps)
    with contextlib.ExitStack() as stack:
        stack.callback(checkpoints.close)
        writer = metrics.MetricWriter(run.workdir, start, checkpoints.claim.check)
        stack.callback(writer.close)
        stop = stack.enter_context(metrics.StopSignal())
        trace = stack.enter_context(profiling.Profile(run.workdir / 'profile', traced))
        spent.resumed(start)
        step_metrics = StepMetrics(
            config, run.tokenizer.size, run.batches, writer, start, spent, run.terms
        )
        next_batch = (feed or from_batches)(run, start, step_metrics)

        def validate(number: int, may_stop: bool) -> bool:
            """Whether a signal broke it off: the state is to be saved first."""

            def asked() -> bool:
                return may_stop and distributed.on_any(stop.requested)

            step_metrics.flush()
            with spent.phase('evaluation'), step_metrics.progress.pause():
                found = validation.measure(run, current, number, asked)
            if found:
                writer.scalars(number, found)
            return not found

        for number in range(start + 1, config.steps + 1):
            batch = next_batch(current)
            with trace.step(number), spent.phase('compile' if number == start + 1 else 'steps'):
                current, values = run.train_step(current, run.put(batch, stop.requested))
            trace.wait_for(values)
            step_metrics.push(number, values, batch)  # reads the previous step while this one runs
            # Read once, since a signal may arrive at any time.
            may_stop = not number % unit
            stopping = distributed.agreed(stop.requested, step_metrics.stop) and may_stop
            if validation.due(config, number) and not stopping:
                # Before the checkpoint: a run that resumes there has the line.
                stopping = validate(number, may_stop)
            last = number == config.steps or stopping
            if last or checkpoints.due(number):
                step_metrics.flush()
                checks.raise_unless_finite(number, current)
                with spent.phase('checkpoint'):
                    writer.flush()
                    checkpoints.save(number, current.saved())
                spent.save(number, distributed.is_main())
            every = config.log.samples_every
            if on_samples and every and number % every == 0 and not last:
                step_metrics.flush()
                with spent.phase('evaluation'), step_metrics.progress.pause():
                    on_samples(number, run.average(current), writer)
            if stopping:
                run.stopped = True
                with spent.phase('checkpoint'):
                    checkpoints.ensure(number, current.saved())
                if validation.due(config, number):
                    validate(number, False)
                logging.warning('Stopped by a signal at step %d, saved; run it again', number)
                break
        step_metrics.flush()
        with spent.phase('checkpoint'):
            checkpoints.ensure(int(current.step), current.saved())
        # A signal during the last step or its save, after `stopping` was read, counts too.
        run.stopped = run.stopped or distributed.on_any(stop.requested)
        spent.save(int(current.step), distributed.is_main())
    return current
