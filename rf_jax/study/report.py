"""The tables of a study: report.md and results.csv from the scores of its jobs."""

import csv
import io
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

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
from rf_jax.study.plan import Job, arm_names

_UNTRAINED = ('idle', 'evaluation', 'again')  # phases of goodput that are not training of new steps
HEAD = ('arm', 'seed', 'step', 'side', 'category', 'correct', 'count', 'rate')


@dataclass(frozen=True)
class TrainingTime:
    """Steps trained so far, and the seconds they took without scoring and interruptions."""

    steps: int
    seconds: float


def training_time(job: Job) -> TrainingTime:
    """The training time from the goodput record of the job; zero if it has none."""
    try:
        record = json.loads((job.folder / 'goodput.json').read_text(encoding='utf-8'))
        steps = record['attempts'][-1]['last_step']
        seconds = sum(v for k, v in record['seconds'].items() if k not in _UNTRAINED)
        return TrainingTime(int(steps), float(seconds))
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError):
        return TrainingTime(0, 0.0)


def write(study: ConfigDict, jobs: Sequence[Job], folder: Path) -> None:
    """Writes report.md, results.csv and the figures into the folder, from the scores so far."""
    scores = {(p.name, p.seed): p.scores() for p in jobs}
    figures = plots.plot_all(study, jobs, scores)
    text = report(study, jobs, scores, list(figures))
    workdir.write_run_files(folder, figures)
    workdir.write_run_files(folder, {'results.csv': results_csv(jobs, scores)})
    workdir.write_run_files(folder, {'report.md': text})


def results_csv(jobs: Sequence[Job], scores) -> str:
    """CSV with a line per arm, seed, step, side (seen, held out, understanding) and category."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator='\n')
    writer.writerow(HEAD)
    for job in jobs:
        for step, values in scores[job.name, job.seed].items():
            for side, entries in sides(values).items():
                for category, entry in entries.items():
                    each = np.asarray(entry['correct'])
                    counts = int(each.sum()), each.size, f'{each.mean():.6f}'
                    writer.writerow([job.name, job.seed, step, side, category, *counts])
    return out.getvalue()


def report(study: ConfigDict, jobs: Sequence[Job], scores, figures: Sequence[str]) -> str:
    """The report as Markdown."""
    order = list(dict.fromkeys(p.name for p in jobs if p.is_stage)) + arm_names(study)

    def at(step_of) -> dict[str, list[tuple[Job, dict]]]:
        """{name: [(job, its score)]} of the jobs that have a score at that step."""
        groups: dict[str, list] = {name: [] for name in order}
        for p in jobs:
            if step_of(p) in scores[p.name, p.seed]:
                groups[p.name].append((p, scores[p.name, p.seed][step_of(p)]))
        return {name: group for name, group in groups.items() if group}

    equal_steps, equal_flops = at(lambda p: p.steps), at(lambda p: p.last)
    arms = {p.name: p.config for p in jobs if not p.is_stage}
    parts = [_opening(study, jobs), notes.differences_from_paper(arms.items())]
    for title, groups in (('equal steps', equal_steps), ('equal FLOPs', equal_flops)):
        parts += [
            f'## Generation at {title}',
            _overall(groups),
            _differences(arm_names(study), groups),
        ]
        for side in scoring.SIDES:
            caption = f'By category, {side.replace("_", " ")} prompts, at {title}:'
            parts.append(f'{caption}\n\n{_categories(groups, side)}')
    parts += ['## Understanding at equal steps', _understanding(equal_steps)]
    parts += ['## Understanding at equal FLOPs', _understanding(equal_flops)]
    parts += [
        '## Distances, diversity, codebook and autoencoder at equal FLOPs',
        _numbers(equal_flops),
    ]
    parts += ['## Budget', _budget(order, jobs, scores)]
    for name in figures:
        parts += [f'![{name}]({name})', _legend(name, equal_flops)]
    return '\n\n'.join(part for part in parts if part) + '\n'


def _opening(study: ConfigDict, jobs: Sequence[Job]) -> str:
    done = sum(p.finished for p in jobs)
    device = jax.devices()[0]
    machine = f'{jax.device_count()} x {device.device_kind}, {os.cpu_count()} CPU cores'
    lines = [
        '# Study',
        f'{done} of {len(jobs)} runs are finished.' if done < len(jobs) else '',
        f'Arms {", ".join(arm_names(study))}; {study.seeds} seed(s); compared at {study.steps} '
        'steps, and at the step where each arm has spent the FLOPs of the first (arms that cost '
        'more per step end with more FLOPs). '
        f'{study.prompts} prompts per category, {study.images} images each, judged from '
        f'pixels; {study.questions} questions per kind on scenes of another seed, though scenes of '
        'a single object mostly occur in training too. '
        f'Written on {machine}.',
        'Rates are means over seeds with 95 % intervals from a bootstrap over seeds and prompts. '
        'With few seeds these are somewhat narrow, and with one seed they cover only the choice of '
        'prompts. The tables of rates and differences also give the rate of each seed, with '
        "Student's t interval of their mean, which is wide for few seeds.",
    ]
    return '\n\n'.join(line for line in lines if line)


def table(head: Sequence[str], rows: Iterable[Sequence]) -> str:
    """A Markdown table; the first column is text, the others numbers."""
    lines = [head, ['---', *['---:'] * (len(head) - 1)], *rows]
    return '\n'.join(f'| {" | ".join(map(str, line))} |' for line in lines)


def _seeds(result: Estimate, least: float = 0.0) -> str:
    """The value of each seed and, if there are several, Student's t interval of their mean.

    `least`: lower bound of the value: 0 for a rate, -1 for a difference of rates.
    """
    each = ' '.join(f'{value:.3f}' for value in result.seeds)
    if len(set(result.seeds)) == 1:  # one seed, or all equal: no spread to estimate from
        return each
    low, high = student_interval(result.seeds)
    return f'{each} [{max(low, least):.3f}, {min(high, 1):.3f}]'


def _overall(groups) -> str:
    rows = []
    for name, group in groups.items():
        outcomes = [gather(group, side) for side in scoring.SIDES]
        if all(outcomes):
            estimates = [estimate(each) for each in outcomes]
            steps = max(score['step'] for _, score in group)
            rows.append([name, steps, *(x for e in estimates for x in (e, _seeds(e)))])
    return table(['arm', 'steps', 'seen', 'its seeds', 'held out', 'its seeds'], rows)


def _differences(order: Sequence[str], groups) -> str:
    """Each arm minus the first; with more than two arms, also each pair on seen prompts."""
    columns = (*scoring.SIDES, 'understanding')
    rows = []
    for name in order[1:]:
        gains = [_minus(groups, name, order[0], side) for side in columns]
        cells = [cell for each in gains for cell in (each, _seeds(each, -1.0) if each else '')]
        rows += [[f'{name} minus {order[0]}', *cells]] if any(gains) else []
    if not rows:
        return ''
    titles = [title for side in columns for title in (side.replace('_', ' '), 'its seeds')]
    parts = [f'Differences, paired by seed and prompt:\n\n{table(["difference", *titles], rows)}']
    scored = [name for name in order if name in groups]
    if len(scored) > 2:
        rows = [[row, *(_minus(groups, row, column, 'seen') if scored.index(column) < i else ''
                        for column in scored[:-1])]
                for i, row in enumerate(scored)][1:]  # fmt: skip
        caption = 'Row minus column, seen prompts, over the seeds that both have:'
        parts.append(f'{caption}\n\n{table(["arm", *scored[:-1]], rows)}')
    return '\n\n'.join(parts)


def _minus(groups, name: str, reference: str, side: str) -> Estimate | str:
    """The difference over common seeds; '' if there are none or the prompts differ in number."""
    own, other = (
        {p.seed: (p, score) for p, score in groups.get(each, ())} for each in (name, reference)
    )
    both = sorted(own.keys() & other.keys())
    pair = [gather([x[seed] for seed in both], side) for x in (own, other)]
    comparable = all(pair) and _shapes(pair[0]) == _shapes(pair[1])
    return difference(*pair) if comparable else ''


def _shapes(outcomes: Outcomes) -> dict:
    return {name: trials.correct.shape for name, trials in outcomes.items()}


def _categories(groups, side: str) -> str:
    by_arm = {name: gather(group, side) for name, group in groups.items()}
    by_arm = {name: outcomes for name, outcomes in by_arm.items() if outcomes}
    columns = list(dict.fromkeys(category for each in by_arm.values() for category in each))
    rows = [
        [name, *(estimate({c: outcomes[c]}) if c in outcomes else '' for c in columns)]
        for name, outcomes in by_arm.items()
    ]
    return table(['arm', *columns], rows)


def _understanding(groups) -> str:
    by_arm = {name: gather(group, 'understanding') for name, group in groups.items()}
    by_arm = {name: outcomes for name, outcomes in by_arm.items() if outcomes}
    if not by_arm:
        return ''
    common: dict[str, float] = {}  # by kind: arms on other scenes may have others
    for name in by_arm:
        kinds = groups[name][0][1]['understanding']
        common = {kind: entry['commonest'] for kind, entry in kinds.items()} | common
    columns = list(dict.fromkeys(kind for outcomes in by_arm.values() for kind in outcomes))
    rows = [
        [name, estimate(each), *(estimate({c: each[c]}) if c in each else '' for c in columns)]
        for name, each in by_arm.items()
    ]
    shares = [common[kind] for kind in columns]
    rows.append(['always the commonest answer', *(f'{x:.3f}' for x in (np.mean(shares), *shares))])
    return table(['arm', 'overall', *columns], rows)


def _numbers(groups) -> str:
    """Distances, diversity, codebook and autoencoder: mean over seeds, each seed in parentheses."""
    columns: dict[str, None] = {}
    by_arm: dict[str, dict[str, list[float]]] = {}
    for name, group in groups.items():
        for _, score in group:
            for part in ('distances', 'variety', 'codebook', 'autoencoder'):
                for key, value in score.get(part, {}).items():  # older scores lack some
                    column = key if part == 'distances' else f'{part} {key}'
                    columns[column] = None
                    by_arm.setdefault(name, {}).setdefault(column, []).append(value)
    rows = [[name, *(_mean(each.get(c, ())) for c in columns)] for name, each in by_arm.items()]
    return table(['arm', *columns], rows)


def _mean(values: Sequence[float]) -> str:
    if not values:
        return ''
    return f'{np.mean(values):.4g} ({" ".join(f"{v:.3g}" for v in values)})'


def _budget(order: Sequence[str], jobs: Sequence[Job], scores) -> str:
    rows = []
    for name in order:
        runs = [p for p in jobs if p.name == name]
        minutes = [training_time(p).seconds / 60 for p in runs if p.finished]
        sizes = [score['parameters'] for p in runs for score in scores[p.name, p.seed].values()]
        job = runs[0]
        rows.append([
            name, f'{len(minutes)} of {len(runs)}', job.steps, job.last,
            f'{job.flops / 1e9:.4g}', f'{job.last * job.flops / 1e15:.4g}',
            f'{np.mean(minutes):.1f}' if minutes else '',
            f'{sizes[0]:,}' if sizes else '',
        ])  # fmt: skip
    return table(
        ['run', 'finished', 'equal steps', 'total steps', 'GFLOPs per step', 'total PFLOPs',
         'training minutes per seed', 'parameters'], rows,
    )  # fmt: skip


def _legend(figure: str, groups) -> str:
    """The prompts of the columns of a grid."""
    for side in scoring.SIDES:
        if figure == plots.grid_name(side):
            for group in groups.values():
                shown = group[0][1]['shown'].get(side)
                if shown:
                    return '\n'.join(f'{i}. {text}' for i, text in enumerate(shown, 1))
    return ''
