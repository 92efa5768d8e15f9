"""The effect of an arm over its reference along a ladder of finished studies, rung by rung."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from ml_collections import ConfigDict

from rf_jax.evaluation.intervals import Estimate, difference, estimate, first, gather
from rf_jax.runtime import paths, workdir
from rf_jax.runtime.errors import UserError
from rf_jax.study import plots
from rf_jax.study.report import table

FORMAT = "('name', 'folder', 'arm', 'reference', steps) and optionally 'regex of prompts'"


@dataclass(frozen=True)
class Rung:
    """An arm and its reference in the study in `folder`.

    `steps`: the step to compare at; 0: the equal steps of the study. `pattern`: if given, only
    prompts that this regex matches in full are used.
    """

    heading: str
    name: str
    folder: Path
    arm: str
    reference: str
    steps: int
    pattern: str = ''


@dataclass(frozen=True)
class Measured:
    """Scores over common seeds on seen prompts, and the differences arm minus reference."""

    rung: Rung
    steps: int
    arm: Estimate
    reference: Estimate
    ahead: Estimate
    understanding: Estimate | None


def rungs(config: ConfigDict, folder: Path) -> list[Rung]:
    """Parses a config such as configs/ladder.py; raises UserError for an invalid rung."""
    parsed, folder = [], paths.local(folder, '--studies')
    for heading, lines in config.rungs.items():
        for line in lines:
            if not (len(line) in (5, 6) and isinstance(line[4], int)):
                raise UserError(f'rungs: {heading!r} has {tuple(line)!r}; expected {FORMAT}')
            name, study, *rest = line
            rung = Rung(heading, name, folder / study, *rest)
            try:
                re.compile(rung.pattern)
            except (re.error, TypeError) as error:
                raise UserError(
                    f'rungs: {name!r}: {rung.pattern!r} is not a regex: {error}'
                ) from None
            parsed.append(rung)
    return parsed


def measure(rung: Rung) -> Measured | None:
    """Compares the arms of a rung; None if no seed has both scores yet.

    Raises UserError if the study or a score cannot be read, or no prompt matches the pattern.
    """
    path = rung.folder / 'study.json'
    try:
        study = json.loads(path.read_text(encoding='utf-8'))['config']
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f'{path} cannot be read: {error}') from None
    steps = rung.steps or study['steps']
    # Points of the curve have few prompts: use as many of the others.
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

    seen, understanding = (
        [outcomes(i, side) for i in (0, 1)] for side in ('seen', 'understanding')
    )
    return Measured(
        rung, steps, *(estimate(each) for each in seen), difference(*seen),
        difference(*understanding) if all(understanding) and not rung.pattern else None,
    )  # fmt: skip


def _score(rung: Rung, name: str, seed: int, steps: int, few: int | None) -> dict | None:
    path = rung.folder / f'{name}-s{seed}' / 'scores' / f'{steps:08d}.json'
    try:
        score = json.loads(path.read_text(encoding='utf-8'))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f'{path} cannot be read: {error}') from None
    if not score['generation']:
        return None
    if few:
        score = first(score, few)
    if rung.pattern:
        seen = _only(score['generation']['seen'], rung.pattern)
        if not seen:
            raise UserError(f'rungs: {rung.name!r}: no prompt of {path} matches {rung.pattern!r}')
        score['generation'] = {'seen': seen}
    return score


def _only(categories: Mapping, pattern: str) -> dict:
    """The prompts of each category that match the regex; categories without any are dropped."""
    matching = {}
    for category, entry in categories.items():
        places = [i for i, text in enumerate(entry['prompts']) if re.fullmatch(pattern, text)]
        if places:
            chosen = {key: [entry[key][i] for i in places] for key in ('prompts', 'correct')}
            matching[category] = entry | chosen
    return matching


def write(rungs_: Iterable[Rung], folder: Path) -> str:
    """Writes ladder.md, which it returns, and ladder.png. Raises UserError if none has scores."""
    rungs_, folder = list(rungs_), paths.local(folder, '--workdir')
    measured = [each for rung in rungs_ if (each := measure(rung))]
    if not measured:
        folders = ', '.join(dict.fromkeys(str(rung.folder) for rung in rungs_))
        raise UserError(f'no rung has scores yet in {folders}')
    left = [rung for rung in rungs_ if rung not in {each.rung for each in measured}]
    text = report(measured, left)
    workdir.check_writable(folder)
    workdir.write_run_files(folder, {'ladder.md': text, 'ladder.png': plot(measured)})
    return text


def report(measured: Sequence[Measured], left: Sequence[Rung]) -> str:
    """Markdown: a table per heading, and the rungs without scores."""
    parts = [
        '# Ladder',
        'Overall score on seen prompts, at equal steps; 95 % intervals, which with one '
        'seed cover only the choice of prompts.',
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


def plot(measured: Sequence[Measured]) -> bytes:
    """PNG: a panel per heading with several rungs, showing both scores for each rung."""
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
    return plots.to_png(figure)


def _names(arms: Iterable[str]) -> str:
    return '\n'.join(dict.fromkeys(arms))


def _by_heading(measured: Sequence[Measured]) -> Mapping[str, list[Measured]]:
    groups: dict[str, list[Measured]] = {}
    for each in measured:
        groups.setdefault(each.rung.heading, []).append(each)
    return groups
