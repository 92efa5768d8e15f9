"""thinking.py: riddles and redrawn images are judged, on images of which the truth is known."""

import json

import numpy as np
import pytest

from rf_jax.data import source_list
from rf_jax.data.messages import DraftPart, ImagePart
from rf_jax.evaluation import thinking
from rf_jax.generation.generated_image import GeneratedImage
from rf_jax.scenes import critique, render, riddles

COUNT = 24


@pytest.fixture(scope='module')
def build():
    return {
        option: source_list.build(f'scenes:aligned/48/{option}/seed=77/count=100', 10**6)[0]
        for option in ('riddles=think', 'riddles=direct', 'critique')
    }


def image_of(scene):
    return GeneratedImage(render.render(scene, 48), None, '', 0)


def test_riddles(build, monkeypatch):
    """A model that writes and draws all right, but mistakes unseen riddles for another."""
    source = build['riddles=think']
    chosen = {side: riddles.riddle_set(side, source.rung, COUNT) for side in riddles.SIDES}
    drawn = {
        text: (riddle, not (text == riddle.text and side == 'unseen'))
        for side, several in chosen.items()
        for riddle in several
        for text in (riddle.text, riddle.literal)
    }
    wrong = riddles.riddle_set('seen', source.rung, 1)[0]

    def think(sampler, prompts, seed):
        assert len(prompts) % thinking.ROWS == 0
        for text in prompts:
            riddle, right = drawn[text]
            shown = riddle if right else wrong
            scene = riddles.scene(shown, source.rung, np.random.default_rng(seed))
            yield shown.literal if text == riddle.text else '', image_of(scene)

    monkeypatch.setattr(thinking.thinking, 'think', think)
    found = thinking.score_riddles(None, source, COUNT)
    assert {side: np.mean(each['right']) for side, each in found.items()} == {
        'seen': 1, 'unseen': 0, 'literal': 1
    }  # fmt: skip
    assert found['unseen']['written'] == found['unseen']['right']
    assert found['literal']['written'] == found['literal']['right'] == [1] * COUNT
    text = thinking.table({'riddles': found})
    assert 'unseen prompts: right' in text and 'literal prompts: written' in text
    direct = thinking.score_riddles(None, build['riddles=direct'], COUNT)
    assert not any('written' in each for each in direct.values())


@pytest.fixture
def drafted(build, monkeypatch):
    """A model whose every third draft is another scene. It writes that all is right about half of
    the drafts, corrects the others, and corrects all if it is told.
    """
    source = build['critique']
    asked = thinking.prompt_set(source, COUNT)
    number = {each.text: i for i, each in enumerate(asked)}
    scenes = [source.scene(i) for i in range(COUNT)]
    bad = source.scene(COUNT + 1)

    def draw(sampler, prompts, seed):
        return [image_of(bad if number[p] % 3 == 0 else scenes[number[p]]) for p in prompts]

    def redraw(sampler, prompts, drafts=(), critiques=(), seed=0):
        firsts = drafts or draw(sampler, prompts, seed)
        for i, (prompt, draft) in enumerate(zip(prompts, firsts)):
            if critiques:
                assert critiques[i] != critique.RIGHT
            said = critiques[i] if critiques else critique.RIGHT
            again = bool(critiques) or number[prompt] % 2 == 0
            yield draft, said, image_of(scenes[number[prompt]]) if again else draft

    monkeypatch.setattr(thinking.thinking, 'draw', draw)
    monkeypatch.setattr(thinking.thinking, 'redraw', lambda *a, **k: list(redraw(*a, **k)))
    return source


def test_redraw(drafted):
    source = drafted
    found = thinking.score_redraw(None, source, COUNT)
    assert all(len(each) == COUNT for each in found.values())
    assert sum(found['told']) == COUNT, 'with the critique of the judge'
    assert found['first'] == found['second'] == found['noticed'] == found['worded']
    assert 0.5 < np.mean(found['first']) < np.mean(found['final']) < 1
    changed = thinking.changes(found)
    rates = {name: np.mean(each) for name, each in changed.items()}
    assert rates['final: wrong | right first'] == rates['second: right | wrong first'] == 0
    assert rates['final: right | wrong first'] == pytest.approx(0.5, abs=0.15)
    assert rates['told: right | wrong first'] == 1
    assert 'final: right | wrong first' in thinking.table({'redraw': found})


@pytest.mark.parametrize('wrong', [False, True])
def test_a_folder_of_drafts_is_read_as_it_was_meant(build, monkeypatch, tmp_path, wrong):
    source = build['critique']
    shown = [source.scene(50 if wrong else i) for i in range(4)]
    drawn = lambda sampler, prompts, seed: [image_of(scene) for scene in shown]  # noqa: E731
    monkeypatch.setattr(thinking.thinking, 'draw', drawn)
    right = thinking.write_drafts(None, source, 4, tmp_path)
    (folder,) = source_list.build(f'folder:{tmp_path}', 10**6)
    assert len(folder.conversations) == 4
    for i, talk in enumerate(folder.conversations):
        said, (draft, text, *again) = talk.messages[0].text, talk.messages[1].parts
        assert said.startswith('draw ') and draft == DraftPart(0)
        np.testing.assert_array_equal(talk.image(0), render.render(shown[i], 48))
        assert (again == []) == (text.text == critique.RIGHT)
        if again:
            assert again == [ImagePart(1)]
            np.testing.assert_array_equal(talk.image(1), source.image(i))
    lines = (tmp_path / 'conversations.jsonl').read_text().splitlines()
    assert right == sum(critique.RIGHT in json.dumps(json.loads(each)) for each in lines)
    assert right < 4 if wrong else right == 4
