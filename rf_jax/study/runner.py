"""The study's runner: trains what the plan names, scores it, goes on where it was stopped.

Several processes may run the same study: each claims a run that no other has.
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

import rf_jax
from rf_jax.evaluation import run_report, scoring
from rf_jax.runtime import checkpoint, distributed, exit_codes, paths, workdir
from rf_jax.runtime.errors import Unavailable, UserError
from rf_jax.study import plan, plots, report
from rf_jax.study.plan import Piece
from rf_jax.training import train_loop

WAIT = 5  # seconds between looks at the runs of other processes
Score = Callable[..., scoring.Score]


def run(study, folder: str | Path, score: Score = scoring.score) -> bool:
    """Trains and scores what is not finished yet; False if a signal stopped it.

    A run that cannot go on, as one whose values are not finite, ends neither the study nor what
    does not grow from it; UserError is raised for it when all others are done.

    `report.md`, `results.csv` and pictures are written anew after each arm. Runs of other processes
    that work on the same folder are waited for. Raises UserError for an unknown arm, or a folder of
    another study; then nothing is written.
    """
    plots.require()
    folder = paths.local(folder, '--workdir')
    arms = plan.load_arms(study.runs)
    plan.check(study, arms)
    plan.check_recorded(study, folder)
    workdir.check_writable(folder)
    pieces = plan.plan(study, folder, arms)
    for piece in pieces:
        plan.check_run(piece)
    kept = {'config': json.loads(study.to_json()), 'rf_jax': rf_jax.__version__,
            'jax': jax.__version__}  # fmt: skip
    workdir.write_run_files(folder, {'study.json': json.dumps(kept, indent=1)})
    failed: dict[Path, UserError] = {}
    while left := [p for p in unfinished(pieces) if not failed.keys() & {p.folder, *p.stages}]:
        piece, held = claim_next(left)
        if piece is None:
            time.sleep(WAIT)
            continue
        with held:
            number = pieces.index(piece) + 1
            logging.info('Run %d of %d: %s to %d', number, len(pieces), piece.folder, piece.last)
            try:
                plan.check_run(piece)  # another process may have begun it
                check_stages(piece, pieces)
                done = finish(piece, score, lambda: logging.info('%s', progress(pieces)))
            except UserError as error:
                logging.error('%s cannot go on: %s', piece.folder, error)
                failed[piece.folder], done = error, True
            if not done:
                logging.warning('The study was stopped; run the same command again to go on')
                return False
        jax.clear_caches()  # programs of this run; the next has its own
        if not piece.is_stage:
            report.write(study, pieces, folder)
    report.write(study, pieces, folder)
    if failed:
        told = '; '.join(f'{path.name}: {error}' for path, error in failed.items())
        passing = all(isinstance(error, Unavailable) for error in failed.values())
        raise (Unavailable if passing else UserError)(
            f'{len(failed)} run(s) could not go on, nor what grows from them; all others are done. '
            f'{told}. Another config needs another --workdir'
        )
    return True


def unfinished(pieces: Sequence[Piece]) -> list[Piece]:
    """What is not scored to its end, and stages that a run which is to begin needs and whose last
    checkpoint was removed: one of fewer steps, of a training that goes on again, is not what other
    arms started from.
    """
    left = [piece for piece in pieces if not piece.finished]
    needed = {s for piece in left if not checkpoint.exists_in(piece.folder) for s in piece.stages}
    gone = [p for p in pieces if p.folder in needed and not checkpoint.has_step(p.folder, p.last)]
    return [piece for piece in pieces if piece in left or piece in gone]


def claim_next(left: Sequence[Piece]) -> tuple[Piece | None, contextlib.AbstractContextManager]:
    """The first run that is not finished, can start and is no other process's, held until the
    context is left; None if all are waiting for others.
    """
    folders = {piece.folder for piece in left}
    for piece in left:
        if folders.intersection(piece.stages):
            continue
        file = workdir.lock(piece.folder)
        if file and piece in unfinished(left):  # else another process has just finished it
            return piece, file
        if file:
            file.close()
    return None, contextlib.nullcontext()


def check_stages(piece: Piece, pieces: Sequence[Piece]) -> None:
    """Raises UserError if a run that is to begin would start from less than the end of a stage: it
    takes the newest checkpoint that has a description, and stops if the arrays are damaged.
    """
    if checkpoint.exists_in(piece.folder):
        return
    for stage in (each for each in pieces if each.folder in piece.stages):
        step, _ = checkpoint.latest(stage.folder / 'checkpoints')
        if step != stage.last:
            raise UserError(
                f'of {stage.folder} step {step} can be read, and not {stage.last}, its end: remove '
                f'{stage.folder} and it is trained again'
            )


def finish(piece: Piece, score: Score, tell: Callable[[], None]) -> bool:
    """Trains a run to its end and scores it at the points of the plan; False if stopped before.

    Raises UserError for a run that cannot go on, and for a stage that leaves no checkpoint.
    """
    run_ = train_loop.build(piece.config, piece.folder)
    scorer = Scorer(piece, run_, score, tell)
    with run_.goodput.phase('evaluation'):
        scorer.newest_checkpoint()
    state = train_loop.train(run_, scorer.while_training)
    if run_.stopped:
        return False
    if piece.is_stage and not checkpoint.has_step(piece.folder, piece.last):
        raise UserError(
            f'the checkpoint of step {piece.last}, which arms start from, is not in '
            f'{piece.folder}/checkpoints: see the warnings above, and whether the disk is full'
        )
    if piece.score(piece.last) is None:
        with run_.goodput.phase('evaluation'):
            scorer.at(piece.last, state.ema, scorer.sampler.placement.gather(state.codebook))
    run_.goodput.save(piece.last, distributed.is_main())
    return True


class Scorer:
    """Scores one run at the points of its plan, with programs that are compiled once."""

    def __init__(self, piece: Piece, run_: train_loop.Run, score: Score, tell: Callable[[], None]):
        self.piece, self.score, self.tell = piece, score, tell
        self.sampler = run_report.sampler_of(run_)
        self.shardings = jax.tree.map(lambda a: a.sharding, run_.abstract.ema)
        self.parameters = sum(x.size for x in jax.tree.leaves(run_.abstract.params))

    def newest_checkpoint(self) -> None:
        """Scores what a run left unscored that was stopped between its checkpoint and its score."""
        if not checkpoint.exists_in(self.piece.folder):
            return
        folder = self.piece.folder / 'checkpoints'
        step, _ = checkpoint.latest(folder)
        if step != self.piece.last and self.due(step):  # the end is scored after training
            step, saved = checkpoint.restore_to_device(folder, None, only='ema')
            self.while_training(step, jax.device_put(saved['ema'], self.shardings), None)

    def while_training(self, step: int, ema, writer) -> None:
        """The hook of the training loop."""
        del writer
        if self.due(step):
            self.at(step, ema)

    def due(self, step: int) -> bool:
        """Whether the plan wants a score of this step that is not there."""
        return step in self.piece.points and self.piece.score(step) is None

    def at(self, step: int, ema, codebook: np.ndarray | None = None) -> None:
        """Scores averaged parameters and writes the score beside the run."""
        began, amount = time.monotonic(), self.piece.points[step]
        self.sampler.params = self.sampler.placement.params(ema)
        found = self.score(self.sampler, amount, codebook)
        self.sampler.params = None  # the steps that follow reuse the memory
        values = {
            'step': step,
            'amount': amount.to_dict(),
            'seconds': round(time.monotonic() - began, 1),
            'parameters': self.parameters,
            'flops_per_step': self.piece.flops,
        }
        path = self.piece.score_file(step)
        packed = io.BytesIO()
        np.savez_compressed(packed, **found.shown)
        workdir.write_run_files(path.parent, {path.with_suffix('.npz').name: packed.getvalue()})
        # Last, as a score that can be read says that all is there.
        text = json.dumps(values | found.values)
        workdir.write_run_files(path.parent, {path.name: text})
        exit_codes.record_progress()
        logging.info('%s at step %d: %s', self.piece.folder.name, step, scoring.line(found.values))
        self.tell()


def progress(pieces: Sequence[Piece]) -> str:
    """One line: what is done of the study and when it will be, from what it took so far, if as many
    processes go on with it as do now.
    """
    done = trained = train_seconds = scored = score_seconds = 0.0
    train_left = score_left = 0.0
    for piece in pieces:
        spent = report.spent(piece)
        done += piece.finished
        trained += spent.steps * piece.flops
        train_seconds += spent.seconds
        if not piece.finished:
            train_left += max(piece.last - spent.steps, 0) * piece.flops
        for step, amount in piece.points.items():
            found = piece.score(step)
            if found:
                scored += amount.size
                score_seconds += found['seconds']
            elif not piece.finished:
                score_left += amount.size
    line = f'study: {done:.0f} of {len(pieces)} runs done'
    if not trained or not scored:
        return f'{line} | ETA unknown yet'
    left = train_left * train_seconds / trained + score_left * score_seconds / scored
    left /= max(1, sum(workdir.is_locked(piece.folder) for piece in pieces))
    return f'{line} | ETA {int(left // 3600)}:{int(left // 60) % 60:02d} h'
