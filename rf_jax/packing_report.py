"""Plan the packing without training: `python -m rf_jax.packing_report [--config=configs/emoji.py]`.

Prints the fill of every stream, CPU seconds, memory, and better capacities if there are any.
`--row_tokens=32768` finds capacities for rows of that many tokens; `--distribution=coco|laion` uses
synthetic sizes in place of the config's sources. With `--indexed=1000000000`, these are read from
index files of that many samples, as on the host of one of `data.lanes`:

python -m rf_jax.packing_report --config=configs/paper.py:joint --distribution=coco \\
    --indexed=1000000000 --samples=1000000
"""

import tempfile
import time

from absl import flags
from ml_collections import ConfigDict, config_flags

from rf_jax.data import lanes, layout, patch_grid, spans
from rf_jax.data.mixture import Mixture
from rf_jax.data.packing.plan import Plan
from rf_jax.data.tokenizer import load_tokenizer
from rf_jax.planning import data_rates, packing_stats, synthetic_set
from rf_jax.runtime import cli, metrics
from rf_jax.runtime.errors import UserError, require
from rf_jax.training import bounds, checks

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'Whose data to plan; configs/emoji.py by default.'
)
_SAMPLES = flags.DEFINE_integer('samples', 0, 'Samples to plan; 0: an epoch.', lower_bound=0)
_ROW_TOKENS = flags.DEFINE_integer(
    'row_tokens',
    0,
    "Tokens per row, divided among the streams to suit the samples; 0: the config's capacities.",
    lower_bound=0,
)
_INDEXED = flags.DEFINE_integer(
    'indexed', 0, 'Read synthetic sizes from the index of a set of that many samples.', 0
)
_DISTRIBUTION = flags.DEFINE_enum(
    'distribution', '', ['', *packing_stats.KINDS], 'Synthetic sizes of a million samples.'
)


def plan_of_sources(config: ConfigDict) -> Plan:
    """The plan of the first lane."""
    return data_rates.batches_of(config, lanes.count(config.data)).plan


def synthetic_plan(config: ConfigDict, kind: str) -> Plan:
    weights = {task: float(weight) for task, weight in config.data.tasks.items()}
    mixture = Mixture(dict.fromkeys(weights, 1_000_000), weights, config.seed)
    capacity = [config.data.capacity[name] for name in layout.SIZES]
    around = packing_stats.PLAIN
    if config.tokenizer.path:
        around = load_tokenizer(config.tokenizer.path).chat.question_and_answer
    sizes = packing_stats.SyntheticSizes(kind, config, around).sizes
    return Plan(mixture, sizes, capacity, config.data.batch_size)


def group_of(config: ConfigDict) -> int:
    """Patches stored together."""
    return patch_grid.unit(spans.pool_of(config)) ** 2


def make_plan(config: ConfigDict, kind: str, row_tokens: int) -> Plan:
    """Raises UserError if a sample does not fit into a row."""
    if row_tokens:  # measure the sizes first, with room for that many tokens in each stream
        config.data.capacity.update(dict.fromkeys(layout.SIZES, row_tokens // 4 * 4))
    try:
        plan = synthetic_plan(config, kind) if kind else plan_of_sources(config)
        if not row_tokens:
            return plan
        capacity, _ = packing_stats.recommended(plan, row_tokens, group_of(config))
        print('\n'.join(['capacities', *packing_stats.flags(capacity)]))
        return Plan(
            plan.mixture, plan.sizes_of, capacity, plan.batch_size, window=plan.most_examples
        )
    except UserError as error:
        if not row_tokens:
            raise
        raise UserError(f'--row_tokens={row_tokens}: {error}') from None
    except ValueError as error:
        raise UserError(f'{error} ({", ".join(layout.SIZES)}): see data.capacity') from None


def report(config: ConfigDict, kind: str) -> None:
    """Plans with synthetic sizes of a `kind`, or with the sources if it is ''."""
    began = time.process_time()
    plan = make_plan(config, kind, _ROW_TOKENS.value)
    print(f'CPU seconds to start   {time.process_time() - began:12.1f}')
    examples = _SAMPLES.value or round(plan.mixture.examples_per_epoch())
    # With --row_tokens, the capacities are those recommended already.
    group = 0 if _ROW_TOKENS.value else group_of(config)
    print('\n'.join(packing_stats.lines(plan, examples, group)))
    print(f'peak memory            {metrics.peak_process_gb():12.2f} GB')


def main(argv):
    del argv
    config, kind, count = _CONFIG.value, _DISTRIBUTION.value, _INDEXED.value
    bounds.check(checks.flatten(config.to_dict()))
    require(kind or not count, '--indexed needs --distribution=coco or laion')
    if not count:
        report(config, kind)
        return
    with tempfile.TemporaryDirectory() as folder:
        config.data.sources = synthetic_set.write(
            f'{folder}/set', kind, count, lanes.count(config.data), config.seed
        )
        report(config, '')


if __name__ == '__main__':
    cli.run(main, config='configs/emoji.py')
