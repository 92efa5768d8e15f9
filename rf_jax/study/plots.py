"""The figures of a study: score and loss over steps, score by category, codebook usage, grids."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from rf_jax.data import contact_sheet
from rf_jax.evaluation import scoring
from rf_jax.evaluation.intervals import estimate, first, gather
from rf_jax.runtime.errors import UserError
from rf_jax.study.plan import Job, arm_names

_INCHES = (11, 4)


def require() -> None:
    """Raises UserError if matplotlib is not installed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise UserError(
            "the study needs matplotlib for its plots: pip install 'rf_jax[study]', from a clone "
            "pip install -e '.[study]'"
        ) from None


def grid_name(side: str) -> str:
    return f'grid_{side}.png'


def _words(side: str) -> str:
    return side.replace('_', ' ')


def plot_all(study: ConfigDict, jobs: Sequence[Job], scores) -> dict[str, bytes]:
    """{file name: PNG} of all figures with data. `scores`: {(arm, seed): {step: score}}."""
    arms = {name: runs for name in arm_names(study) if (runs := runs_to_plot(name, jobs, scores))}
    figures = {
        'score_against_steps.png': _curves(study, arms, scores),
        'score_by_category.png': _bars(arms, scores),
        'flow_loss.png': _flow_loss(arms),
        'codebook_use.png': _codebook(arms),
    }
    figures |= {grid_name(side): _grid(arms, side) for side in scoring.SIDES}
    return {name: data for name, data in figures.items() if data}


def runs_to_plot(name: str, jobs: Sequence[Job], scores) -> list[Job]:
    """The finished runs of an arm; if there are none, the unfinished ones that have a score.

    Curves end at the last step that all runs share, so an unfinished run would truncate them.
    """
    runs = [p for p in jobs if p.name == name and scores[p.name, p.seed]]
    return [p for p in runs if p.finished] or runs


def to_png(figure) -> bytes:
    """The figure as a PNG file."""
    out = io.BytesIO()
    figure.savefig(out, format='png', dpi=110, bbox_inches='tight')
    return out.getvalue()


def _panels(count: int, **options):
    from matplotlib import colormaps  # slow to import, and only studies need it
    from matplotlib.figure import Figure

    figure = Figure(figsize=_INCHES)
    panels = figure.subplots(1, count, squeeze=False, **options)[0]
    for axes in panels:
        axes.set_prop_cycle(color=colormaps['tab20'].colors[::2] + colormaps['tab20'].colors[1::2])
    return figure, panels


def same_prompts(values: Mapping, side: str, count: int) -> float:
    """Overall score on the first `count` prompts per category, which all points have."""
    return scoring.overall(first(values, count)['generation'][side])


def _band(axes, label: str, lines: Sequence[Mapping[int, float]]) -> None:
    """Plots the mean over seeds, with a band from minimum to maximum, at steps common to all."""
    steps = sorted(set.intersection(*(set(line) for line in lines)))
    if not steps:
        return
    each = np.array([[line[step] for step in steps] for line in lines])
    (curve,) = axes.plot(steps, each.mean(0), marker='.', label=label)
    axes.fill_between(steps, each.min(0), each.max(0), alpha=0.2, color=curve.get_color())


def _curves(study, arms, scores) -> bytes | None:
    figure, panels = _panels(len(scoring.SIDES), sharey=True)
    count = study.curve.prompts
    for axes, side in zip(panels, scoring.SIDES):
        for name, runs in arms.items():
            lines = [
                {
                    step: same_prompts(values, side, count)
                    for step, values in scores[p.name, p.seed].items()
                    if values['generation']
                }
                for p in runs
            ]
            _band(axes, name, lines)
        axes.set(title=f'{_words(side)} prompts', xlabel='steps', ylim=(0, 1))
        axes.axvline(study.steps, color='grey', linewidth=0.5)
    panels[0].set_ylabel(f'overall ({count} prompts a category)')
    return _finished(figure, panels)


def _finished(figure, panels) -> bytes | None:
    """The figure with a legend as PNG; None if nothing was plotted."""
    labels = {
        label: line for axes in panels for line, label in zip(*axes.get_legend_handles_labels())
    }
    if not labels:
        return None
    # Above the panels, where it covers no bar.
    columns = min(len(labels), 6)
    figure.legend(
        labels.values(), labels, loc='lower center', bbox_to_anchor=(0.5, 0.95), ncols=columns
    )
    return to_png(figure)


def _bars(arms, scores) -> bytes | None:
    figure, panels = _panels(len(scoring.SIDES), sharey=True)
    for axes, side in zip(panels, scoring.SIDES):
        by_arm = {}
        for name, runs in arms.items():
            ends = [(p, scores[p.name, p.seed].get(p.last)) for p in runs]
            outcomes = gather([each for each in ends if each[1]], side)
            by_arm |= {name: outcomes} if outcomes else {}
        width = 0.8 / max(len(by_arm), 1)
        for number, (name, outcomes) in enumerate(by_arm.items()):
            each = [estimate({category: rows}) for category, rows in outcomes.items()]
            values = np.array([e.value for e in each])
            reach = [values - [e.low for e in each], [e.high for e in each] - values]
            at = np.arange(len(each)) + (number - (len(by_arm) - 1) / 2) * width
            axes.bar(at, values, width, label=name, yerr=np.maximum(reach, 0), capsize=2)
            axes.set_xticks(range(len(each)), list(outcomes), rotation=20, ha='right')
        axes.set(title=f'{_words(side)} prompts, equal FLOPs', ylim=(0, 1))
    return _finished(figure, panels)


def _flow_loss(arms) -> bytes | None:
    """Flow loss near pure noise, where the layout of an image is decided.

    One curve per seed: each drops suddenly, once patches attend to the tokens that describe them,
    but at a different step for each seed, which a mean would blur.
    """
    figure, panels = _panels(1)
    for name, runs in arms.items():
        colour = None
        for line in (logged(p.folder, 'loss/flow_t0') for p in runs):
            if line:
                label = name if colour is None else None
                (curve,) = panels[0].plot(*zip(*sorted(line.items())), label=label, color=colour)
                colour = curve.get_color()
    panels[0].set(xlabel='steps', ylabel='flow loss at t < 1/4, each seed', yscale='log')
    return _finished(figure, panels)


def _codebook(arms) -> bytes | None:
    figure, panels = _panels(1)
    for name, runs in arms.items():
        lines = [line for p in runs if any((line := logged(p.folder, 'codes_used')).values())]
        if lines:
            _band(panels[0], name, lines)
    panels[0].set(xlabel='steps', ylabel='share of prototypes used in a batch', ylim=(0, 1))
    return _finished(figure, panels)


def logged(folder: Path, name: str) -> dict[int, float]:
    """{step: value} of a metric in the log of a run."""
    try:
        text = (folder / 'metrics.jsonl').read_text(encoding='utf-8')
    except OSError:
        return {}
    values_by_step = {}
    for line in text.splitlines():
        try:
            values = json.loads(line)
        except ValueError:  # incomplete: a full disk, or still being written
            continue
        if values.get(name) is not None:
            values_by_step[values['step']] = values[name]
    return values_by_step


def _grid(arms, side: str) -> bytes | None:
    """A grid with a row per arm (its first seed) and a column per prompt."""
    cells, captions, columns = [], [], 0
    for name, runs in arms.items():
        files = [p.score_file(p.last).with_suffix('.npz') for p in runs if p.finished]
        files = [path for path in files if path.exists()]  # scores may be kept without images
        if not files:
            continue
        with np.load(files[0]) as arrays:
            images = list(arrays[side]) if side in arrays else []
        if images:
            columns = 1 + len(images)
            cells += [np.full_like(images[0], 255), *images]
            captions += [name, *map(str, range(1, columns))]
    if not cells:
        return None
    out = io.BytesIO()
    Image.fromarray(contact_sheet.grid(cells, columns, captions)).save(out, 'PNG')
    return out.getvalue()
