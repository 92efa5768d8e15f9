"""A study's tables: report.md and results.csv from the scores beside its runs."""

import csv
import io
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from rf_jax.evaluation import scoring
from rf_jax.evaluation.intervals import (
    Estimate,
    Outcomes,
    difference,
    estimate,
    gather,
    sides,
    student_interval,
)
from rf_jax.runtime import workdir
from rf_jax.study import notes, plots
from rf_jax.study.plan import Piece, names

_UNTRAINED = ('idle', 'evaluation', 'again')  # parts of goodput that are no training of new steps
HEAD = ('arm', 'seed', 'step', 'side', 'category', 'correct', 'count', 'rate')


@dataclass(frozen=True)
class Spent:
    """What training a run took so far: steps, and seconds without scoring and interruptions."""

    steps: int
    seconds: float


def spent(piece: Piece) -> Spent:
    """From the goodput record of the run; nothing if it has none."""
    try:
        found = json.loads((piece.folder / 'goodput.json').read_text(encoding='utf-8'))
        steps = found['attempts'][-1]['last_step']
        seconds = sum(v for k, v in found['seconds'].items() if k not in _UNTRAINED)
    except (OSError, ValueError, KeyError, IndexError):
        return Spent(0, 0.0)
    return Spent(steps, seconds)


def write(study, pieces: Sequence[Piece], folder: Path) -> None:
    """report.md, results.csv, plots and grids into the folder, of what is scored so far."""
    scores = {(p.name, p.seed): p.scores() for p in pieces}
    pictures = plots.draw(study, pieces, scores)
    text = report(study, pieces, scores, list(pictures))
    workdir.write_run_files(folder, pictures)
    workdir.write_run_files(folder, {'results.csv': table_of_results(pieces, scores)})
    workdir.write_run_files(folder, {'report.md': text})


def table_of_results(pieces: Sequence[Piece], scores) -> str:
    """CSV: one line per arm, seed, step, side (seen, held out, understanding) and category."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator='\n')
    writer.writerow(HEAD)
    for piece in pieces:
        for step, values in scores[piece.name, piece.seed].items():
            for side, entries in sides(values).items():
                for category, entry in entries.items():
                    each = np.asarray(entry['correct'])
                    counts = int(each.sum()), each.size, f'{each.mean():.6f}'
                    writer.writerow([piece.name, piece.seed, step, side, category, *counts])
    return out.getvalue()


def report(study, pieces: Sequence[Piece], scores, pictures: Sequence[str]) -> str:
    """The report as Markdown."""
    order = list(dict.fromkeys(p.name for p in pieces if p.is_stage)) + names(study)

    def at(step_of) -> dict[str, list[tuple[Piece, dict]]]:
        """{name: [(run, its score)]} of the runs that have a score there."""
        found: dict[str, list] = {name: [] for name in order}
        for p in pieces:
            if step_of(p) in scores[p.name, p.seed]:
                found[p.name].append((p, scores[p.name, p.seed][step_of(p)]))
        return {name: group for name, group in found.items() if group}

    equal_steps, equal_flops = at(lambda p: p.steps), at(lambda p: p.last)
    arms = {p.name: p.config for p in pieces if not p.is_stage}
    parts = [_opening(study, pieces), notes.beside_the_paper(arms.items())]
    for title, groups in (('equal steps', equal_steps), ('equal FLOPs', equal_flops)):
        parts += [f'## Generation at {title}', _overall(groups), _differences(names(study), groups)]
        for side in scoring.SIDES:
            told = f'By category, {side.replace("_", " ")} prompts, at {title}:'
            parts.append(f'{told}\n\n{_categories(groups, side)}')
    parts += ['## Understanding at equal steps', _understanding(equal_steps)]
    parts += ['## Understanding at equal FLOPs', _understanding(equal_flops)]
    parts += [
        '## Distances, variety, codebook and autoencoder at equal FLOPs',
        _numbers(equal_flops),
    ]
    parts += ['## Budget', _budget(order, pieces, scores)]
    for name in pictures:
        parts += [f'![{name}]({name})', _legend(name, equal_flops)]
    return '\n\n'.join(part for part in parts if part) + '\n'


def _opening(study, pieces: Sequence[Piece]) -> str:
    done = sum(p.finished for p in pieces)
    device = jax.devices()[0]
    machine = f'{jax.device_count()} x {device.device_kind}, {os.cpu_count()} CPU cores'
    lines = [
        '# Study',
        f'{done} of {len(pieces)} runs are finished.' if done < len(pieces) else '',
        f'Arms {", ".join(names(study))}; {study.seeds} seed(s); compared at {study.steps} steps, '
        'and where each arm has spent the FLOPs of the first; dearer arms end with more. '
        f'{study.prompts} prompts a category, {study.pictures} pictures each, judged from pixels; '
        f'{study.questions} questions a kind on scenes of another seed, of which those of a single '
        'object mostly occur in training too. '
        f'Written on {machine}.',
        'Rates are means over seeds with 95 % intervals from a bootstrap over seeds and prompts, '
        'which few seeds make somewhat narrow, and which tell of prompts only where there is one '
        'seed; the rate of each seed stands beside them in the tables of rates and differences, '
        "with Student's interval of their mean, which few seeds make wide.",
    ]
    return '\n\n'.join(line for line in lines if line)


def table(head: Sequence[str], rows: Iterable[Sequence]) -> str:
    """Markdown; the first column is of words, the others of numbers."""
    lines = [head, ['---', *['---:'] * (len(head) - 1)], *rows]
    return '\n'.join(f'| {" | ".join(map(str, line))} |' for line in lines)


def _seeds(found: Estimate, least: float = 0.0) -> str:
    """The value of each seed, and Student's interval of their mean where there are several.

    `least`: that a rate, or a difference of rates, can be.
    """
    each = ' '.join(f'{value:.3f}' for value in found.seeds)
    if len(set(found.seeds)) == 1:  # one, or all the same: their spread tells nothing
        return each
    low, high = student_interval(found.seeds)
    return f'{each} [{max(low, least):.3f}, {min(high, 1):.3f}]'


def _overall(groups) -> str:
    rows = []
    for name, group in groups.items():
        found = [gather(group, side) for side in scoring.SIDES]
        if all(found):
            estimates = [estimate(each) for each in found]
            steps = max(score['step'] for _, score in group)
            rows.append([name, steps, *(x for e in estimates for x in (e, _seeds(e)))])
    return table(['arm', 'steps', 'seen', 'its seeds', 'held out', 'its seeds'], rows)


def _differences(order: Sequence[str], groups) -> str:
    """Each arm minus the first; with more arms than two, seen prompts of each pair as well."""
    asked = (*scoring.SIDES, 'understanding')
    rows = []
    for name in order[1:]:
        found = [_minus(groups, name, order[0], side) for side in asked]
        cells = [cell for each in found for cell in (each, _seeds(each, -1.0) if each else '')]
        rows += [[f'{name} minus {order[0]}', *cells]] if any(found) else []
    if not rows:
        return ''
    titles = [title for side in asked for title in (side.replace('_', ' '), 'its seeds')]
    parts = [f'Differences, paired by seed and prompt:\n\n{table(["difference", *titles], rows)}']
    there = [name for name in order if name in groups]
    if len(there) > 2:
        rows = [[row, *(_minus(groups, row, column, 'seen') if there.index(column) < i else ''
                        for column in there[:-1])]
                for i, row in enumerate(there)][1:]  # fmt: skip
        told = 'Row minus column, seen prompts, over the seeds that both have:'
        parts.append(f'{told}\n\n{table(["arm", *there[:-1]], rows)}')
    return '\n\n'.join(parts)


def _minus(groups, name: str, reference: str, side: str) -> Estimate | str:
    """Over the seeds that both have; '' if there is none, or they were not asked the same."""
    own, other = (
        {p.seed: (p, score) for p, score in groups.get(each, ())} for each in (name, reference)
    )
    both = sorted(own.keys() & other.keys())
    pair = [gather([x[seed] for seed in both], side) for x in (own, other)]
    alike = all(pair) and _shapes(pair[0]) == _shapes(pair[1])
    return difference(*pair) if alike else ''


def _shapes(outcomes: Outcomes) -> dict:
    return {name: trials.correct.shape for name, trials in outcomes.items()}


def _categories(groups, side: str) -> str:
    found = {name: gather(group, side) for name, group in groups.items()}
    found = {name: outcomes for name, outcomes in found.items() if outcomes}
    columns = list(dict.fromkeys(category for each in found.values() for category in each))
    rows = [
        [name, *(estimate({c: outcomes[c]}) if c in outcomes else '' for c in columns)]
        for name, outcomes in found.items()
    ]
    return table(['arm', *columns], rows)


def _understanding(groups) -> str:
    found = {name: gather(group, 'understanding') for name, group in groups.items()}
    found = {name: outcomes for name, outcomes in found.items() if outcomes}
    rows = [
        [name, estimate(outcomes), *(estimate({c: each}) for c, each in outcomes.items())]
        for name, outcomes in found.items()
    ]
    if not rows:
        return ''
    kinds = groups[next(iter(found))][0][1]['understanding']
    common = [entry['commonest'] for entry in kinds.values()]
    rows.append(['always the commonest answer', *(f'{x:.3f}' for x in (np.mean(common), *common))])
    return table(['arm', 'overall', *kinds], rows)


def _numbers(groups) -> str:
    """Distances, variety, codebook and autoencoder: mean over seeds, each seed in brackets."""
    columns: dict[str, None] = {}
    found: dict[str, dict[str, list[float]]] = {}
    for name, group in groups.items():
        for _, score in group:
            for part in ('distances', 'variety', 'codebook', 'autoencoder'):
                for key, value in score.get(part, {}).items():  # older ones lack some
                    column = key if part == 'distances' else f'{part} {key}'
                    columns[column] = None
                    found.setdefault(name, {}).setdefault(column, []).append(value)
    rows = [[name, *(_mean(each.get(c, ())) for c in columns)] for name, each in found.items()]
    return table(['arm', *columns], rows)


def _mean(values: Sequence[float]) -> str:
    if not values:
        return ''
    return f'{np.mean(values):.4g} ({" ".join(f"{v:.3g}" for v in values)})'


def _budget(order: Sequence[str], pieces: Sequence[Piece], scores) -> str:
    rows = []
    for name in order:
        runs = [p for p in pieces if p.name == name]
        minutes = [spent(p).seconds / 60 for p in runs if p.finished]
        sizes = [score['parameters'] for p in runs for score in scores[p.name, p.seed].values()]
        piece = runs[0]
        rows.append([
            name, f'{len(minutes)} of {len(runs)}', piece.steps, piece.last,
            f'{piece.flops / 1e9:.4g}', f'{piece.last * piece.flops / 1e15:.4g}',
            f'{np.mean(minutes):.1f}' if minutes else '',
            f'{sizes[0]:,}' if sizes else '',
        ])  # fmt: skip
    return table(
        ['run', 'finished', 'equal steps', 'steps in all', 'GFLOPs a step', 'PFLOPs in all',
         'minutes of training a seed', 'parameters'], rows,
    )  # fmt: skip


def _legend(picture: str, groups) -> str:
    """Prompts of a grid's columns."""
    for side in scoring.SIDES:
        if picture == plots.grid_name(side):
            for group in groups.values():
                shown = group[0][1]['shown'].get(side)
                if shown:
                    return '\n'.join(f'{i}. {text}' for i, text in enumerate(shown, 1))
    return ''
