"""Validation: the losses of data that is not trained on, under the averaged weights.

They are those of `validation.batches` batches of `validation.sources`, packed as in training. The
batches and their noise are the same every time, so differences are those of the weights.
"""

import contextlib
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from rf_jax.data import pipeline, source_list
from rf_jax.data.batch import Batch
from rf_jax.data.tokenizer import Tokenizer
from rf_jax.models import microbatches
from rf_jax.models.unified import Unified
from rf_jax.runtime import distributed
from rf_jax.runtime.errors import UserError
from rf_jax.training import losses, step
from rf_jax.training.state import State


def check(config: ConfigDict) -> None:
    """Raises UserError, before anything is read, for sources that cannot be."""
    if config.validation.sources:
        with _naming_the_field():
            source_list.check(config.validation.sources)


def due(config: ConfigDict, number: int) -> bool:
    """Whether the losses are measured after this step."""
    c = config.validation
    return bool(c.sources) and (number % c.every == 0 or number == config.steps)


def program(config: ConfigDict, model: Unified) -> Callable:
    """`validate(state, batch, number) -> (means, counts)` of the terms in batch `number`, pure; the
    sums and counts of the flow loss by time are among the means. A count may be 0.
    """
    work = step.pretraining(config, model)
    loss = step.loss_function(config, model, work.terms)

    def validate(state: State, batch: Batch, number: jax.Array):
        whole = state.whole()
        # A negative step is none of training: the noise differs from that of every train step, and
        # no prototype is initialised again.
        fixed = whole.replace(step=-1 - number, skipped=0, params=whole.ema)
        batch, _, _ = work.prepare(fixed, batch)
        counts = losses.counts(work.terms, batch)

        def of_part(rows, part):
            return loss(fixed.params, work.complete(fixed, rows, part), counts)[1]

        means = microbatches.summed(of_part, batch, config.optimizer.grad_accum_steps)
        # Not `counts`, which are at least 1: a batch without tokens of a term must not count.
        return means, {name: batch[term.weight].sum() for name, term in work.terms.items()}

    return validate


def open_batches(
    config: ConfigDict, tokenizer: Tokenizer, rows: np.ndarray
) -> pipeline.Batches | None:
    """Batches of `validation.sources`, None without one. Raises UserError."""
    own = config.copy_and_resolve_references()
    own.data.update(sources=config.validation.sources, weights=(), lanes=1, workers=0)
    if not own.data.sources:
        return None
    with _naming_the_field():
        found = distributed.main_first(
            partial(source_list.build, own.data.sources, own.data.max_pixels)
        )
        shards = distributed.main_first(
            partial(source_list.open_shards, found, tokenizer, own.data)
        )
        distributed.check_same(f'{source_list.summary(found)}; {shards}', 'data.sources')
        return pipeline.Batches(own, found, tokenizer, rows)


@contextlib.contextmanager
def _naming_the_field() -> Iterator[None]:
    """Errors of a source name the field that it is in, and do not advise to train another task."""
    try:
        yield
    except UserError as error:
        text = str(error).replace('data.sources', 'validation.sources')
        text = re.sub(r'set data\.tasks\.\w+=0 or (?=add a source)', '', text)
        raise type(error)(text) from None


def measure(
    run, state: State, number: int, asked: Callable[[], bool] = lambda: False
) -> dict[str, float]:
    """{'validation/loss', 'validation/loss/TERM'} after step `number`: means over all tokens of the
    batches, logged; NaN for a term without any, which the whole loss leaves out. {} if `asked()`
    before one of the batches. `run`: a `train_loop.Run`.
    """
    totals, counts, bands = Counter(), Counter(), Counter()
    with _naming_the_field():
        batches = run.held_out.iterate(0, run.config.validation.batches)
        for i, batch in enumerate(batches):
            if asked():
                return {}
            means, counted = jax.device_get(run.validate(state, run.put(batch), i))
            for name, count in counted.items():
                totals[name] += float(means[name]) * float(count)
                counts[name] += float(count)
            bands.update({k: float(v) for k, v in means.items() if k.startswith('flow_')})
    means = {name: total / counts[name] if counts[name] else math.nan
             for name, total in totals.items()}  # fmt: skip
    known = {name: mean for name, mean in means.items() if counts[name]}
    loss = sum(run.config.losses[name] * mean for name, mean in known.items())
    means |= losses.band_means(bands) if 'flow' in means else {}
    shown = ''.join(f' | {name} {mean:.4g}' for name, mean in known.items())
    logging.info('Validation after step %d: loss %.4g%s', number, loss, shown)
    return {'validation/loss': loss} | {f'validation/loss/{n}': m for n, m in means.items()}
