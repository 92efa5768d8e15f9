"""A study's pictures: score and loss against steps, score by category, codebook use, grids."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from rf_jax.data import images
from rf_jax.evaluation import scoring
from rf_jax.evaluation.intervals import estimate, first, gather
from rf_jax.runtime.errors import UserError
from rf_jax.study.plan import Piece, names

_INCHES = (11, 4)


def require() -> None:
    """Raises UserError if plots cannot be drawn here."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise UserError(
            "the study draws its plots with matplotlib: pip install 'rf_jax[study]', from a clone "
            "pip install -e '.[study]'"
        ) from None


def grid_name(side: str) -> str:
    return f'grid_{side}.png'


def _words(side: str) -> str:
    return side.replace('_', ' ')


def draw(study, pieces: Sequence[Piece], scores) -> dict[str, bytes]:
    """{file name: PNG} of what there is to be shown. `scores`: {(arm, seed): {step: score}}."""
    arms = {name: runs for name in names(study) if (runs := shown(name, pieces, scores))}
    found = {
        'score_against_steps.png': _curves(study, arms, scores),
        'score_by_category.png': _bars(arms, scores),
        'flow_loss.png': _flow_loss(arms),
        'codebook_use.png': _codebook(arms),
    }
    found |= {grid_name(side): _grid(arms, side) for side in scoring.SIDES}
    return {name: data for name, data in found.items() if data}


def shown(name: str, pieces: Sequence[Piece], scores) -> list[Piece]:
    """An arm's runs that have a score. Those on their way, which would cut the curves of the
    others at the point that they have reached, only if there are no others.
    """
    runs = [p for p in pieces if p.name == name and scores[p.name, p.seed]]
    return [p for p in runs if p.finished] or runs


def png(figure) -> bytes:
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
    """Overall score over what every point of the curve asks."""
    return scoring.overall(first(values, count)['generation'][side])


def _band(axes, label: str, lines: Sequence[Mapping[int, float]]) -> None:
    """Mean over seeds at the steps that all have, between the least and the most."""
    steps = sorted(set.intersection(*(set(line) for line in lines)))
    if not steps:
        return
    each = np.array([[line[step] for step in steps] for line in lines])
    (drawn,) = axes.plot(steps, each.mean(0), marker='.', label=label)
    axes.fill_between(steps, each.min(0), each.max(0), alpha=0.2, color=drawn.get_color())


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
    """The figure as PNG; None if nothing was drawn into it."""
    labels = {
        label: line for axes in panels for line, label in zip(*axes.get_legend_handles_labels())
    }
    if not labels:
        return None
    # Above the panels, where it hides no bar.
    columns = min(len(labels), 6)
    figure.legend(
        labels.values(), labels, loc='lower center', bbox_to_anchor=(0.5, 0.95), ncols=columns
    )
    return png(figure)


def _bars(arms, scores) -> bytes | None:
    figure, panels = _panels(len(scoring.SIDES), sharey=True)
    for axes, side in zip(panels, scoring.SIDES):
        found = {}
        for name, runs in arms.items():
            ends = [(p, scores[p.name, p.seed].get(p.last)) for p in runs]
            outcomes = gather([each for each in ends if each[1]], side)
            found |= {name: outcomes} if outcomes else {}
        width = 0.8 / max(len(found), 1)
        for number, (name, outcomes) in enumerate(found.items()):
            each = [estimate({category: rows}) for category, rows in outcomes.items()]
            values = np.array([e.value for e in each])
            reach = [values - [e.low for e in each], [e.high for e in each] - values]
            at = np.arange(len(each)) + (number - (len(found) - 1) / 2) * width
            axes.bar(at, values, width, label=name, yerr=np.maximum(reach, 0), capsize=2)
            axes.set_xticks(range(len(each)), list(outcomes), rotation=20, ha='right')
        axes.set(title=f'{_words(side)} prompts, equal FLOPs', ylim=(0, 1))
    return _finished(figure, panels)


def _flow_loss(arms) -> bytes | None:
    """Near pure noise, where the layout is decided: of each seed, as all of them fall at once, when
    patches have found the tokens that tell of them, but each at another step.
    """
    figure, panels = _panels(1)
    for name, runs in arms.items():
        colour = None
        for line in (logged(p.folder, 'loss/flow_t0') for p in runs):
            if line:
                label = name if colour is None else None
                (drawn,) = panels[0].plot(*zip(*sorted(line.items())), label=label, color=colour)
                colour = drawn.get_color()
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
    """{step: value} of a metric from the log of a run, where it was logged."""
    try:
        text = (folder / 'metrics.jsonl').read_text(encoding='utf-8')
    except OSError:
        return {}
    found = {}
    for line in text.splitlines():
        try:
            values = json.loads(line)
        except ValueError:  # torn off, as by a full disk, or being written
            continue
        if values.get(name) is not None:
            found[values['step']] = values[name]
    return found


def _grid(arms, side: str) -> bytes | None:
    """Rows are arms (their first seed), columns the same prompts."""
    cells, captions, columns = [], [], 0
    for name, runs in arms.items():
        files = [p.score_file(p.last).with_suffix('.npz') for p in runs if p.finished]
        files = [path for path in files if path.exists()]  # scores may be kept without them
        if not files:
            continue
        with np.load(files[0]) as held:
            drawn = list(held[side]) if side in held else []
        if drawn:
            columns = 1 + len(drawn)
            cells += [np.full_like(drawn[0], 255), *drawn]
            captions += [name, *map(str, range(1, columns))]
    if not cells:
        return None
    out = io.BytesIO()
    Image.fromarray(images.grid(cells, columns, captions)).save(out, 'PNG')
    return out.getvalue()
