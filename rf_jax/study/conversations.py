"""What conversations about scenes learned: a report over seeds, and a sheet of edits.

    python -m rf_jax.study.conversations --run=runs/talk_0 --run=runs/talk_1 --out=docs/x

Every run has a `score.json` of `rf_jax.evaluate`. `report.md` and `results.csv` hold the rates,
with intervals over seeds and edits or questions; `edits.png` shows the first edits of the first run
that is given: the image, the edited one, and one generated anew from the new caption.
"""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from rf_jax.data import contact_sheet
from rf_jax.evaluation import conversing, intervals, scoring
from rf_jax.evaluation.intervals import Trials
from rf_jax.generation.sampler import Sampler
from rf_jax.runtime import workdir
from rf_jax.runtime.errors import UserError
from rf_jax.scenes import render

SHOWN = 8  # edits on the sheet


def load(run: str) -> dict:
    """The conversation scores of a run. Raises UserError."""
    path = Path(run) / 'score.json'
    try:
        values = json.loads(path.read_text(encoding='utf-8'))
    except OSError as error:
        raise UserError(f'{path}: {error.strerror}; run python -m rf_jax.evaluate first') from None
    except ValueError as error:
        raise UserError(f'{path} is not JSON: {error}') from None
    talks = values.get('conversations') if isinstance(values, dict) else None
    if 'edits' not in (talks or ()):
        raise UserError(
            f'{path} has no scores of edits and questions: was the run trained on them? (Of '
            'riddles and redrawn images, rf_jax.study.post_training makes a report.)'
        )
    return talks | {'step': values['step'], 'seed': values['seed']}


def comparable(runs: Sequence[str], scores: Sequence[Mapping]) -> None:
    """Raises UserError if the runs were not scored on the same edits and questions."""

    def counts(score) -> dict:
        edits = {kind: len(each['kept']) for kind, each in score['edits']['edited'].items()}
        return edits | {which: len(each) for which, each in score['follow_up'].items()}

    for run, score in zip(runs, scores):
        if counts(score) != counts(scores[0]):
            raise UserError(
                f'{run} and {runs[0]} were scored on different edits or questions: '
                f'{counts(score)} and {counts(scores[0])}; evaluate both with equal --conversations'
            )


def results(scores: Sequence[Mapping]) -> dict[tuple[str, str, str], np.ndarray]:
    """{(subject, measure, kind): 1 or 0 [seeds, edits or questions]}; kind '' is all together.

    What was not asked is left out.
    """
    found = {}
    for subject, kinds in scores[0]['edits'].items():
        for measure in ('changed', 'kept') if kinds else ():
            each = {k: [s['edits'][subject][k][measure] for s in scores] for k in kinds}
            found[subject, measure, ''] = np.concatenate(list(map(np.array, each.values())), 1)
            found |= {(subject, measure, kind): np.array(rows) for kind, rows in each.items()}
    for which in scores[0]['follow_up']:
        found['question', which, ''] = np.array([s['follow_up'][which] for s in scores])
    return {key: correct for key, correct in found.items() if correct.size}


def rate(correct: np.ndarray) -> intervals.Estimate:
    """The rate and its interval over seeds and trials."""
    return intervals.estimate({'all': _trials(correct)})


def _trials(correct: np.ndarray) -> Trials:
    count = correct.shape[1]
    return Trials(correct.astype(float), np.ones(count), count)


def report(scores: Sequence[Mapping], command: str) -> str:
    """Markdown."""
    found = results(scores)
    steps = ', '.join(f'seed {s["seed"]} at step {s["step"]}' for s in scores)
    lines = [
        '# Conversations about scenes',
        '',
        f'{steps}. Rates with 95 % intervals over seeds and trials; `{command}`.',
        '',
        '| what | trials a seed | rate | each seed |',
        '| --- | --- | --- | --- |',
    ]
    for (subject, measure, kind), correct in found.items():
        each = rate(correct)
        name = f'{subject}: {measure}' + (f', {kind}' if kind else '')
        seeds = ' '.join(f'{value:.3f}' for value in each.seeds)
        lines.append(f'| {name} | {correct.shape[1]} | {each} | {seeds} |')
    pair = [found.get(('question', which, '')) for which in ('later', 'alone')]
    if all(each is not None for each in pair):
        later, alone = ({'all': _trials(each)} for each in pair)
        lines += ['', f'Questions later minus alone: {intervals.difference(later, alone)}.']
    lines += ['', '![edits](edits.png)'] if _edits(scores[0]) else []
    return '\n'.join([*lines, ''])


def _edits(score: Mapping) -> int:
    """Kinds of edits that were scored."""
    return len(score['edits']['edited'])


def sheet(run: str, step: int, seed: int, count: int = SHOWN) -> np.ndarray:
    """uint8 [H, W, 3]: the first edits of the evaluation of this step and seed, a column each."""
    sampler = Sampler.load(run, step)
    source = scoring.new_scenes(sampler.config)
    chosen = conversing.edit_set(source, count)
    edited, anew = conversing.images_of(sampler, source, chosen, seed)
    before = [render.render(each.before, source.size) for each in chosen]
    return rows_of([each.request for each in chosen], before, edited, anew)


def rows_of(requests: Sequence[str], before, edited, anew) -> np.ndarray:
    """The sheet of these images, uint8 [h, w, 3]; black for an answer without an image (None)."""
    edited = [np.zeros_like(before[0]) if image is None else image for image in edited]
    names = list(requests)
    for row in ('edited', 'generated anew'):
        names += [row, *[''] * (len(requests) - 1)]
    return contact_sheet.grid([*before, *edited, *anew], len(requests), names)


def write(runs: Sequence[str], out: Path, command: str) -> None:
    """Writes the report, the rates and the sheet."""
    scores = [load(run) for run in runs]
    comparable(runs, scores)
    workdir.check_writable(out, 'out')
    (out / 'report.md').write_text(report(scores, command), encoding='utf-8')
    with open(out / 'results.csv', 'w', newline='', encoding='utf-8') as file:
        table = csv.writer(file, lineterminator='\n')
        table.writerow(['subject', 'measure', 'kind', 'seed', 'trials', 'right'])
        for key, correct in results(scores).items():
            for score, row in zip(scores, correct):
                table.writerow([*key, score['seed'], len(row), int(row.sum())])
    if not _edits(scores[0]):
        return
    shown = sheet(runs[0], scores[0]['step'], scores[0]['seed'])
    Image.fromarray(shown).save(out / 'edits.png')


def _main() -> None:
    from absl import flags

    from rf_jax.runtime import cli

    serializer = flags.ArgumentSerializer()
    flags.DEFINE_multi(cli.PATH, serializer, 'run', None, 'Workdir of a run; once for each seed.')
    flags.DEFINE(cli.PATH, 'out', 'conversations', 'Folder to write.')

    def main(argv):
        del argv
        given = flags.FLAGS
        command = 'python -m rf_jax.study.conversations ' + ' '.join(
            f'--run={run}' for run in given.run
        )
        write(given.run, Path(given.out), command)

    cli.run(main, required=['run'])


if __name__ == '__main__':
    _main()
