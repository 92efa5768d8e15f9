"""The study: nothing is trained twice or overwritten, and its tables tell the scores."""

import csv
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from shrink import quick_compilation

from configs import study as study_config
from rf_jax.data import source_list
from rf_jax.evaluation import inspection, run_report, scoring, vqa
from rf_jax.generation.sampler import Sampler
from rf_jax.runtime import checkpoint
from rf_jax.runtime.errors import UserError
from rf_jax.runtime.rng import generator
from rf_jax.runtime.workdir import claim
from rf_jax.scenes import prompts
from rf_jax.study import plan, plots, report, runner
from rf_jax.training import train_loop

# Stands where configs/scenes.py does: `half` costs half the FLOPs a step of `whole`.
ARMS = """
from types import SimpleNamespace
from configs import base
from shrink import shrink

STAGES = {'first': SimpleNamespace(needs=())}
ARMS = {name: SimpleNamespace(needs=needs) for name, needs in {
    'whole': ('first',), 'half': ('first',), 'double': ()}.items()}

def get_config(name):
    config = shrink(base.get_config())
    config.data.sources, config.data.patch_size = 'scenes:aligned/32/count=64', 8
    config.data.max_text_tokens, config.tokenizer.vocab_size = 24, 512
    config.data.sizes = ((32, 1.0),)
    config.data.batch_size = {'half': 4, 'double': 16}.get(name, 8)
    if name == 'first':
        config.data.tasks.text_to_image = 0.0
    return config
"""
STEPS = 4


def small(folder, **changes):
    """A study of two arms and one seed with the arms above."""
    path = folder / 'arms.py'
    path.parent.mkdir(exist_ok=True)
    path.write_text(ARMS)
    config = study_config.get_config()
    config.update_from_flattened_dict(
        {
            'runs': str(path), 'arms': 'whole,half', 'seeds': 1, 'steps': STEPS, 'first_steps': 2,
            'prompts': 3, 'pictures': 2, 'captions': 0, 'questions': 5, 'curve.points': 2,
            'curve.prompts': 2,
        }
        | changes
    )  # fmt: skip
    return config


def fingerprint(sampler, amount, codebook):
    """A score that depends on every parameter and on how much is asked, drawn in no time."""
    total = sum(float(np.abs(np.asarray(x)).sum()) for x in jax.tree.leaves(sampler.params))
    rng = generator(repr(total), repr(amount), codebook is not None)
    draws = sampler.config.data.tasks.text_to_image > 0 and amount.prompts

    def side(name):
        return {
            category: {
                'prompts': [f'{category} {i}' for i in range(amount.prompts)],
                'correct': rng.integers(0, 2, (amount.prompts, amount.pictures)).tolist(),
            }
            for category in prompts.CATEGORIES
        }

    kinds = {
        kind: {'correct': rng.integers(0, 2, amount.questions).tolist(), 'commonest': 0.5}
        for kind in ('exists', 'count')
    }
    values = {
        'generation': {name: side(name) for name in scoring.SIDES} if draws else {},
        'understanding': kinds,
        'distances': {'kid': float(rng.random())} if draws else {},
        'codebook': {} if codebook is None or not draws else {'used': float(rng.random())},
        'variety': {'places': float(rng.random())} if draws else {},
        'autoencoder': {},
        'shown': {name: ['a red circle', 'two rings'] for name in scoring.SIDES} if draws else {},
    }
    pictures = {
        name: rng.integers(0, 255, (2, 32, 32, 3)).astype(np.uint8) for name in values['shown']
    }
    return scoring.Score(values, pictures)


def scores(workdir):
    """{file: score} without the time it took."""
    found = {}
    for path in sorted(workdir.glob('*/scores/*.json')):
        found[str(path.relative_to(workdir))] = json.loads(path.read_text()) | {'seconds': 0}
    return found


def contents(workdir):
    return {path: path.read_bytes() for path in sorted(workdir.rglob('*')) if path.is_file()}


@pytest.fixture(scope='module', autouse=True)
def built():
    """Names of the runs that are built, on one device, with programs that are compiled quickly."""
    names, build = [], train_loop.build

    def spy(config, folder):
        names.append(folder.name)
        return build(config, folder, jax.devices()[:1])

    with pytest.MonkeyPatch.context() as patch, quick_compilation():
        patch.setattr(train_loop, 'build', spy)
        yield names


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """(config, workdir) of a study that nothing disturbed."""
    folder = tmp_path_factory.mktemp('study')
    config = small(folder)
    assert runner.run(config, folder / 'study', fingerprint)
    return config, folder / 'study'


def test_cheaper_arms_go_on_to_equal_flops(finished):
    _, workdir = finished
    assert list(scores(workdir)) == [
        'first-s0/scores/00000002.json',
        *(f'half-s0/scores/{step:08d}.json' for step in (2, 4, 6, 8)),
        *(f'whole-s0/scores/{step:08d}.json' for step in (2, 4)),
    ]
    spent = {}
    for name in ('half', 'whole'):
        score = scores(workdir)[f'{name}-s0/scores/{8 if name == "half" else 4:08d}.json']
        spent[name] = score['step'] * score['flops_per_step']
        assert score['amount'] == {'prompts': 3, 'pictures': 2, 'captions': 0, 'questions': 5}
    assert spent['half'] == pytest.approx(spent['whole'])


@pytest.mark.parametrize(
    'own, dearest, steps', [(3.0, 3.0, 100), (2.0, 3.0, 150), (0.7, 1.0, 143), (1.0, 3.0001, 301)]
)
def test_equal_flops_are_spent_but_no_step_more(own, dearest, steps):
    assert plan.equal_flops_steps(100, own, dearest) == steps
    assert steps * own >= 100 * dearest * (1 - 1e-9) > (steps - 1) * own or steps == 100


def test_arms_start_from_the_stage_of_their_seed(finished):
    _, workdir = finished
    for name in ('half', 'whole'):
        kept = json.loads((workdir / f'{name}-s0' / 'config.json').read_text())
        assert kept['initialise_from'] == str(workdir / 'first-s0')
    names = ('first-s0', 'half-s0', 'whole-s0')
    assert len({(workdir / name / 'tokenizer.model').read_bytes() for name in names}) == 1
    assert Sampler.load(workdir / 'half-s0').config.steps == 8, 'an ordinary run folder'
    assert Sampler.load(workdir / 'half-s0', step=STEPS), 'also at equal steps'


class Crash(Exception):
    pass


def test_a_study_that_is_stopped_anywhere_ends_the_same(finished, built, tmp_path, monkeypatch):
    _, undisturbed = finished
    config, workdir, asked = small(tmp_path), tmp_path / 'study', []
    disturbed = {
        ('first-s0', 2): Crash,  # trained, not scored
        ('whole-s0', 2): signal.SIGTERM,  # between steps
        ('half-s0', 4): Crash,  # in the middle, its checkpoint perhaps on disk
    }
    original = runner.Scorer.at

    def at(self, step, *rest):
        what = disturbed.pop((self.piece.folder.name, step), None)
        if what is Crash:
            raise Crash
        if what:
            os.kill(os.getpid(), what)
        asked.append((self.piece.folder.name, step))
        return original(self, step, *rest)

    monkeypatch.setattr(runner.Scorer, 'at', at)
    built.clear()
    ends = []
    while True not in ends and len(ends) < 10:
        try:
            ends.append(runner.run(config, workdir, fingerprint))
        except Crash:
            ends.append(Crash)
    assert ends == [Crash, False, Crash, True] and not disturbed
    assert len(asked) == len(set(asked)), 'nothing is scored twice'
    assert built == [f'{name}-s0' for name in ['first'] * 2 + ['whole'] * 2 + ['half'] * 2]
    assert scores(workdir) == scores(undisturbed)
    for name in ('whole-s0', 'half-s0'):
        (step, state), other = (
            checkpoint.restore_numpy(folder / name / 'checkpoints')
            for folder in (workdir, undisturbed)
        )
        assert step == other[0]
        assert jax.tree.all(jax.tree.map(np.array_equal, state, other[1]))
    assert (workdir / 'results.csv').read_text() == (undisturbed / 'results.csv').read_text()


def test_a_signal_in_a_runs_last_step_stops_the_study(built, tmp_path, monkeypatch):
    config, workdir = small(tmp_path), tmp_path / 'study'
    original, put = train_loop.Run.put, []

    def signalled(self, *given):
        put.append(self.workdir.name)
        if put == ['first-s0'] * 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *given)

    monkeypatch.setattr(train_loop.Run, 'put', signalled)
    built.clear()
    assert not runner.run(config, workdir, fingerprint)
    assert built == ['first-s0'] and not scores(workdir)
    assert checkpoint.restore_numpy(workdir / 'first-s0' / 'checkpoints')[0] == 2, 'all is kept'


def test_processes_share_a_study(finished, built, tmp_path, monkeypatch):
    """What another process has claimed is left to it, and what grows from that waits."""
    _, undisturbed = finished
    config, folder = small(tmp_path, arms='whole,half,double'), tmp_path / 'study'
    others = [claim(folder / 'first-s0')]
    assert claim(folder / 'first-s0') is None

    def waits(seconds):
        assert built == ['double-s0'], 'the one arm that grows from no stage'
        others.pop().close()  # the other process ends before its run does

    monkeypatch.setattr(runner, 'time', SimpleNamespace(sleep=waits, monotonic=time.monotonic))
    built.clear()
    assert runner.run(config, folder, fingerprint) and not others
    assert built == ['double-s0', 'first-s0', 'whole-s0', 'half-s0']
    found = {name: s for name, s in scores(folder).items() if not name.startswith('double')}
    assert found == scores(undisturbed)


def test_a_claim_ends_with_its_process(tmp_path):
    """However it ends: here it is killed."""
    code = f'from rf_jax.runtime.workdir import claim; input(claim({str(tmp_path)!r}))'
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, '-c', code], stdin=pipe, stdout=pipe) as other:
        assert other.stdout.read(1), 'it has it'
        assert claim(tmp_path) is None
        other.kill()
    with claim(tmp_path):
        pass


def test_a_score_that_is_missing_is_taken_from_the_checkpoint(finished, built):
    config, workdir = finished
    path = workdir / 'half-s0' / 'scores' / '00000008.json'
    before = json.loads(path.read_text())
    path.unlink()
    built.clear()
    assert runner.run(config, workdir, fingerprint)
    assert built == ['half-s0']
    assert json.loads(path.read_text()) == before | {
        'seconds': json.loads(path.read_text())['seconds']
    }


def test_a_finished_study_trains_nothing(finished, built):
    config, workdir = finished
    before = {path: path.stat().st_mtime_ns for path in workdir.glob('*-s0/**/*')}
    built.clear()
    assert runner.run(config, workdir, fingerprint)
    assert not built
    assert before == {path: path.stat().st_mtime_ns for path in workdir.glob('*-s0/**/*')}


def test_a_stage_whose_checkpoint_is_gone_is_trained_again_for_what_needs_it(
    finished, built, tmp_path
):
    """Scores are small and kept; checkpoints may be removed."""
    config, undisturbed = finished
    folder = tmp_path / 'study'
    shutil.copytree(undisturbed, folder, ignore=shutil.ignore_patterns('checkpoints'))
    built.clear()
    assert runner.run(config, folder, fingerprint)
    assert not built, 'nothing needs it'
    shutil.rmtree(folder / 'half-s0')
    assert runner.run(config, folder, fingerprint)
    assert built == ['first-s0', 'half-s0']
    assert scores(folder) == scores(undisturbed)


def test_no_arm_starts_from_a_stage_that_is_being_trained_again(
    finished, built, tmp_path, monkeypatch
):
    """Stopped in the middle it has a score and a checkpoint, but of fewer steps."""
    config, undisturbed = finished
    folder = tmp_path / 'study'
    shutil.copytree(undisturbed, folder, ignore=shutil.ignore_patterns('checkpoints', 'half-s0'))
    original = train_loop.Run.put

    def signalled(self, *given):
        monkeypatch.setattr(train_loop.Run, 'put', original)
        os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *given)

    monkeypatch.setattr(train_loop.Run, 'put', signalled)
    built.clear()
    assert not runner.run(config, folder, fingerprint)
    assert checkpoint.restore_numpy(folder / 'first-s0' / 'checkpoints')[0] == 1
    assert runner.run(config, folder, fingerprint)
    assert built == ['first-s0', 'first-s0', 'half-s0']
    assert scores(folder) == scores(undisturbed)


def test_no_arm_starts_from_less_than_the_end_of_its_stage(finished, built, tmp_path):
    """The last checkpoint is damaged, and one before it can be read."""
    config, undisturbed = finished
    folder = tmp_path / 'study'
    shutil.copytree(undisturbed, folder, ignore=shutil.ignore_patterns('half-s0'))
    kept = folder / 'first-s0' / 'checkpoints'
    (kept / '2').rename(kept / '1')
    (kept / '2').mkdir()
    built.clear()
    with pytest.raises(UserError, match=r'of .*first-s0 step 1 can be read, and not 2'):
        runner.run(config, folder, fingerprint)
    assert not built and not (folder / 'half-s0' / 'checkpoints').exists()


def test_a_stage_that_leaves_no_checkpoint_is_told_and_not_trained_for_ever(
    built, tmp_path, monkeypatch
):
    monkeypatch.setattr(checkpoint.Checkpoints, 'save', lambda *given, **named: None)
    built.clear()
    with pytest.raises(UserError, match=r'first-s0: the checkpoint of step 2.*disk'):
        runner.run(small(tmp_path), tmp_path / 'study', fingerprint)
    assert built == ['first-s0']


def test_a_run_that_another_process_began_with_another_config_is_left_alone(
    finished, built, tmp_path, monkeypatch
):
    config, undisturbed = finished
    folder = tmp_path / 'study'
    shutil.copytree(undisturbed, folder, ignore=shutil.ignore_patterns('half-s0'))
    claim_next = runner.claim_next

    def other_first(left):
        (folder / 'half-s0').mkdir()
        text = (undisturbed / 'half-s0' / 'config.json').read_text()
        (folder / 'half-s0' / 'config.json').write_text(text.replace('"rows": 4', '"rows": 5'))
        return claim_next(left)

    monkeypatch.setattr(runner, 'claim_next', other_first)
    built.clear()
    with pytest.raises(
        UserError, match=r'half-s0 was trained with another config: data.batch_size'
    ):
        runner.run(config, folder, fingerprint)
    assert not built


@pytest.mark.parametrize('steps, points, every', [(3500, 7, 500), (3600, 6, 300), (300, 2, 150)])
def test_there_is_a_checkpoint_at_every_point(tmp_path, steps, points, every):
    config = small(tmp_path, steps=steps, **{'curve.points': points})
    text = ARMS.replace(
        'config.data.batch_size =', 'config.checkpoint.every = 500\n    config.data.batch_size ='
    )
    Path(config.runs).write_text(text)
    arms = plan.load_arms(config.runs)
    pieces = plan.plan(config, tmp_path, arms)
    assert {p.config.checkpoint.every for p in pieces if not p.is_stage} == {every}


def test_a_run_that_cannot_go_on_does_not_hold_up_the_others(
    finished, built, tmp_path, monkeypatch
):
    _, undisturbed = finished
    config, folder = small(tmp_path), tmp_path / 'study'
    train = train_loop.train

    def diverging(run, *rest):
        if run.workdir.name == 'whole-s0':
            raise UserError('the loss is not finite')
        return train(run, *rest)

    monkeypatch.setattr(train_loop, 'train', diverging)
    built.clear()
    with pytest.raises(UserError, match=r'1 run\(s\) could not go on.*whole-s0: the loss is not'):
        runner.run(config, folder, fingerprint)
    assert built == ['first-s0', 'whole-s0', 'half-s0']
    assert '2 of 3 runs are finished' in (folder / 'report.md').read_text()
    monkeypatch.undo()
    assert scores(folder).keys() == {n for n in scores(undisturbed) if 'whole' not in n}


def test_report_and_results_tell_the_scores(finished):
    _, workdir = finished
    kept = scores(workdir)
    text = (workdir / 'report.md').read_text()
    with (workdir / 'results.csv').open() as file:
        lines = list(csv.DictReader(file))
    for line in lines:
        score = kept[f'{line["arm"]}-s{line["seed"]}/scores/{int(line["step"]):08d}.json']
        asked = score['generation'] | {'understanding': score['understanding']}
        correct = np.array(asked[line['side']][line['category']]['correct'])
        assert int(line['correct']) == correct.sum() and int(line['count']) == correct.size
        assert float(line['rate']) == pytest.approx(correct.mean(), abs=1e-6)
    sides = len(scoring.SIDES) * len(prompts.CATEGORIES)
    assert len(lines) == sum((sides if s['generation'] else 0) + 2 for s in kept.values())
    for name, title, step in (
        ('whole', 'equal steps', 4), ('half', 'equal steps', 4),
        ('whole', 'equal FLOPs', 4), ('half', 'equal FLOPs', 8),
    ):  # fmt: skip
        score = kept[f'{name}-s0/scores/{step:08d}.json']
        section = text.split(f'## Generation at {title}')[1].split('##')[0]
        row = re.search(
            rf'^\| {name} \| {step} \| (\S+) .*\| (\S+) \S+ \S+ \| \S+ \|$', section, re.M
        )
        for rate, side in zip(row.groups(), scoring.SIDES):
            assert float(rate) == pytest.approx(
                scoring.overall(score['generation'][side]), abs=6e-4
            )
        asked = text.split(f'## Understanding at {title}')[1].split('##')[0]
        kinds = [np.mean(entry['correct']) for entry in score['understanding'].values()]
        row = re.search(rf'^\| {name} \| (\S+)', asked, re.M)
        assert float(row[1]) == pytest.approx(np.mean(kinds), abs=6e-4)
    for picture in (
        'score_against_steps',
        'score_by_category',
        'codebook_use',
        'flow_loss',
        'grid_seen',
    ):
        assert f'![{picture}.png]' in text
        assert (workdir / f'{picture}.png').read_bytes().startswith(b'\x89PNG')


def refused(config, workdir, match):
    before = contents(workdir)
    with pytest.raises(UserError, match=match):
        runner.run(config, workdir, fingerprint)
    assert before == contents(workdir), 'nothing is written'


def test_another_study_is_refused_by_its_fields(finished):
    config, workdir = finished
    other = config.copy_and_resolve_references()
    other.steps, other.curve.prompts = 8, 1
    refused(other, workdir, r'curve.prompts is 1 and was 2; steps is 8 and was 4')
    other = config.copy_and_resolve_references()
    other.arms = 'half,whole'
    refused(other, workdir, r"arms is \['half'\] and was \['whole'\]")
    refused(config, workdir / 'half-s0', 'holds a run')


def test_arms_and_seeds_may_be_added_and_left_out(finished):
    config, workdir = finished
    more = config.copy_and_resolve_references()
    more.arms, more.seeds = 'whole,double,half', 2
    plan.check_recorded(more, workdir)
    pieces = plan.plan(more, workdir, plan.load_arms(more.runs))
    for piece in pieces:
        plan.check_run(piece)
    ends = {(p.name, p.seed): (p.steps, p.last, p.finished) for p in pieces}
    assert list(ends) == [
        (name, seed) for seed in (0, 1) for name in ('first', 'whole', 'double', 'half')
    ]
    assert ends['first', 0] == (2, 2, True), 'a stage is trained once'
    assert ends['half', 0] == (4, 8, True) and ends['whole', 0] == (4, 4, True)
    assert ends['double', 0] == (4, 4, False), 'a dearer arm moves no end'
    fewer = config.copy_and_resolve_references()
    fewer.arms = 'whole'
    plan.check_recorded(fewer, workdir)


def test_a_changed_arm_is_refused(finished, tmp_path):
    _, workdir = finished
    other = small(tmp_path, overrides=('optimizer.learning_rate=0.5',))
    pieces = plan.plan(other, workdir, plan.load_arms(other.runs))
    with pytest.raises(UserError, match=r'first-s0.*optimizer.learning_rate is 0.5 and was'):
        plan.check_run(pieces[0])


@pytest.mark.parametrize(
    'changes, match',
    [
        ({'arms': 'whole,hlaf'}, r"'hlaf' is not known; did you mean 'half'\?.*Known: whole, half"),
        ({'arms': 'first'}, "'first' is not known"),
        ({'arms': ''}, 'arms is empty; known: whole'),
        ({'arms': 'half,half'}, 'names half twice'),
        ({'steps': 5}, 'steps=5 must be a multiple of curve.points=2'),
        ({'curve.prompts': 4}, 'curve.prompts=4 cannot be more than prompts=3'),
        ({'seeds': 0}, 'seeds=0 must be at least 1'),
        ({'captions': 30000}, r'captions=30000 .* there are 20000 new scenes'),
        ({'captions': 1}, 'captions=1 must be 0 or at least 2'),
        ({'overrides': ('steps=9',)}, "'steps=9': the study itself sets steps"),
        ({'runs': 'no.py'}, "runs='no.py'"),
    ],
)
def test_a_study_that_cannot_run_is_refused(tmp_path, changes, match):
    refused(small(tmp_path, **changes), tmp_path / 'study', match)


@pytest.mark.parametrize(
    'change, match',
    [
        ('data.row=4', 'did you mean .data.batch_size'),
        ('data.batch_size=many', 'data.batch_size=many'),
    ],
)
def test_an_override_that_no_config_has_is_refused(tmp_path, change, match):
    config = small(tmp_path, overrides=(change,))
    with pytest.raises(UserError, match=match):
        plan.plan(config, tmp_path, plan.load_arms(config.runs))


@pytest.mark.parametrize(
    'change, match',
    [
        ('data.capacity.pixels=4', r'whole: data.capacity.pixels=4 cannot hold one example'),
        ("model.backbone.split='halves'", r"first: .*'halves' is not known"),
        ('data.sources=scenes:aligned/32/objects=1', 'whole: prompts ask for two or more objects'),
        ('data.sources=emoji', 'first: .* has no scenes'),
        (
            'data.max_text_tokens=8',
            'whole: the tokenizer of the run makes .* data.max_text_tokens=8',
        ),
    ],
)
def test_what_a_run_would_raise_at_its_turn_is_raised_at_once(tmp_path, change, match):
    refused(small(tmp_path, overrides=(change,)), tmp_path / 'study', match)


def test_plots_are_asked_for_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)
    refused(small(tmp_path), tmp_path / 'study', r'pip install .*study')


class Answers:
    """Takes the place of a sampler: `answer` of (right answer) for each question."""

    def __init__(self, source, answer):
        self.truth = {}
        for i in range(60):
            for each in source.questions(i):
                self.truth[source.picture(i).tobytes(), each.question] = each.answer
        self.answer = answer

    def describe(self, pictures, questions):
        return [self.answer(self.truth[p.tobytes(), q]) for p, q in zip(pictures, questions)]


@pytest.mark.parametrize(
    'answer, right',
    [(lambda a: f' {a.upper()} ', True), (lambda a: f'{a} it is', False), (lambda a: '', False)],
)
def test_understanding_is_exact_but_for_case(answer, right):
    (source,) = source_list.build('scenes:aligned/32/seed=5', 10**6)
    found = vqa.evaluate(Answers(source, answer), source, 6)
    assert set(found) >= {'exists', 'count', 'colour', 'shape', 'where', 'compare', 'same'}
    assert all(entry['correct'] == [int(right)] * 6 for entry in found.values())
    assert all(1 / 6 <= entry['commonest'] <= 1 for entry in found.values())


def test_always_yes_is_right_as_often_as_the_commonest_answer():
    (source,) = source_list.build('scenes:aligned/32/seed=5', 10**6)
    found = vqa.evaluate(Answers(source, lambda a: 'yes'), source, 6)
    assert max(np.mean(found['exists']['correct']), 1 - np.mean(found['exists']['correct'])) == (
        pytest.approx(found['exists']['commonest'])
    )
    assert sum(found['count']['correct']) == 0


def of_rates(right):
    """A score of one category: texts by pictures."""
    texts = [f'text {i}' for i in range(len(right))]
    entry = {'prompts': texts, 'correct': right}
    return {'generation': {'seen': {'colors': entry}}, 'understanding': {}}


def test_every_pair_of_arms_is_compared_over_the_seeds_that_both_have():
    def group(*rates_of_seeds):
        runs = enumerate(rates_of_seeds)
        return [
            (SimpleNamespace(seed=seed), of_rates([[1] * n + [0] * (4 - n)] * 5))
            for seed, n in runs
        ]

    groups = {'rf': group(4, 3), 'pixel': group(1, 2), 'repa': group(2)}
    text = report._differences(['rf', 'pixel', 'late', 'repa'], groups)
    lines = [line.split('|')[1:-1] for line in text.splitlines() if line.startswith('|')]
    cells = {line[0].strip(): [cell.split('[')[0].strip() for cell in line[1:]] for line in lines}
    assert cells['repa minus rf'][:2] == ['-0.500', '-0.500'], 'seed 0 alone'
    assert cells['pixel minus rf'][1] == '-0.750 -0.250'
    assert cells['pixel'] == ['-0.500', '']
    assert cells['repa'] == ['-0.500', '0.250']
    two = report._differences(['rf', 'pixel'], {k: groups[k] for k in ('rf', 'pixel')})
    assert 'Row minus column' not in two


@pytest.fixture(scope='module')
def arm(finished):
    _, workdir = finished
    return Sampler.load(workdir / 'half-s0')


def test_an_arm_is_scored_by_what_it_trains(arm, tmp_path):
    amount = scoring.Amount(prompts=1, pictures=1, captions=4, questions=1)
    codebook = np.eye(32, dtype=np.float32)
    found, again = (scoring.score(arm, amount, codebook).values for _ in range(2))
    assert found == again == json.loads(json.dumps(found))
    assert list(found['generation']) == list(scoring.SIDES)
    assert {len(each['correct']) for each in found['generation']['seen'].values()} == {1}
    assert (
        found['distances'] and 0 < found['codebook']['used'] <= 1 <= found['codebook']['perplexity']
    )
    assert len(found['understanding']) == 7
    run = inspection.Inspector(arm, codebook, 30)
    told = run_report.evaluate(run, None, tmp_path, 4, 0, amount)
    assert 'overall' in told and 'understanding' in told, 'by the judge, as its source is scenes'
    asked = {'step': 30, 'seed': 0, 'amount': amount.to_dict()}
    assert json.loads((tmp_path / 'score.json').read_text()) == asked | found
    one = scoring.Amount(prompts=0, pictures=1, captions=1, questions=0)
    assert not scoring.score(arm, one, codebook).values['distances']


def test_new_scenes_are_not_those_of_training(arm):
    new = scoring.new_scenes(arm.config)
    (old,) = source_list.build(arm.config.data.sources, 10**6)
    assert new.rung == old.rung and new.size == old.size and len(new) > len(old)
    again = {new.scene(i) for i in range(64)} & {old.scene(i) for i in range(64)}
    assert len(again) < 16, 'only what a grid of few objects repeats by chance'


def test_a_run_without_scenes_is_refused(arm):
    config = ConfigDict(arm.config.to_dict())
    config.data.sources = 'emoji'
    with pytest.raises(UserError, match=r"data.sources='emoji' of the run has no scenes"):
        scoring.score(SimpleNamespace(config=config, tokenizer=None), scoring.Amount())
    letters = SimpleNamespace(encode=list)
    with pytest.raises(UserError, match='not made from scenes'):
        scoring.score(SimpleNamespace(config=arm.config, tokenizer=letters), scoring.Amount())


def test_the_estimate_of_time_counts_training_and_scoring(finished, tmp_path):
    config, workdir = finished
    pieces = plan.plan(config, workdir, plan.load_arms(config.runs))
    assert 'ETA 0:00 h' in runner.progress(pieces) and '3 of 3 runs' in runner.progress(pieces)
    more = config.copy_and_resolve_references()
    more.seeds = 3
    pieces = plan.plan(more, workdir, plan.load_arms(more.runs))
    assert '3 of 9 runs' in runner.progress(pieces)
    nothing = plan.plan(config, tmp_path, plan.load_arms(config.runs))
    assert 'ETA unknown' in runner.progress(nothing)


def test_the_estimate_of_time_is_shared_by_processes(finished, tmp_path, monkeypatch):
    config, workdir = finished
    folder = tmp_path / 'study'
    shutil.copytree(workdir, folder)
    more = config.copy_and_resolve_references()
    more.seeds = 3
    pieces = plan.plan(more, folder, plan.load_arms(more.runs))
    took = {True: report.Spent(STEPS, 7200.0), False: report.Spent(0, 0.0)}
    monkeypatch.setattr(report, 'spent', lambda piece: took[piece.finished])

    def hours():
        found = re.search(r'ETA (\d+):(\d+) h', runner.progress(pieces))
        return int(found[1]) + int(found[2]) / 60

    alone = hours()
    with claim(folder / 'whole-s1'):
        assert hours() == alone, 'one process'
        with claim(folder / 'half-s1'):
            assert hours() == pytest.approx(alone / 2, abs=0.03)
    assert hours() == alone > 1


def test_the_study_of_the_repository_is_of_known_fields():
    full, quick = study_config.get_config(), study_config.get_config('quick')
    assert set(full) == set(quick) and quick.steps < full.steps
    assert math.gcd(full.steps, full.curve.points) == full.curve.points
    with pytest.raises(UserError, match='quick'):
        study_config.get_config('quik')


def test_curves_ask_the_same_of_every_point():
    right = [[1, 0], [0, 0], [1, 1], [1, 1]]
    assert plots.same_prompts(of_rates(right), 'seen', 2) == 0.5


def test_a_run_on_its_way_does_not_cut_the_curves_of_finished_ones():
    done, begun, new = (
        SimpleNamespace(name='half', seed=seed, finished=seed == 0) for seed in range(3)
    )
    scores = {('half', 0): {2: {}, 4: {}}, ('half', 1): {2: {}}, ('half', 2): {}}
    assert plots.shown('half', [done, begun, new], scores) == [done]
    assert plots.shown('half', [begun, new], scores) == [begun]
    assert plots.shown('half', [new], scores) == []
