"""The jobs of a study: arms and the stages they start from, with their configs and budgets."""

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

from rf_jax.data import data_fields, source_list
from rf_jax.data.tokenizer import Tokenizer
from rf_jax.evaluation import scoring
from rf_jax.evaluation.scoring import Amount
from rf_jax.models import flops, unified
from rf_jax.runtime import paths, renamed_fields, workdir
from rf_jax.runtime.errors import UserError, choose, require
from rf_jax.training import checks, run_tokenizer, train_loop, weight_sources

COUNTS = ('seeds', 'steps', 'prompts', 'images', 'questions', 'curve.points', 'curve.prompts')
# Fields that the study itself sets, so that overrides cannot.
_SET_BY_STUDY = ('seed', 'steps', 'initialise_from', 'tokenizer.path', 'log.samples_every',
                 'checkpoint.keep_period')  # fmt: skip
# Fields that may change when a job resumes: paths, and intervals of saving and logging.
_MAY_CHANGE = ('steps', 'initialise_from', 'tokenizer.path', 'compilation_cache', 'checkpoint.',
               'log.')  # fmt: skip


@dataclass(frozen=True)
class Arms:
    """The arms and stages that a study can run."""

    config_of: Callable[[str], ConfigDict]  # name -> a new config
    needs: Mapping[str, tuple[str, ...]]  # arm or stage -> the stages that it starts from
    stages: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training run of a study: one seed of an arm, or of a stage that arms start from."""

    name: str
    seed: int
    folder: Path
    config: ConfigDict
    is_stage: bool
    steps: int  # where arms are compared at equal steps
    last: int  # where the run ends
    points: Mapping[int, Amount]  # step -> how much is scored there
    flops: float  # of one step

    @property
    def stages(self) -> list[Path]:
        """Workdirs of the jobs that it starts from."""
        return weight_sources.other_runs(self.config)

    def score_file(self, step: int) -> Path:
        return self.folder / 'scores' / f'{step:08d}.json'

    def score(self, step: int) -> dict | None:
        """The score of `step`; None if there is none with the planned amount."""
        try:
            score = json.loads(self.score_file(step).read_text(encoding='utf-8'))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise UserError(f'{self.score_file(step)} cannot be read: {error}') from None
        return score if score['amount'] == self.points[step].to_dict() else None

    def scores(self) -> dict[int, dict]:
        """{step: score} of all scores so far."""
        scores = {step: self.score(step) for step in sorted(self.points)}
        return {step: score for step, score in scores.items() if score}

    @property
    def finished(self) -> bool:
        return self.score(self.last) is not None


def load_arms(path: str) -> Arms:
    """Loads a Python file with ARMS, STAGES (name -> object with `needs`) and get_config(name)."""
    path = paths.config_file(path, 'runs')
    if not os.path.exists(path):
        raise UserError(f'runs={path!r}: no such file (working directory {os.getcwd()})')
    module = runpy.run_path(path)
    if not {'ARMS', 'STAGES', 'get_config'} <= module.keys():
        raise UserError(
            f'runs={path!r} must have ARMS, STAGES and get_config(name), as configs/scenes.py has'
        )
    needs = {name: tuple(arm.needs) for name, arm in (module['STAGES'] | module['ARMS']).items()}
    return Arms(module['get_config'], needs, tuple(module['STAGES']))


def arm_names(study: ConfigDict) -> list[str]:
    """Names of the arms of a study, in order."""
    return [name.strip() for name in study.arms.split(',') if name.strip()]


def check(study: ConfigDict, arms: Arms) -> None:
    """Raises UserError if the study cannot run."""
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
        f'captions={study.captions} must be 0 or at least 2, as distances compare two sets',
    )
    known = {name: None for name in arms.needs if name not in arms.stages}
    chosen = arm_names(study)
    require(bool(chosen), f'arms is empty; known: {", ".join(known)}')
    for name in chosen:
        choose('arms', name, known)
        require(chosen.count(name) == 1, f'arms={study.arms!r} names {name} twice')
    for stage in set(_with_needs(chosen, arms.needs)) - set(chosen):
        field = f'{stage}_steps'
        require(study.get(field, 0) >= 1, f'{field}={study.get(field)}: {stage} needs at least 1')


def check_recorded(study: ConfigDict, folder: Path) -> None:
    """Raises UserError, naming what differs, if the folder holds another study or a single run.

    Seeds may be added or removed, and so may arms after the first, which sets the budget of all.
    Scores of removed arms stay and are reported once the arm is added again.
    """
    require(
        ',' not in str(folder),
        f'--workdir={folder} has a comma, which separates folders in initialise_from',
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
    differ = [change for _, change in checks.changes(before, now)]
    if differ:
        raise UserError(
            f'--workdir={folder} holds a study of another config: {"; ".join(differ)}. Nothing '
            'was changed; give another folder (only seeds, and arms after the first, may differ)'
        )


def _comparable(fields: dict) -> dict:
    """Fields of a study that must not change; of the arms only the first, the reference."""
    first = arm_names(ConfigDict({'arms': fields.get('arms', '')}))[:1]
    return {k: v for k, v in fields.items() if k not in ('arms', 'seeds')} | {'arms': first}


def check_run(job: Job) -> None:
    """Raises UserError if the job was started with another config, or its config is unreadable."""
    path = job.folder / 'config.json'
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
    now = checks.flatten(json.loads(job.config.to_json_best_effort()))
    differ = [
        change for field, change in checks.changes(before, now) if not field.startswith(_MAY_CHANGE)
    ]
    if differ:
        raise UserError(
            f'{job.folder} was trained with another config: {"; ".join(differ)}. Nothing was '
            'changed; give another --workdir'
        )


def plan(study: ConfigDict, folder: Path, arms: Arms) -> list[Job]:
    """The jobs in order: seed by seed, arm by arm, each after the stages that it needs.

    Writes the tokenizer to WORKDIR, shared by all jobs so that all count the same tokens.
    """
    chosen = arm_names(study)
    configs = {name: _config(study, arms, name) for name in _with_needs(chosen, arms.needs)}
    first = configs[chosen[0]]
    sources = source_list.build(first.data.sources, first.data.max_pixels)
    tokenizer = run_tokenizer.find(first, folder, sources)
    for name, config in configs.items():
        _check_builds(name, config, tokenizer, _full(study))
    workdir.write_run_files(folder, {tokenizer.file: tokenizer.model_bytes})
    cost = {name: flops.train_step(config, tokenizer.size) for name, config in configs.items()}
    # Not the most expensive: a new arm must not change the steps of others.
    reference = cost[chosen[0]]
    jobs: dict[tuple[str, int], Job] = {}
    for seed in range(study.seeds):
        for name in _with_needs(chosen, arms.needs):
            is_stage = name in arms.stages
            steps = study[f'{name}_steps'] if is_stage else study.steps
            last = steps if is_stage else equal_flops_steps(steps, cost[name], reference)
            config = configs[name].copy_and_resolve_references()
            config.seed, config.steps = seed, last
            config.initialise_from = ','.join(
                str(jobs[stage, seed].folder) for stage in arms.needs[name]
            )
            config.tokenizer.path = str(folder / tokenizer.file)
            points = _points(study, last, is_stage)
            every = study.steps // study.curve.points
            config.log.samples_every = 0 if is_stage else every
            most = min(config.checkpoint.every, steps if is_stage else every)
            # A divisor, so that there is a checkpoint at every point and at the equal steps.
            config.checkpoint.every = next(n for n in range(most, 0, -1) if every % n == 0)
            config.checkpoint.keep_period = steps
            jobs[name, seed] = Job(
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
    return list(jobs.values())


def _check_builds(name: str, config: ConfigDict, tokenizer: Tokenizer, amount: Amount) -> None:
    """Raises UserError now for errors that the job would otherwise raise hours later."""
    try:
        data_fields.check(config)
        unified.build(config, tokenizer.size)
        scoring.check(config, tokenizer, amount)
    except UserError as error:
        raise UserError(f'{name}: {error}') from None


def equal_flops_steps(steps: int, own: float, reference: float) -> int:
    """Least number of steps, at least `steps`, in which an arm with `own` FLOPs per step spends as
    many FLOPs as `steps` steps of `reference` FLOPs.
    """
    return max(steps, math.ceil(steps * reference / own - 1e-6))


def _with_needs(chosen: Sequence[str], needs: Mapping[str, tuple[str, ...]]) -> list[str]:
    """The arms and all stages they need, without repeats, each after the stages it needs."""

    def visit(name: str) -> Iterator[str]:
        for stage in choose('needs', name, needs):
            yield from visit(stage)
        yield name

    return list(dict.fromkeys(each for name in chosen for each in visit(name)))


def _full(study: ConfigDict) -> Amount:
    return Amount(study.prompts, study.images, study.captions, study.questions, 0)


def _points(study: ConfigDict, last: int, is_stage: bool) -> dict[int, Amount]:
    """{step: amount to score}: the full amount at the equal steps and the end, less in between."""
    if is_stage:  # stages do not generate images; an autoencoder reconstructs them
        return {last: Amount(0, 0, study.captions, study.questions, 0)}
    full = _full(study)
    few = Amount(study.curve.prompts, 1, 0, min(study.curve.prompts, study.questions), 0)
    every = study.steps // study.curve.points
    points = dict.fromkeys(range(every, last + 1, every), few)
    return points | {study.steps: full, last: full}


def _config(study: ConfigDict, arms: Arms, name: str) -> ConfigDict:
    """The config of an arm with the overrides of the study."""
    config = arms.config_of(name)
    fields = checks.flatten(config.to_dict())
    for change in study.overrides:
        field, _, value = change.partition('=')
        new = renamed_fields.RENAMED.get(field)
        require(new is None, f'overrides: {field} is now {new}')
        choose('overrides', field, fields)
        require(field not in _SET_BY_STUDY, f'overrides: {change!r}: the study itself sets {field}')
        with contextlib.suppress(SyntaxError, ValueError):  # else a plain string
            value = ast.literal_eval(value)
        try:
            config.update_from_flattened_dict({field: value})
        except (TypeError, ValueError) as error:
            raise UserError(f'overrides: {change!r}: {error}') from None
    checks.check(config)
    return train_loop.with_absolute_paths(config)
