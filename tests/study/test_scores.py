"""Scores of a trained arm: by its own tasks, on new scenes, and only for runs on scenes."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from ml_collections import ConfigDict

from rf_jax.data import source_list
from rf_jax.evaluation import inspection, run_report, scoring, unified_bench
from rf_jax.runtime.errors import UserError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures('built')]


def test_an_arm_is_scored_on_the_tasks_it_trains(arm, tmp_path):
    amount = scoring.Amount(prompts=1, images=1, captions=4, questions=1)
    codebook = np.eye(32, dtype=np.float32)
    values, again = (scoring.score(arm, amount, codebook).values for _ in range(2))
    assert values == again == json.loads(json.dumps(values))
    assert list(values['generation']) == list(scoring.SIDES)
    assert {len(each['correct']) for each in values['generation']['seen'].values()} == {1}
    assert (
        values['distances']
        and 0 < values['codebook']['used'] <= 1 <= values['codebook']['perplexity']
    )
    assert len(values['understanding']) == 7
    run = inspection.Inspector(arm, codebook, 30)
    table = run_report.evaluate(run, None, tmp_path, 4, 0, amount)
    assert 'overall' in table and 'understanding' in table, (
        'scored by the judge, as its source is scenes'
    )
    written = json.loads((tmp_path / 'score.json').read_text())
    assert written.pop('sampling')['guidance_representation'] == 2.0
    assert written == {'step': 30, 'seed': 0, 'amount': amount.to_dict()} | values
    one = scoring.Amount(prompts=0, images=1, captions=1, questions=0)
    assert not scoring.score(arm, one, codebook).values['distances']


def test_a_trained_arm_describes_new_scenes_and_generates_them_again(arm):
    source = scoring.new_scenes(arm.config)
    images, scenes = ([of(i) for i in range(2)] for of in (source.image, source.scene))
    own = {'own': unified_bench.of_run(arm)}
    values = unified_bench.evaluate(arm, images, own, scenes).values
    assert values['captions'] == arm.caption(images)
    assert all(-1 <= each < 1 - 1e-4 for each in values['similarity']['own'])
    assert all(0 <= each <= 1 for name in ('error', 'recovered', 'exact') for each in values[name])
    again = unified_bench.evaluate(arm, images, own, scenes).values
    assert values == again == json.loads(json.dumps(values))


def test_new_scenes_are_not_those_of_training(arm):
    new = scoring.new_scenes(arm.config)
    (old,) = source_list.build(arm.config.data.sources, 10**6)
    assert new.rung == old.rung and new.size == old.size and len(new) > len(old)
    again = {new.scene(i) for i in range(64)} & {old.scene(i) for i in range(64)}
    assert len(again) < 16, 'only scenes of few objects repeat by chance'


def test_a_run_without_scenes_is_refused(arm):
    config = ConfigDict(arm.config.to_dict())
    config.data.sources = 'emoji'
    with pytest.raises(UserError, match=r"data.sources='emoji' of the run has no scenes"):
        scoring.score(SimpleNamespace(config=config, tokenizer=None), scoring.Amount())
    letters = SimpleNamespace(encode=list)
    with pytest.raises(UserError, match='not trained on scenes'):
        scoring.score(SimpleNamespace(config=arm.config, tokenizer=letters), scoring.Amount())
