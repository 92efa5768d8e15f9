"""Runs a study: trains and scores the jobs of the plan, and resumes where it was stopped.

Several processes may run the same study; each locks the job that it works on.
"""

import contextlib
import io
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

import rf_jax
from rf_jax.evaluation import run_report, scoring
from rf_jax.runtime import checkpoint, distributed, errors, paths, workdir
from rf_jax.runtime.errors import Unavailable, UserError
from rf_jax.study import plan, plots, report
from rf_jax.study.plan import Job
from rf_jax.training import lora, train_loop

WAIT = 5  # seconds between checks of the jobs of other processes
Score = Callable[..., scoring.Score]


def run(study: ConfigDict, folder: str | Path, score: Score = scoring.score) -> bool:
    """Trains and scores all unfinished jobs; returns False if a signal stopped it.

    If a job fails, for example on a non-finite loss, the study continues with all jobs that do not
    depend on it and raises UserError at the end. `report.md`, `results.csv` and figures are
    rewritten after each arm. Jobs locked by other processes on the same folder are waited for.

    Raises UserError for an unknown arm or the folder of another study, before writing anything.
    """
    plots.require()
    folder = paths.local(folder, '--workdir')
    arms = plan.load_arms(study.runs)
    plan.check(study, arms)
    plan.check_recorded(study, folder)
    workdir.check_writable(folder)
    jobs = plan.plan(study, folder, arms)
    for job in jobs:
        plan.check_run(job)
    record = {'config': json.loads(study.to_json()), 'rf_jax': rf_jax.__version__,
              'jax': jax.__version__}  # fmt: skip
    workdir.write_run_files(folder, {'study.json': json.dumps(record, indent=1)})
    failed: dict[Path, UserError] = {}
    while left := [p for p in unfinished(jobs) if not failed.keys() & {p.folder, *p.stages}]:
        job, lock = lock_next(left)
        if job is None:
            time.sleep(WAIT)
            continue
        with lock:
            number = jobs.index(job) + 1
            logging.info('Run %d of %d: %s to step %d', number, len(jobs), job.folder, job.last)
            try:
                plan.check_run(job)  # another process may have started it
                check_stages(job, jobs)
                done = finish(job, score, lambda: logging.info('%s', progress(jobs)))
            except UserError as error:
                logging.error('%s failed: %s', job.folder, error)
                failed[job.folder], done = error, True
            if not done:
                logging.warning('The study was stopped; run the same command again to resume it')
                return False
        jax.clear_caches()  # the next job compiles its own programs
        if not job.is_stage:
            report.write(study, jobs, folder)
    report.write(study, jobs, folder)
    if failed:
        reasons = '; '.join(f'{path.name}: {error}' for path, error in failed.items())
        temporary = all(isinstance(error, Unavailable) for error in failed.values())
        raise (Unavailable if temporary else UserError)(
            f'{len(failed)} run(s) failed, and runs that depend on them were not started; all '
            f'others are done. {reasons}. Another config needs another --workdir'
        )
    return True


def unfinished(jobs: Sequence[Job]) -> list[Job]:
    """Jobs without their final score, and stages that a new job needs but whose last checkpoint was
    removed: an earlier checkpoint is not what the other arms started from.
    """
    left = [job for job in jobs if not job.finished]
    needed = {s for job in left if not checkpoint.exists_in(job.folder) for s in job.stages}
    missing = [p for p in jobs if p.folder in needed and not checkpoint.has_step(p.folder, p.last)]
    return [job for job in jobs if job in left or job in missing]


def lock_next(left: Sequence[Job]) -> tuple[Job | None, contextlib.AbstractContextManager]:
    """Locks the first unfinished job whose stages are done; the lock is the returned context.

    None if all jobs are locked by other processes or wait for them.
    """
    folders = {job.folder for job in left}
    for job in left:
        if folders.intersection(job.stages):
            continue
        file = workdir.lock(job.folder)
        if file and job in unfinished(left):  # else another process just finished it
            return job, file
        if file:
            file.close()
    return None, contextlib.nullcontext()


def check_stages(job: Job, jobs: Sequence[Job]) -> None:
    """Raises UserError if a new job would start from an earlier checkpoint than the end of a stage.

    It would load the newest checkpoint with readable metadata, and fail if its arrays are damaged.
    """
    if checkpoint.exists_in(job.folder):
        return
    for stage in (each for each in jobs if each.folder in job.stages):
        step, _ = checkpoint.latest(stage.folder / 'checkpoints')
        if step != stage.last:
            raise UserError(
                f'the newest readable checkpoint of {stage.folder} is step {step}, not '
                f'{stage.last}, its end: remove {stage.folder} to train it again'
            )


def finish(job: Job, score: Score, log_progress: Callable[[], None]) -> bool:
    """Trains a job to its end and scores it at the planned points; False if a signal stopped it.

    Raises UserError if training fails or a stage leaves no checkpoint.
    """
    errors.require(not lora.enabled(job.config), f'{job.folder}: studies train no adapters')
    run_ = train_loop.build(job.config, job.folder)
    scorer = Scorer(job, run_, score, log_progress)
    with run_.goodput.phase('evaluation'):
        scorer.newest_checkpoint()
    state = train_loop.train(run_, scorer.while_training)
    if run_.stopped:
        return False
    if job.is_stage and not checkpoint.has_step(job.folder, job.last):
        raise UserError(
            f'the checkpoint of step {job.last}, which arms start from, is missing in '
            f'{job.folder}/checkpoints: see the warnings above; is the disk full?'
        )
    if job.score(job.last) is None:
        with run_.goodput.phase('evaluation'):
            scorer.at(
                job.last, run_.average(state), scorer.sampler.placement.gather(state.codebook)
            )
    run_.goodput.save(job.last, distributed.is_main())
    return True


class Scorer:
    """Scores one job at its planned points, compiling the programs once."""

    def __init__(
        self, job: Job, run_: train_loop.Run, score: Score, log_progress: Callable[[], None]
    ):
        self.job, self.score, self.log_progress = job, score, log_progress
        self.sampler = run_report.sampler_of(run_)
        self.ema = run_.abstract.ema
        self.parameters = sum(x.size for x in jax.tree.leaves(run_.abstract.params))

    def newest_checkpoint(self) -> None:
        """Takes the score that is missing if a run was stopped between checkpoint and score."""
        if not checkpoint.exists_in(self.job.folder):
            return
        folder = self.job.folder / 'checkpoints'
        step, _ = checkpoint.latest(folder)
        if step != self.job.last and self.due(step):  # the last step is scored after training
            step, saved = checkpoint.restore_placed(
                folder, None, only='ema', place=lambda _: {'ema': self.ema}
            )
            self.while_training(step, saved['ema'], None)

    def while_training(self, step: int, ema, writer) -> None:
        """The hook of the training loop."""
        del writer
        if self.due(step):
            self.at(step, ema)

    def due(self, step: int) -> bool:
        """Whether a score of this step is planned and missing."""
        return step in self.job.points and self.job.score(step) is None

    def at(self, step: int, ema, codebook: np.ndarray | None = None) -> None:
        """Scores the EMA parameters and writes the score into the workdir of the job."""
        began, amount = time.monotonic(), self.job.points[step]
        self.sampler.params = self.sampler.placement.params(ema)
        score = self.score(self.sampler, amount, codebook)
        self.sampler.params = None  # frees the memory for the next steps
        values = {
            'step': step,
            'amount': amount.to_dict(),
            'seconds': round(time.monotonic() - began, 1),
            'parameters': self.parameters,
            'flops_per_step': self.job.flops,
        }
        path = self.job.score_file(step)
        packed = io.BytesIO()
        np.savez_compressed(packed, **score.shown)
        workdir.write_run_files(path.parent, {path.with_suffix('.npz').name: packed.getvalue()})
        # Written last: a readable score means that all files are complete.
        text = json.dumps(values | score.values)
        workdir.write_run_files(path.parent, {path.name: text})
        errors.record_progress()
        logging.info('%s at step %d: %s', self.job.folder.name, step, scoring.line(score.values))
        self.log_progress()


def progress(jobs: Sequence[Job]) -> str:
    """One line: how much of the study is done, and an ETA from the times so far, assuming that as
    many processes keep working on it as now.
    """
    done = trained = train_seconds = scored = score_seconds = 0.0
    train_left = score_left = 0.0
    for job in jobs:
        spent = report.training_time(job)
        done += job.finished
        trained += spent.steps * job.flops
        train_seconds += spent.seconds
        if not job.finished:
            train_left += max(job.last - spent.steps, 0) * job.flops
        for step, amount in job.points.items():
            score = job.score(step)
            if score:
                scored += amount.size
                score_seconds += score['seconds']
            elif not job.finished:
                score_left += amount.size
    line = f'study: {done:.0f} of {len(jobs)} runs done'
    if not trained or not scored:
        return f'{line} | ETA not known yet'
    left = train_left * train_seconds / trained + score_left * score_seconds / scored
    left /= max(1, sum(workdir.is_locked(job.folder) for job in jobs))
    return f'{line} | ETA {int(left // 3600)}:{int(left // 60) % 60:02d} h'
