"""Arms of post-training side by side, from the scores of their runs.

    python -m rf_jax.study.post_training --arm=before=runs/pixel_rf \\
        --arm=representation=runs/rep_0,runs/rep_1 --out=docs/x

Every folder has a `score.json` of `rf_jax.evaluate`; the folders of an arm are its seeds.
`report.md` and `results.csv` hold the rates of prompts, questions and maps, with intervals over
seeds and trials.
"""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from rf_jax.evaluation import intervals
from rf_jax.evaluation.intervals import Outcomes
from rf_jax.runtime.errors import UserError, require

SIDES = ('seen', 'held_out', 'understanding')


def parse(texts: Sequence[str]) -> dict[str, list[str]]:
    """{arm: folders} of NAME=FOLDER[,FOLDER...]. Raises UserError."""
    found = {}
    for text in texts:
        name, equals, folders = text.partition('=')
        require(
            name and equals and folders,
            f'--arm={text}: expected NAME=FOLDER, or NAME=FOLDER,FOLDER for several seeds',
        )
        found[name] = folders.split(',')
    return found


def load(folder: str) -> dict:
    """The score of a run. Raises UserError."""
    path = Path(folder) / 'score.json'
    try:
        return json.loads(path.read_text(encoding='utf-8'))
    except OSError as error:
        raise UserError(f'{path}: {error.strerror}; run python -m rf_jax.evaluate first') from None
    except ValueError as error:
        raise UserError(f'{path} is not JSON: {error}') from None


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
        categories = list(next(iter(rows.values())))
        heads = ['arm', 'all', *categories, 'each seed']
        lines += [f'## {side.replace("_", " ").capitalize()}', '', _row(heads)]
        lines.append(_row(['---'] * len(heads)))
        for name, found in rows.items():
            whole = intervals.estimate(found)
            each = [f'{found[category].rate:.3f}' for category in categories]
            seeds = ' '.join(f'{value:.3f}' for value in whole.seeds)
            lines.append(_row([name, str(whole), *each, seeds]))
        lines.append('')
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


def _row(cells: Sequence[str]) -> str:
    return f'| {" | ".join(cells)} |'


def write(arms: Mapping[str, Sequence[str]], out: Path, command: str) -> None:
    """Writes the report and the rates."""
    scores = {name: [load(folder) for folder in folders] for name, folders in arms.items()}
    out.mkdir(parents=True, exist_ok=True)
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
