"""The study's effect along the ladder: an arm against its reference, on rung after rung."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from rf_jax.evaluation.intervals import Estimate, difference, estimate, first, gather
from rf_jax.runtime import paths, workdir
from rf_jax.runtime.errors import UserError
from rf_jax.study import plots
from rf_jax.study.report import table

FORM = "('name', 'folder', 'arm', 'reference', steps) and, if wanted, 'regex of prompts'"


@dataclass(frozen=True)
class Rung:
    """An arm and its reference of the study in `folder`; `steps` 0: where it compares its arms.

    If there is a regex `asked`, prompts that it does not match as a whole are left out.
    """

    heading: str
    name: str
    folder: Path
    arm: str
    reference: str
    steps: int
    asked: str = ''


@dataclass(frozen=True)
class Measured:
    """Rates over the seeds that both arms have, on seen prompts and of the questions."""

    rung: Rung
    steps: int
    arm: Estimate
    reference: Estimate
    ahead: Estimate
    understanding: Estimate | None


def rungs(config, folder: Path) -> list[Rung]:
    """Of a config such as configs/ladder.py; raises UserError for what is not such a list."""
    found, folder = [], paths.local(folder, '--folder')
    for heading, lines in config.rungs.items():
        for line in lines:
            if not (len(line) in (5, 6) and isinstance(line[4], int)):
                raise UserError(f'rungs: {heading!r} has {tuple(line)!r}; expected {FORM}')
            name, study, *rest = line
            rung = Rung(heading, name, folder / study, *rest)
            try:
                re.compile(rung.asked)
            except (re.error, TypeError) as error:
                raise UserError(f'rungs: {name!r}: {rung.asked!r} is no regex: {error}') from None
            found.append(rung)
    return found


def measure(rung: Rung) -> Measured | None:
    """None if the study has no seed with both scores yet.

    Raises UserError for a study or score that cannot be read, and if no prompt is the rung's.
    """
    path = rung.folder / 'study.json'
    try:
        study = json.loads(path.read_text(encoding='utf-8'))['config']
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f'{path} cannot be read: {error}') from None
    steps = rung.steps or study['steps']
    # Of a point of the curve, where little is drawn: every point is cut to that.
    few = study['curve']['prompts'] if rung.steps else None
    pairs = []
    for seed in range(study['seeds']):
        pair = [_score(rung, name, seed, steps, few) for name in (rung.arm, rung.reference)]
        if all(pair):
            pairs.append(pair)
    if not pairs:
        return None

    def outcomes(which: int, side: str):
        return gather([(SimpleNamespace(), pair[which]) for pair in pairs], side)

    seen, asked = ([outcomes(i, side) for i in (0, 1)] for side in ('seen', 'understanding'))
    return Measured(
        rung, steps, *(estimate(each) for each in seen), difference(*seen),
        difference(*asked) if all(asked) and not rung.asked else None,
    )  # fmt: skip


def _score(rung: Rung, name: str, seed: int, steps: int, few: int | None) -> dict | None:
    path = rung.folder / f'{name}-s{seed}' / 'scores' / f'{steps:08d}.json'
    try:
        found = json.loads(path.read_text(encoding='utf-8'))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f'{path} cannot be read: {error}') from None
    if not found['generation']:
        return None
    if few:
        found = first(found, few)
    if rung.asked:
        seen = _only(found['generation']['seen'], rung.asked)
        if not seen:
            raise UserError(f'rungs: {rung.name!r}: no prompt of {path} is {rung.asked!r}')
        found['generation'] = {'seen': seen}
    return found


def _only(categories: Mapping, asked: str) -> dict:
    """The prompts of each category that the regex matches; a category without one is left out."""
    found = {}
    for category, entry in categories.items():
        places = [i for i, text in enumerate(entry['prompts']) if re.fullmatch(asked, text)]
        if places:
            chosen = {key: [entry[key][i] for i in places] for key in ('prompts', 'correct')}
            found[category] = entry | chosen
    return found


def write(found: Iterable[Rung], folder: Path) -> str:
    """ladder.md and ladder.png into the folder; the text of the first. Raises UserError if no rung
    is scored.
    """
    found, folder = list(found), paths.local(folder, '--workdir')
    measured = [each for rung in found if (each := measure(rung))]
    if not measured:
        folders = ', '.join(dict.fromkeys(str(rung.folder) for rung in found))
        raise UserError(f'no rung is scored yet; looked into {folders}')
    left = [rung for rung in found if rung not in {each.rung for each in measured}]
    text = report(measured, left)
    workdir.check_writable(folder)
    workdir.write_run_files(folder, {'ladder.md': text, 'ladder.png': draw(measured)})
    return text


def report(measured: Sequence[Measured], left: Sequence[Rung]) -> str:
    """Markdown: a table for each heading, and what is not scored yet."""
    parts = [
        '# Ladder',
        'Overall score on seen prompts, at equal steps; 95 % intervals, which tell of prompts only '
        'where there is one seed.',
    ]
    head = [
        'rung',
        'arm',
        'score',
        'reference',
        'score',
        'ahead',
        'understanding',
        'steps',
        'seeds',
    ]
    for heading, group in _by_heading(measured).items():
        rows = [
            [m.rung.name, m.rung.arm, m.arm, m.rung.reference, m.reference, m.ahead,
             m.understanding or '', m.steps, len(m.ahead.seeds)]
            for m in group
        ]  # fmt: skip
        parts += [f'## {heading}', table(head, rows)]
    if left:
        names = ', '.join(f'{rung.heading} {rung.name} ({rung.folder.name})' for rung in left)
        parts.append(f'Not scored yet: {names}.')
    return '\n\n'.join(parts) + '\n'


def draw(measured: Sequence[Measured]) -> bytes:
    """PNG: a panel for each heading of several rungs, both scores against them."""
    from matplotlib.figure import Figure  # slow to import, and only studies need it

    groups = _by_heading(measured)
    groups = {name: group for name, group in groups.items() if len(group) > 1} or groups
    arms = _names(m.rung.arm for m in measured)
    references = _names(m.rung.reference for m in measured)
    figure = Figure(figsize=(3.2 * len(groups), 3.4))
    panels = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
    for axes, (heading, group) in zip(panels, groups.items()):
        at = np.arange(len(group))
        for label, each, shift in (
            (arms, [m.arm for m in group], -0.06),
            (references, [m.reference for m in group], 0.06),
        ):
            values = np.array([e.value for e in each])
            reach = [values - [e.low for e in each], [e.high for e in each] - values]
            axes.errorbar(
                at + shift, values, np.maximum(reach, 0), marker='o', capsize=3, label=label
            )
        axes.set(xlabel=heading, ylim=(0, 1), xlim=(-0.5, len(group) - 0.5))
        axes.set_xticks(at, [m.rung.name for m in group])
    panels[0].set_ylabel('overall, seen prompts')
    panels[0].legend(fontsize='x-small')
    return plots.png(figure)


def _names(arms: Iterable[str]) -> str:
    return '\n'.join(dict.fromkeys(arms))


def _by_heading(measured: Sequence[Measured]) -> Mapping[str, list[Measured]]:
    found: dict[str, list[Measured]] = {}
    for each in measured:
        found.setdefault(each.rung.heading, []).append(each)
    return found
