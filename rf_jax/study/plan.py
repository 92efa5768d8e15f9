"""Which runs a study is made of: arms and the stages they start from, their configs and budgets."""

import ast
import contextlib
import json
import math
import os
import runpy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ml_collections import ConfigDict

from rf_jax.data import pipeline, source_list
from rf_jax.data.tokenizer import Tokenizer
from rf_jax.evaluation import scoring
from rf_jax.evaluation.scoring import Amount
from rf_jax.models import flops, unified
from rf_jax.runtime import paths, renamed_fields, workdir
from rf_jax.runtime.errors import UserError, choose, require
from rf_jax.training import checks, initial_weights, train_loop

COUNTS = ('seeds', 'steps', 'prompts', 'pictures', 'questions', 'curve.points', 'curve.prompts')
# What a study sets for its runs, so that no override can.
_OWN = ('seed', 'steps', 'initialise_from', 'tokenizer.path', 'log.samples_every',
        'checkpoint.keep_period')  # fmt: skip
# What may differ from what a run was begun with: where things lie, and how often they are told.
_FREE = ('steps', 'initialise_from', 'tokenizer.path', 'compilation_cache', 'checkpoint.', 'log.')


@dataclass(frozen=True)
class Arms:
    """`config_of(name)` gives a config of its own; `needs[name]`: stages that it starts from.

    `needs` has arms and stages, `stages` names the latter.
    """

    config_of: Callable[[str], ConfigDict]
    needs: Mapping[str, tuple[str, ...]]
    stages: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One training run of a study: an arm, or a stage that arms start from, at one seed.

    Scores are taken at `points` with the amounts there. `steps`: where arms are compared; `last`:
    where the run ends. `flops` of one step.
    """

    name: str
    seed: int
    folder: Path
    config: ConfigDict
    is_stage: bool
    steps: int
    last: int
    points: Mapping[int, Amount]
    flops: float

    @property
    def stages(self) -> list[Path]:
        """Folders of the runs that it starts from."""
        return initial_weights.other_runs(self.config)

    def score_file(self, step: int) -> Path:
        return self.folder / 'scores' / f'{step:08d}.json'

    def score(self, step: int) -> dict | None:
        """What was scored after `step` steps in the amount of the plan, None if it was not."""
        try:
            found = json.loads(self.score_file(step).read_text(encoding='utf-8'))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise UserError(f'{self.score_file(step)} cannot be read: {error}') from None
        return found if found['amount'] == self.points[step].to_dict() else None

    def scores(self) -> dict[int, dict]:
        """{step: score} of what there is."""
        found = {step: self.score(step) for step in sorted(self.points)}
        return {step: score for step, score in found.items() if score}

    @property
    def finished(self) -> bool:
        return self.score(self.last) is not None


def load_arms(path: str) -> Arms:
    """Of a Python file with ARMS and STAGES (name -> object with `needs`) and get_config(name)."""
    path = paths.config_file(path, 'runs')
    if not os.path.exists(path):
        raise UserError(f'runs={path!r}: there is no such file (looked from {os.getcwd()})')
    found = runpy.run_path(path)
    if not {'ARMS', 'STAGES', 'get_config'} <= found.keys():
        raise UserError(
            f'runs={path!r} must have ARMS, STAGES and get_config(name), as configs/scenes.py has'
        )
    needs = {name: tuple(arm.needs) for name, arm in (found['STAGES'] | found['ARMS']).items()}
    return Arms(found['get_config'], needs, tuple(found['STAGES']))


def names(study) -> list[str]:
    """The arms asked for."""
    return [name.strip() for name in study.arms.split(',') if name.strip()]


def check(study, arms: Arms) -> None:
    """Raises UserError for a study that cannot run."""
    flat = checks.flatten(study.to_dict())
    for field in COUNTS:
        require(flat[field] >= 1, f'{field}={flat[field]} must be at least 1')
    require(
        study.steps % study.curve.points == 0,
        f'steps={study.steps} must be a multiple of curve.points={study.curve.points}',
    )
    require(
        study.curve.prompts <= study.prompts,
        f'curve.prompts={study.curve.prompts} cannot be more than prompts={study.prompts}',
    )
    require(
        study.captions == 0 or study.captions >= 2,
        f'captions={study.captions} must be 0 or at least 2: distances are between two sets',
    )
    known = {name: None for name in arms.needs if name not in arms.stages}
    chosen = names(study)
    require(bool(chosen), f'arms is empty; known: {", ".join(known)}')
    for name in chosen:
        choose('arms', name, known)
        require(chosen.count(name) == 1, f'arms={study.arms!r} names {name} twice')
    for stage in set(_with_needs(chosen, arms.needs)) - set(chosen):
        field = f'{stage}_steps'
        require(study.get(field, 0) >= 1, f'{field}={study.get(field)}: {stage} needs at least 1')


def check_recorded(study, folder: Path) -> None:
    """Raises UserError if the folder holds another study, or a run; naming what differs.

    Seeds may be more or fewer than before, and so may the arms after the first, which sets the
    budget of all: what others were scored for stays, and is reported when it is asked for again.
    """
    require(
        ',' not in str(folder),
        f'--workdir={folder} has a comma, which parts the folders of initialise_from',
    )
    if (folder / 'config.json').exists():
        raise UserError(f'--workdir={folder} holds a run, not a study; give another folder')
    path = folder / 'study.json'
    if not path.exists():
        return
    try:
        before = checks.flatten(json.loads(path.read_text(encoding='utf-8'))['config'])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f'{path} cannot be read: {error}; give another --workdir') from None
    now = checks.flatten(json.loads(study.to_json()))
    before, now = (_comparable(fields) for fields in (before, now))
    differ = [told for _, told in checks.changes(before, now)]
    if differ:
        raise UserError(
            f'--workdir={folder} holds a study of another config: {"; ".join(differ)}. Nothing '
            'was changed; give another folder (only seeds, and arms after the first, may differ)'
        )


def _comparable(fields: dict) -> dict:
    """Fields of a study that must stay; of the arms only the first, the others' reference."""
    first = names(ConfigDict({'arms': fields.get('arms', '')}))[:1]
    return {k: v for k, v in fields.items() if k not in ('arms', 'seeds')} | {'arms': first}


def check_run(piece: Piece) -> None:
    """Raises UserError if the folder holds the beginning of a run of another config, or one whose
    config cannot be read.
    """
    path = piece.folder / 'config.json'
    if not path.exists():
        return
    try:
        before = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise UserError(
            f'{path} cannot be read: {error}; remove that run to train it again'
        ) from None
    renamed_fields.check(before, path)
    before = checks.flatten(before)
    now = checks.flatten(json.loads(piece.config.to_json_best_effort()))
    differ = [told for field, told in checks.changes(before, now) if not field.startswith(_FREE)]
    if differ:
        raise UserError(
            f'{piece.folder} was trained with another config: {"; ".join(differ)}. Nothing was '
            'changed; give another --workdir'
        )


def plan(study, folder: Path, arms: Arms) -> list[Piece]:
    """The runs in their order: seed by seed, arm by arm, each after the stages that it needs.

    Writes WORKDIR/tokenizer.model, which all runs share, so that all count the same tokens.
    """
    chosen = names(study)
    configs = {name: _config(study, arms, name) for name in _with_needs(chosen, arms.needs)}
    first = configs[chosen[0]]
    found = source_list.build(first.data.sources, first.data.max_pixels)
    tokenizer = train_loop.find_tokenizer(first, folder, found)
    for name, config in configs.items():
        _check_builds(name, config, tokenizer, _full(study))
    workdir.write_run_files(folder, {'tokenizer.model': tokenizer.model_bytes})
    cost = {name: flops.train_step(config, tokenizer.size) for name, config in configs.items()}
    reference = cost[chosen[0]]  # not the dearest: a new arm must not move the ends of old ones
    pieces: dict[tuple[str, int], Piece] = {}
    for seed in range(study.seeds):
        for name in _with_needs(chosen, arms.needs):
            is_stage = name in arms.stages
            steps = study[f'{name}_steps'] if is_stage else study.steps
            last = steps if is_stage else equal_flops_steps(steps, cost[name], reference)
            config = configs[name].copy_and_resolve_references()
            config.seed, config.steps = seed, last
            config.initialise_from = ','.join(
                str(pieces[stage, seed].folder) for stage in arms.needs[name]
            )
            config.tokenizer.path = str(folder / 'tokenizer.model')
            points = _points(study, last, is_stage)
            every = study.steps // study.curve.points
            config.log.samples_every = 0 if is_stage else every
            most = min(config.checkpoint.every, steps if is_stage else every)
            # A divisor, so that there is a checkpoint at every point, and at the equal steps.
            config.checkpoint.every = next(n for n in range(most, 0, -1) if every % n == 0)
            config.checkpoint.keep_period = steps
            pieces[name, seed] = Piece(
                name=name,
                seed=seed,
                folder=folder / f'{name}-s{seed}',
                config=config,
                is_stage=is_stage,
                steps=steps,
                last=last,
                points=points,
                flops=cost[name],
            )
    return list(pieces.values())


def _check_builds(name: str, config: ConfigDict, tokenizer: Tokenizer, asked: Amount) -> None:
    """Raises UserError now for what the run would raise at its turn, perhaps hours from now."""
    try:
        pipeline.check(config)
        unified.build(config, tokenizer.size)
        scoring.check(config, tokenizer, asked)
    except UserError as error:
        raise UserError(f'{name}: {error}') from None


def equal_flops_steps(steps: int, own: float, reference: float) -> int:
    """Fewest steps, but no less than `steps`, in which an arm of `own` FLOPs a step spends what
    `steps` of `reference` do.
    """
    return max(steps, math.ceil(steps * reference / own - 1e-6))


def _with_needs(chosen: Sequence[str], needs: Mapping[str, tuple[str, ...]]) -> list[str]:
    """The arms with the stages that they need, each after its own, each once."""

    def visit(name: str) -> Iterator[str]:
        for stage in choose('needs', name, needs):
            yield from visit(stage)
        yield name

    return list(dict.fromkeys(each for name in chosen for each in visit(name)))


def _full(study) -> Amount:
    return Amount(study.prompts, study.pictures, study.captions, study.questions)


def _points(study, last: int, is_stage: bool) -> dict[int, Amount]:
    """{step: how much is scored there}: all at the equal steps and at the end, less between."""
    if is_stage:  # they do not draw; an autoencoder gives pictures back
        return {last: Amount(0, 0, study.captions, study.questions)}
    full = _full(study)
    few = Amount(study.curve.prompts, 1, 0, min(study.curve.prompts, study.questions))
    every = study.steps // study.curve.points
    points = dict.fromkeys(range(every, last + 1, every), few)
    return points | {study.steps: full, last: full}


def _config(study, arms: Arms, name: str) -> ConfigDict:
    """The arm's config with the overrides of the study."""
    config = arms.config_of(name)
    fields = checks.flatten(config.to_dict())
    for change in study.overrides:
        field, _, value = change.partition('=')
        choose('overrides', field, fields)
        require(field not in _OWN, f'overrides: {change!r}: the study itself sets {field}')
        with contextlib.suppress(SyntaxError, ValueError):  # else a word
            value = ast.literal_eval(value)
        try:
            config.update_from_flattened_dict({field: value})
        except (TypeError, ValueError) as error:
            raise UserError(f'overrides: {change!r}: {error}') from None
    checks.check(config)
    return train_loop.with_absolute_paths(config)
