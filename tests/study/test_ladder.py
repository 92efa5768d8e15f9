"""The ladder reports the scores of the studies, and names the rungs without scores."""

import json

import pytest
from ml_collections import ConfigDict

from configs import ladder as ladder_config
from configs import study as study_config
from rf_jax.data import captions, source_list
from rf_jax.data.sentencepiece_tokenizer import SentencePieceTokenizer
from rf_jax.runtime.errors import UserError
from rf_jax.study import ladder, plan


def score(folder, name, seed, right, step=30):
    """A score of one category: `right` of 10 prompts are correct, and of 10 questions the rest."""
    entry = {
        'prompts': [f'prompt {i}' for i in range(10)],
        'correct': [[i < right] for i in range(10)],
    }
    asked = {'exists': {'correct': [i >= right for i in range(10)]}}
    path = folder / f'{name}-s{seed}' / 'scores' / f'{step:08d}.json'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({'generation': {'seen': {'colors': entry}}, 'understanding': asked}))
    return path


@pytest.fixture
def folder(tmp_path):
    """Two studies: `near` with two seeds and a third of the reference; `far`, without scores."""
    for name in ('near', 'far'):
        (tmp_path / name).mkdir()
        study = {'config': {'steps': 30, 'seeds': 3, 'curve': {'prompts': 10}}}
        (tmp_path / name / 'study.json').write_text(json.dumps(study))
    for seed, (arm, reference) in enumerate(((9, 4), (7, 4))):
        score(tmp_path / 'near', 'a', seed, arm)
        score(tmp_path / 'near', 'b', seed, reference)
    score(tmp_path / 'near', 'b', 2, 10)
    score(tmp_path / 'near', 'a', 0, 2, step=10)
    score(tmp_path / 'near', 'b', 0, 1, step=10)
    return tmp_path


def config(*rungs):
    return ConfigDict({'rungs': {'heading': rungs}})


def test_a_rung_is_the_paired_difference_of_its_arms(folder):
    (rung,) = ladder.rungs(config(('x', 'near', 'a', 'b', 0)), folder)
    found = ladder.measure(rung)
    assert (found.arm.value, found.reference.value) == pytest.approx((0.8, 0.4))
    assert found.ahead.seeds == pytest.approx((0.5, 0.3)), 'only seeds that both have'
    assert found.ahead.value == pytest.approx(0.4)
    assert found.ahead.low <= 0.4 <= found.ahead.high
    assert found.understanding.value == pytest.approx(-0.4)
    (early,) = ladder.rungs(config(('x', 'near', 'a', 'b', 10)), folder)
    assert ladder.measure(early).ahead.value == pytest.approx(0.1)


def test_tables_and_plot_show_the_scores_and_name_missing_rungs(folder):
    rungs = ladder.rungs(
        config(
            ('x', 'near', 'a', 'b', 0), ('y', 'far', 'a', 'b', 0), ('z', 'nowhere', 'a', 'b', 0)
        ),
        folder,
    )  # fmt: skip
    text = ladder.write(rungs, folder / 'ladder')
    assert (folder / 'ladder' / 'ladder.md').read_text() == text
    assert (folder / 'ladder' / 'ladder.png').read_bytes().startswith(b'\x89PNG')
    (row,) = (line for line in text.splitlines() if line.startswith('| x |'))
    numbers = [cell.split()[0] for cell in row.strip('| ').split(' | ')]
    assert numbers == ['x', 'a', '0.800', 'b', '0.400', '0.400', '-0.400', '30', '2']
    assert 'Not scored yet: heading y (far), heading z (nowhere).' in text


def test_invalid_rungs_are_reported(folder):
    with pytest.raises(UserError, match=r"'heading' has .*expected \('name', 'folder'"):
        ladder.rungs(config(('x', 'near', 'a')), folder)
    with pytest.raises(UserError, match=r"rungs: 'x': '\[' is not a regex"):
        ladder.rungs(config(('x', 'near', 'a', 'b', 0, '[')), folder)
    (nobody,) = ladder.rungs(config(('x', 'near', 'a', 'b', 0, 'nothing')), folder)
    with pytest.raises(UserError, match=r"'x': no prompt of .*json matches 'nothing'"):
        ladder.measure(nobody)
    rungs = ladder.rungs(config(('y', 'far', 'a', 'b', 0)), folder)
    with pytest.raises(UserError, match=r'no rung has scores yet in .*far'):
        ladder.write(rungs, folder / 'ladder')
    assert not (folder / 'ladder').exists()
    (folder / 'far' / 'study.json').write_text('{')
    with pytest.raises(UserError, match=r'study.json cannot be read'):
        ladder.write(rungs, folder / 'ladder')


def test_every_rung_of_the_config_can_be_scored_by_a_study(tmp_path):
    for rung in ladder.rungs(ladder_config.get_config(), tmp_path):
        _, _, variant = rung.folder.name.partition('_')
        study = study_config.get_config(variant)
        arms = plan.load_arms(study.runs)
        plan.check(study, arms)
        assert {rung.arm, rung.reference} <= arms.needs.keys()
        every = study.steps // study.curve.points
        assert (rung.steps or study.steps) in range(every, study.steps + 1, every)


def test_all_points_of_a_curve_are_scored_on_the_same_prompts(folder):
    """One seed has images for all prompts, the others only for some."""
    study = {'config': {'steps': 30, 'seeds': 3, 'curve': {'prompts': 5}}}
    (folder / 'near' / 'study.json').write_text(json.dumps(study))
    score(folder / 'near', 'a', 1, 3, step=10)
    path = score(folder / 'near', 'b', 1, 1, step=10)
    few = json.loads(path.read_text())
    entry = few['generation']['seen']['colors']
    entry.update(prompts=entry['prompts'][:5], correct=entry['correct'][:5])
    few['understanding']['exists']['correct'] = few['understanding']['exists']['correct'][:5]
    path.write_text(json.dumps(few))
    (rung,) = ladder.rungs(config(('x', 'near', 'a', 'b', 10)), folder)
    found = ladder.measure(rung)
    assert found.arm.seeds == pytest.approx((2 / 5, 3 / 5))
    assert found.reference.seeds == pytest.approx((1 / 5, 1 / 5))
    assert found.ahead.value == pytest.approx(0.3)


def test_a_rung_may_select_prompts_by_regex(folder):
    """Of ten prompts 9 and 7 are correct for the arm, 4 for the reference: the first ones."""
    (rung,) = ladder.rungs(config(('x', 'near', 'a', 'b', 0, r'prompt [3-8]')), folder)
    found = ladder.measure(rung)
    assert found.arm.seeds == pytest.approx((6 / 6, 4 / 6))
    assert found.reference.seeds == pytest.approx((1 / 6, 1 / 6))
    assert found.understanding is None, 'questions do not depend on prompts'
    study = {'config': {'steps': 30, 'seeds': 2, 'curve': {'prompts': 5}}}
    (folder / 'near' / 'study.json').write_text(json.dumps(study))
    (early,) = ladder.rungs(config(('x', 'near', 'a', 'b', 30, r'prompt [3-8]')), folder)
    assert ladder.measure(early).arm.seeds == pytest.approx((2 / 2, 2 / 2)), 'of the first five'


@pytest.mark.parametrize('variant', ('', 'textures', 'clutter'))
def test_captions_of_a_rung_are_not_truncated(variant):
    study = study_config.get_config(variant)
    config = plan.load_arms(study.runs).config_of(study.arms.split(',')[0])
    for field, _, value in (change.partition('=') for change in study.overrides):
        config.update_from_flattened_dict({field: int(value) if value.isdecimal() else value})
    (source,) = source_list.build(f'{config.data.sources}/count=2000', config.data.max_pixels)
    tokenizer = SentencePieceTokenizer.train(captions.corpus([source]), config.tokenizer.vocab_size)
    texts = [text for i in range(len(source)) for text in source.record(i).captions]
    cut = [text for text in texts if len(tokenizer.encode(text)) + 2 > config.data.max_text_tokens]
    assert len(cut) < 0.001 * len(texts), cut[:5]
