"""A prepared set from start to end, or from where it was interrupted."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING

from absl import logging

from rf_jax.data.records import BadImage, Skips
from rf_jax.data.sentencepiece_tokenizer import SentencePieceTokenizer
from rf_jax.data.shards import index, set_file
from rf_jax.data.shards.set_file import KINDS, PreparedSet, Shard
from rf_jax.data.tokenizer import KINDS as TOKENIZERS
from rf_jax.data.tokenizer import Tokenizer, parse_tokenizer
from rf_jax.preparation import cleaning, files, report, shuffling, source_flag
from rf_jax.preparation.progress import Progress
from rf_jax.preparation.report import SUFFIX, Report
from rf_jax.preparation.settings import Settings
from rf_jax.preparation.shuffling import Plan
from rf_jax.preparation.unit import Unit
from rf_jax.runtime import storage
from rf_jax.runtime.errors import UserError

if TYPE_CHECKING:
    from rf_jax.preparation.beam_run import Runner

_SAMPLED_UNITS = 16  # to train a tokenizer on
_SAMPLED = 50_000  # samples of these
_NAMED = 5  # units that an error names
_THREADS = 32  # looking waits for a bucket


def prepare(
    settings: Settings, out: str, tokenizer: Tokenizer | None, vocabulary: int, runner: 'Runner'
) -> PreparedSet:
    """Writes the set of these settings into the folder `out`, or what is missing of it.

    Without a tokenizer, one of at most `vocabulary` tokens is trained. Raises UserError.
    """
    folder = f'{out}/{cleaning.FOLDER}'
    if storage.exists(f'{out}/{set_file.NAME}'):
        _refuse_changed_input(out, settings)
    else:
        units = source_flag.units(settings.source)  # a typing error does not claim the folder
        settings.claim(out, source_flag.digest(units), _continues(folder, units))
        for each in (out, folder):
            files.remove_unfinished(each)
        tokenizer = _kept_tokenizer(out, tokenizer, units, vocabulary)
        reports = _clean(out, units, settings, tokenizer, runner)
        plan = Plan.of(reports, settings.seed, settings.shard_megabytes)
        made = _shuffle(out, plan, tokenizer, runner)
        skips = Skips()
        for each in reports.values():
            skips.add_all(each.left_out, each.examples)
        found = PreparedSet(
            made,
            tokenizer.file,
            tokenizer.checksum,
            settings.size,
            dict(skips.counts),
            skips.examples,
        )
        skips.log(settings.source, sum(map(found.samples, KINDS)))
        _log_ignored(settings.source, reports.values())
        set_file.write(out, found)
    found = set_file.read(out)  # raises before anything is removed
    storage.delete_folder(folder)
    for each in (out, folder):
        files.remove_temporary_folder(each)
    return found


def _refuse_changed_input(out: str, settings: Settings) -> None:
    """Raises UserError if the set in a folder is of other settings, or its input has changed."""
    before = settings.check(out)
    try:
        now = source_flag.digest(source_flag.units(settings.source)) if before else ''
    except (OSError, UserError) as error:  # the set may have outlived its input
        logging.warning('%s: its input cannot be compared with that of the set: %s', out, error)
        return
    if now != before:
        raise UserError(
            f'{out} is finished, but its input has changed since: --source={settings.source} now '
            'has other files or sizes; choose another --out'
        )


def _continues(folder: str, units: list[Unit]) -> bool:
    """Whether the work that was begun in a folder, if any, is of some of these units."""
    try:
        before = source_flag.read_units(f'{folder}/{cleaning.UNITS}')
    except UserError:  # a ValueError too
        raise
    except (FileNotFoundError, ValueError):  # the machine may have stopped while it was written
        return True
    return not {each.id for each in before}.isdisjoint(each.id for each in units)


def _kept_tokenizer(
    out: str, given: Tokenizer | None, units: list[Unit], vocabulary: int
) -> Tokenizer:
    """The tokenizer of the set, in whose folder it is written the first time."""
    for name in TOKENIZERS:
        if storage.exists(f'{out}/{name}'):
            kept = parse_tokenizer(storage.read(f'{out}/{name}'))
            if given is not None and given.checksum != kept.checksum:
                raise UserError(
                    f'{out}/{name} is another tokenizer than --tokenizer: remove that file, or '
                    'choose another --out'
                )
            logging.info('using the tokenizer %s/%s', out, name)
            return kept
    if given is None:
        logging.info('training a tokenizer: --tokenizer takes one')
        texts = list(_texts(units))
        try:
            given = SentencePieceTokenizer.train(texts, vocabulary)
        except UserError as error:  # names fields of a config; here they are flags
            text = str(error).replace('tokenizer.vocab_size', '--vocabulary')
            raise UserError(text.replace('data.sources', '--source')) from None
    storage.write(f'{out}/{given.file}', given.model_bytes)
    return given


def _texts(units: list[Unit]) -> Iterator[str]:
    """Of the first samples of units that are spread evenly over all. Raises UserError."""
    chosen = units[:: -(-len(units) // _SAMPLED_UNITS)]
    for unit in chosen:
        samples = islice(source_flag.samples(unit, Counter()), _SAMPLED // len(chosen))
        for _, read in samples:
            try:
                found = read()
            except UserError:  # a ValueError too
                raise
            except (BadImage, ValueError):  # counted when the unit is cleaned
                continue
            yield from found.texts()


def _clean(
    out: str, units: list[Unit], settings: Settings, tokenizer: Tokenizer, runner: 'Runner'
) -> dict[str, Report]:
    """{id of a unit: its report}, in the order of the units. Raises UserError."""
    folder = f'{out}/{cleaning.FOLDER}'
    source_flag.write_units(f'{folder}/{cleaning.UNITS}', units)
    reports: dict[str, Report] = {}

    def look() -> tuple[int, int]:
        there = set(storage.names(folder))
        new = [u.id for u in units if u.id not in reports and f'{u.id}{SUFFIX}' in there]
        found = report.read_all({name: f'{folder}/{name}{SUFFIX}' for name in new})
        reports.update((name, Report(**each)) for name, each in found.items())
        return len(reports), sum(sum(each.samples.values()) for each in reports.values())

    look()
    for name in [name for name, each in reports.items() if each.error]:
        del reports[name]  # perhaps its file has been copied again
        storage.delete(f'{folder}/{name}{SUFFIX}')
    waiting = [number for number, unit in enumerate(units) if unit.id not in reports]
    with Progress('cleaning: input', len(units), look):
        runner.run(cleaning.Cleaning(out, settings, tokenizer.file), waiting)
    look()
    bad = [each.error for each in reports.values() if each.error]
    if bad:
        more = f' (and {len(bad) - _NAMED} more)' if len(bad) > _NAMED else ''
        raise UserError('; '.join(bad[:_NAMED]) + more)
    if not any(sum(each.samples.values()) for each in reports.values()):
        skips = Skips()
        for each in reports.values():
            skips.add_all(each.left_out, each.examples)
        raise UserError(f'--source={settings.source} has no usable sample; left out: {skips}')
    return {unit.id: reports[unit.id] for unit in units}


def _log_ignored(source: str, reports: Iterable[Report]) -> None:
    ignored = Counter()
    for each in reports:
        ignored.update(each.ignored)
    if ignored:
        fields = ', '.join(f'{name} (of {count:,})' for name, count in ignored.most_common())
        logging.warning('%s: kept samples without fields that cannot be used: %s', source, fields)


def _shuffle(
    out: str, plan: Plan, tokenizer: Tokenizer, runner: 'Runner'
) -> dict[str, list[Shard]]:
    """The shards of each of KINDS."""
    folder = f'{out}/{cleaning.FOLDER}'
    _forget_other_plans(folder, plan)
    storage.write(f'{folder}/{shuffling.PLAN}', plan.to_json().encode())
    names = plan.names()
    made: dict[tuple[str, int], Shard] = {}

    def look() -> tuple[int, int]:
        there = set(storage.names(folder))
        paths = {name: shuffling.done_path(out, plan, *name) for name in names if name not in made}
        new = {name: path for name, path in paths.items() if path.rpartition('/')[2] in there}
        found = report.read_all(new)
        made.update((name, Shard(**each)) for name, each in found.items())
        return len(made), sum(shard.samples for shard in made.values())

    look()
    with ThreadPoolExecutor(_THREADS) as pool:
        whole = list(pool.map(lambda shard: _is_whole(out, shard), list(made.values())))
    for name in [name for name, good in zip(list(made), whole) if not good]:
        del made[name]
    waiting = [number for number, name in enumerate(names) if name not in made]
    with Progress('shuffling: shard', len(names), look):
        runner.run(shuffling.Shuffling(out, tokenizer.checksum), waiting)
    look()
    kept = {kind: [made[n] for n in names if n[0] == kind and made[n].samples] for kind in KINDS}
    _remove_others(out, {shard.name for shards in kept.values() for shard in shards})
    return kept


def _forget_other_plans(folder: str, plan: Plan) -> None:
    """Of an input that has changed since: this plan's shards overwrite theirs."""
    for name in storage.names(folder):
        if re.fullmatch(shuffling.DONE, name) and not name.startswith(plan.digest):
            storage.delete(f'{folder}/{name}')


def _remove_others(out: str, kept: set[str]) -> None:
    """Removes the shards of a plan that was interrupted before the input changed."""
    for name in storage.names(out):
        shard = name.removesuffix(index.SUFFIX)
        if re.fullmatch(shuffling.NAMES, shard) and shard not in kept:
            storage.delete(f'{out}/{name}')


def _is_whole(out: str, shard: Shard) -> bool:
    path = f'{out}/{shard.name}'
    if not shard.samples:
        return True
    try:
        indexed = len(index.read(index.path_of(path)))
        return storage.size(path) == shard.bytes and indexed == shard.samples
    except (FileNotFoundError, UserError):
        return False


def summary(found: PreparedSet) -> str:
    """What a set holds, in one line."""
    parts = [
        f'{found.samples(kind):,} {kind} in {len(shards)} shards'
        for kind, shards in found.shards.items()
        if shards
    ]
    size = sum(shard.bytes for shards in found.shards.values() for shard in shards)
    left = sum(found.left_out.values())
    return f'{" and ".join(parts)}, {size / 2**30:.2f} GiB; {left:,} left out'
