"""Arms of post-training side by side, from the scores of their runs.

    python -m rf_jax.study.post_training --arm=before=runs/pixel_rf \\
        --arm=representation=runs/rep_0,runs/rep_1 --out=docs/x

Every folder has the `score.json` of `rf_jax.evaluate`, the `unified_bench.json` of
`rf_jax.unified_bench`, or both; the folders of an arm are its seeds. `report.md` and `results.csv`
hold the rates of prompts, questions, maps, riddles and images that come back, with intervals over
seeds and trials.
"""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from rf_jax.evaluation import intervals
from rf_jax.evaluation.intervals import Outcomes
from rf_jax.runtime import paths, workdir
from rf_jax.runtime.errors import UserError, require

SIDES = ('seen', 'held_out', 'understanding')
_FILES = {'score': 'rf_jax.evaluate', 'unified_bench': 'rf_jax.unified_bench'}


def parse(texts: Sequence[str]) -> dict[str, list[str]]:
    """{arm: folders} of NAME=FOLDER[,FOLDER...]. Raises UserError."""
    found = {}
    for text in texts:
        name, equals, folders = text.partition('=')
        require(
            name and equals and folders,
            f'--arm={text}: expected NAME=FOLDER, or NAME=FOLDER,FOLDER for several seeds',
        )
        require(
            name not in found,
            f'--arm={text}: there are two of the name {name!r}; commas separate the seeds of an '
            f'arm, as in --arm={name}=FOLDER,FOLDER',
        )
        found[name] = [str(paths.local(each, f'--arm={name}')) for each in folders.split(',')]
    return found


def load(folder: str) -> dict:
    """The score of a run, with `unified_bench` if that was computed. Raises UserError."""
    files = {name: Path(folder) / f'{name}.json' for name in _FILES}
    found = {name: _read(path) for name, path in files.items() if path.exists()}
    commands = ' or '.join(f'python -m {command}' for command in _FILES.values())
    require(found, f'{folder} has no {" or ".join(map(str, files.values()))}; run {commands} first')
    bench = found.get('unified_bench', {})
    score = found.get('score', {'generation': {}, 'understanding': {}, 'step': bench.get('step')})
    return score | {'unified_bench': bench}


def _read(path: Path) -> dict:
    try:
        found = json.loads(path.read_text(encoding='utf-8'))
    except OSError as error:
        raise UserError(f'{path}: {error.strerror}') from None
    except ValueError as error:
        raise UserError(f'{path} is not JSON: {error}') from None
    require(isinstance(found, dict) and 'step' in found, f'{path} holds no scores')
    return found


def returned(scores: Sequence[Mapping]) -> dict[str, Outcomes]:
    """{measure in [0, 1]: outcomes} of the images that the seeds of an arm got back."""
    found: dict[str, list] = {}
    for bench in (score.get('unified_bench') for score in scores):
        for name, values in bench['similarity'].items() if bench else ():
            found.setdefault(f'similarity, {name}', []).append(values)
        for name in ('recovered', 'exact') if bench else ():
            found.setdefault(name, []).append(bench.get(name, []))
    return _trials(found)


def thoughts(scores: Sequence[Mapping]) -> dict[str, Outcomes]:
    """{measure: outcomes} of the riddles and redrawn images of the seeds of an arm."""
    found: dict[str, list] = {}
    for talks in (score.get('conversations', {}) for score in scores):
        for side, entry in talks.get('riddles', {}).items():
            for what, values in entry.items():
                found.setdefault(f'{side} prompts, {what}', []).append(values)
        for name, values in talks.get('redraw', {}).items():
            found.setdefault(f'redraw, {name}', []).append(values)
    return _trials(found)


def _trials(found: Mapping[str, Sequence]) -> dict[str, Outcomes]:
    """Outcomes of {measure: for each seed, a value in [0, 1] of each trial}. Raises UserError if
    the seeds have not equally many.
    """
    for name, values in found.items():
        counts = [len(each) for each in values]
        require(
            len(set(counts)) == 1,
            f'{name}: the seeds of an arm were evaluated on {counts} trials; evaluate all on '
            'equally many',
        )
    return {
        name: {
            name: intervals.Trials(np.array(values, float), np.ones(len(values[0])), len(values[0]))
        }
        for name, values in found.items()
        if values[0]
    }


def _minus(found: Outcomes, reference: Outcomes | None) -> str:
    """'; ' and the difference, trial by trial; '' without a reference of equally many trials. An
    arm of one seed is compared with each seed of the other; other numbers must be equal.
    """
    if not reference:
        return ''
    pair = [trials for each in (found, reference) for trials in each.values()]
    seeds, counts = ({each.correct.shape[axis] for each in pair} for axis in (0, 1))
    if len(counts) > 1 or len(seeds - {1}) > 1:
        return ''
    shape = max(seeds), *counts

    def repeated(outcomes: Outcomes) -> Outcomes:
        return {k: replace(v, correct=np.resize(v.correct, shape)) for k, v in outcomes.items()}

    return f'; {intervals.difference(repeated(found), repeated(reference))}'


def outcomes(scores: Sequence[Mapping], side: str) -> Outcomes:
    """Of the seeds of an arm; {} if it was not evaluated. Raises UserError."""
    return intervals.gather([(None, score) for score in scores], side)


def maps(scores: Sequence[Mapping]) -> dict[tuple[str, str], list[float]]:
    """{(map, measure): the mean of each seed}."""
    found: dict[tuple[str, str], list[float]] = {}
    for score in scores:
        for name, measures in score.get('maps', {}).items():
            for measure, values in measures.items():
                found.setdefault((name, measure), []).append(float(np.mean(values)))
    return found


def report(arms: Mapping[str, Sequence[Mapping]], command: str) -> str:
    """Markdown; `arms`: the scores of the seeds of each."""
    steps = '; '.join(
        f'{name} at {", ".join(sorted({str(score["step"]) for score in scores}))}'
        for name, scores in arms.items()
    )
    lines = ['# Post-training', '', f'Steps: {steps}. Rates with 95 % intervals over seeds and '
             f'trials; `{command}`.', '']  # fmt: skip
    for side in SIDES:
        rows = {name: outcomes(scores, side) for name, scores in arms.items()}
        rows = {name: found for name, found in rows.items() if found}
        if not rows:
            continue
        categories = list(dict.fromkeys(name for found in rows.values() for name in found))
        heads = ['arm', 'all', *categories, 'each seed']
        lines += [f'## {side.replace("_", " ").capitalize()}', '', _row(heads)]
        lines.append(_row(['---'] * len(heads)))
        for name, found in rows.items():
            whole = intervals.estimate(found)
            each = [f'{found[c].rate:.3f}' if c in found else '' for c in categories]
            lines.append(_row([name, str(whole), *each, _seeds(found)]))
        lines.append('')
    lines += _thoughts({name: thoughts(scores) for name, scores in arms.items()})
    lines += _bench({name: returned(scores) for name, scores in arms.items()}, arms)
    tables = {name: maps(scores) for name, scores in arms.items()}
    if any(tables.values()):
        lines += ['## Maps', '', _row(['arm', 'map', 'measure', 'mean', 'each seed'])]
        lines.append(_row(['---'] * 5))
        for name, found in tables.items():
            for (kind, measure), values in found.items():
                seeds = ' '.join(f'{value:.4f}' for value in values)
                lines.append(_row([name, kind, measure, f'{np.mean(values):.4f}', seeds]))
        lines.append('')
    return '\n'.join(lines)


def _bench(arms: Mapping[str, dict[str, Outcomes]], scores: Mapping[str, Sequence]) -> list[str]:
    """The lines about images that come back; differences are of the same images."""
    arms = {name: found for name, found in arms.items() if found}
    if not arms:
        return []
    first, reference = next(iter(arms.items()))
    heads = ['arm', 'words', *(f'{m}; minus {first}' for m in reference)]
    lines = ['## Images described and generated again', '', _row(heads)]
    lines.append(_row(['---'] * len(heads)))
    for name, found in arms.items():
        benches = filter(None, (score['unified_bench'] for score in scores[name]))
        words = np.mean([np.mean(bench['words']) for bench in benches])
        cells = []
        for measure in reference:
            each = found.get(measure)
            cells.append(str(intervals.estimate(each)) if each else '')
            if each and name != first:
                cells[-1] += _minus(each, reference[measure])
        lines.append(_row([name, f'{words:.1f}', *cells]))
    return [*lines, '']


def _thoughts(arms: Mapping[str, dict[str, Outcomes]]) -> list[str]:
    """The lines about riddles and redrawn images; differences are from the first arm."""
    arms = {name: found for name, found in arms.items() if found}
    if not arms:
        return []
    first, *others = arms
    heads = ['measure', first, *(f'{name}; minus {first}' for name in others), 'each seed']
    lines = ['## Thinking', '', _row(heads), _row(['---'] * len(heads))]
    for measure in dict.fromkeys(measure for found in arms.values() for measure in found):
        cells, seeds = [], []
        for found in (arms[name].get(measure) for name in arms):
            cells.append(str(intervals.estimate(found)) if found else '')
            seeds.append(_seeds(found) if found else '-')
            if found and len(cells) > 1:
                cells[-1] += _minus(found, arms[first].get(measure))
        lines.append(_row([measure, *cells, ' / '.join(seeds)]))
    return [*lines, '']


def _seeds(found: Outcomes) -> str:
    return ' '.join(f'{rate:.3f}' for rate in intervals.per_seed(found))


def _row(cells: Sequence[str]) -> str:
    return f'| {" | ".join(cells)} |'


def write(arms: Mapping[str, Sequence[str]], out: Path, command: str) -> None:
    """Writes the report and the rates."""
    scores = {name: [load(folder) for folder in folders] for name, folders in arms.items()}
    workdir.check_writable(out, 'out')
    (out / 'report.md').write_text(report(scores, command), encoding='utf-8')
    with open(out / 'results.csv', 'w', newline='', encoding='utf-8') as file:
        table = csv.writer(file, lineterminator='\n')
        table.writerow(['arm', 'seed', 'side', 'category', 'trials', 'right'])
        for name, seeds in scores.items():
            for number, score in enumerate(seeds):
                for side, categories in intervals.sides(score).items():
                    for category, entry in categories.items():
                        right, trials = np.sum(entry['correct']), np.size(entry['correct'])
                        table.writerow([name, number, side, category, trials, int(right)])
                for measure, found in thoughts([score]).items():
                    (values,) = found[measure].correct
                    table.writerow(
                        [name, number, 'thinking', measure, len(values), int(values.sum())]
                    )


def _main() -> None:
    from absl import flags

    from rf_jax.runtime import cli

    flags.DEFINE_multi_string('arm', None, 'NAME=FOLDER[,FOLDER...], once for each arm.')
    flags.DEFINE(cli.PATH, 'out', 'post_training', 'Folder to write.')

    def main(argv):
        del argv
        given = flags.FLAGS
        command = 'python -m rf_jax.study.post_training ' + ' '.join(
            f'--arm={arm}' for arm in given.arm
        )
        write(parse(given.arm), Path(given.out), command)

    cli.run(main, required=['arm'])


if __name__ == '__main__':
    _main()
