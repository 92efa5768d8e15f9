"""How fast one core makes batches of a run's data, by stages, and what that means for a pod."""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice

from ml_collections import ConfigDict

from rf_jax.data import lanes, layout, source_list
from rf_jax.data.mixture import Example
from rf_jax.data.pipeline import Batches
from rf_jax.data.records import BadImage
from rf_jax.planning import packing_stats
from rf_jax.runtime.errors import require
from rf_jax.training import run_tokenizer

PLAN, READ, TEXT, DECODE, PACK = 'plan', 'read', 'text', 'decode and resize', 'pack'

_BUSY = 0.5  # of a step, at most, that one interpreter may be busy with batches


@dataclass(frozen=True)
class Stage:
    """Seconds a sample: of the processor, and in all, with waiting for a disk or a bucket."""

    name: str
    cpu: float
    wall: float


@dataclass(frozen=True)
class Rates:
    """`samples`: how many were measured; `per_step`: those of a step on one host."""

    stages: Sequence[Stage]
    samples: int
    per_step: float

    @property
    def cpu(self) -> float:
        """Processor seconds a sample."""
        return sum(stage.cpu for stage in self.stages)

    @property
    def wall(self) -> float:
        return sum(stage.wall for stage in self.stages)


def batches_of(config: ConfigDict, hosts: int) -> Batches:
    """The batches of the first of these hosts. Raises UserError as a start does."""
    require(
        lanes.count(config.data) % hosts == 0,
        f'--hosts={hosts} must divide the {lanes.count(config.data)} lanes of data.lanes: a host '
        'has whole lanes',
    )
    sources = source_list.build(config.data.sources, config.data.max_pixels)
    tokenizer = run_tokenizer.of_config(config, sources)
    return Batches(config, sources, tokenizer, range(config.data.batch_size // hosts))


def measure(batches: Batches, samples: int) -> Rates:
    """The rates of the first examples of a run, at least that many, on one thread."""
    planned = packing_stats.measure(batches.plan, samples)
    one = planned.seconds / planned.examples
    rows = list(_rows(batches, samples))
    examples = [example for row in rows for example in row]
    total = len(examples)
    stages = [Stage(PLAN, one, one)]

    def add(name: str, work: Callable[[], object], *without: str) -> object:
        """Adds a stage: what `work` takes, without the stages that are part of it."""
        cpu, wall = time.process_time(), time.perf_counter()
        found = work()
        cpu, wall = (time.process_time() - cpu) / total, (time.perf_counter() - wall) / total
        parts = [stage for stage in stages if stage.name in without]
        cpu = max(cpu - sum(stage.cpu for stage in parts), 0.0)
        stages.append(Stage(name, cpu, max(wall - sum(stage.wall for stage in parts), 0.0)))
        return found

    if any(_shards(batches, example) for example in examples):
        add(READ, lambda: [_read(batches, example) for example in examples])
    add(TEXT, lambda: [_spans(batches, example, False) for example in examples], READ)
    done = add(DECODE, lambda: [[_spans(batches, e) for e in row] for row in rows], READ, TEXT)
    capacity, channels = dict(batches.data.capacity), batches.composer.channels
    add(PACK, lambda: [layout.make_batch([row], capacity, channels) for row in done])
    return Rates(stages, total, total / len(rows) * len(batches.rows))


def lines(rates: Rates, hosts: int, step_seconds: float) -> list[str]:
    """The report, as lines of text; `step_seconds`: what a step takes on the pod, 0 if unknown."""
    work = rates.per_step * rates.cpu
    slowest = max(rates.stages, key=lambda stage: stage.cpu)
    found = [
        f'{rates.samples:,} samples, one thread',
        f'{"":20}{"CPU ms":>10}{"wall ms":>10}{"samples/s a core":>20}',
    ]
    for name, cpu, wall in (
        *((stage.name, stage.cpu, stage.wall) for stage in rates.stages),
        ('all', rates.cpu, rates.wall),
    ):
        rate = f'{1 / cpu:,.0f}' if cpu > 1e-7 else '-'
        found.append(f'{name:20}{1e3 * cpu:10.3f}{1e3 * wall:10.3f}{rate:>20}')
    found.append(f'bottleneck: {slowest.name}, {slowest.cpu / rates.cpu:.0%} of the CPU time')
    waiting = 1 - rates.cpu / rates.wall
    if waiting > 0.5:
        found.append(f'{waiting:.0%} of the time is waiting, for storage or for other programs')
    found.append(
        f'{hosts} hosts: {rates.per_step:,.0f} samples and {work:.2f} s of one core a step a host'
    )
    if step_seconds:
        cores = work / step_seconds
        found.append(
            f'a step of {step_seconds:g} s: {cores:.2f} cores a host, so data.threads='
            f'{max(1, math.ceil(cores))} or more'
        )
        locked = work - rates.per_step * sum(s.cpu for s in rates.stages if s.name == DECODE)
        if locked > _BUSY * step_seconds:
            found.append(
                f'{locked:.2f} s of it hold the interpreter lock, which threads share: use '
                f'data.workers={math.ceil(locked / (_BUSY * step_seconds))} or more, a divisor of '
                'the lanes of a host (data.lanes)'
            )
    return found


def _rows(batches: Batches, samples: int) -> Iterator[list[Example]]:
    """Rows of the first steps with at least that many examples, whole steps."""
    found = 0
    for step in islice(count(), batches.plan.steps_per_epoch):
        rows = batches.examples(step)
        yield from rows
        found += sum(map(len, rows))
        if found >= samples:
            return


def _shards(batches: Batches, example: Example):
    """The shards that an example is in, None if its source lists its examples."""
    return getattr(batches.pools[example.task], 'shards', None)


def _read(batches: Batches, example: Example) -> None:
    shards = _shards(batches, example)
    if shards is not None:
        try:
            shards.read(example.index)
        except BadImage:
            return


def _spans(batches: Batches, example: Example, decode: bool = True) -> list[layout.Span]:
    pool = batches.pools[example.task]
    try:
        return pool.spans(example.index, example.epoch, Counter(), decode)
    except BadImage:
        return []
