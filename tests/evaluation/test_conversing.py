"""conversing.py: what is asked is done by one sampler and left undone by another."""

import numpy as np
import pytest

from rf_jax.data import source_list
from rf_jax.data.messages import assistant
from rf_jax.evaluation import conversing
from rf_jax.generation.generated_image import GeneratedImage
from rf_jax.scenes import render


class Knowing:
    """Answers as the scenes say; `wrong`: edits nothing and answers nothing."""

    def __init__(self, source, count, wrong=False):
        self.source, self.wrong, self.lengths = source, wrong, set()
        self.edits = {edit.request: [] for edit in conversing.edit_set(source, count)}
        for edit in conversing.edit_set(source, count):
            self.edits[edit.request].append(edit)
        self.answers = {
            (source.image(i).tobytes(), question.question): question.answer
            for i, several in conversing.question_set(source, count)
            for question in several
        }

    def chat(self, conversations, **settings):
        assert len(conversations) == conversing.ROWS
        return [self.answer(talk) for talk in conversations]

    def answer(self, talk):
        self.lengths.add(len(talk))
        image = next(image for message in talk for image in message.images)
        text = talk[-1].text
        if text in self.edits:
            (edit,) = [
                e for e in self.edits[text]
                if (render.render(e.before, self.source.size) == image).all()
            ][:1]  # fmt: skip
            shown = image if self.wrong else render.render(edit.after, self.source.size)
            return assistant(GeneratedImage(shown, None, text, 0))
        return assistant('nothing' if self.wrong else self.answers[image.tobytes(), text])

    def generate(self, prompts, seed):
        blank = np.full((self.source.size,) * 2 + (3,), 25, np.uint8)
        return [GeneratedImage(blank, None, prompt, seed) for prompt in prompts]


@pytest.fixture(scope='module')
def source():
    return source_list.build('scenes:aligned/48/seed=77', 10**6)[0]


def shares(entry):
    names = 'changed', 'kept'
    return [np.mean([v for kind in entry.values() for v in kind[name]]) for name in names]


def test_edits(source):
    found = conversing.score_edits(Knowing(source, 40), source, 40)
    assert shares(found['edited']) == [1.0, 1.0]
    assert shares(found['generated anew'])[1] < 0.5  # blank images keep nothing but nothing
    found = conversing.score_edits(Knowing(source, 40, wrong=True), source, 40)
    assert shares(found['edited']) == [0.0, 1.0]


def test_follow_ups(source):
    sampler = Knowing(source, 40)
    found = conversing.score_follow_ups(sampler, source, 40)
    assert all(np.mean(each) == 1 for each in found.values())
    assert len(found['first']) == 40 and len(found['later']) == len(found['alone']) > 40
    assert sampler.lengths == {1, 3, 5}, 'what was said before is said again'
    found = conversing.score_follow_ups(Knowing(source, 40, wrong=True), source, 40)
    assert not any(sum(each) for each in found.values())


def test_the_table_names_all(source):
    sampler = Knowing(source, 40)
    text = conversing.table({
        'edits': conversing.score_edits(sampler, source, 40),
        'follow_up': conversing.score_follow_ups(sampler, source, 40),
    })  # fmt: skip
    for name in ('edited: changed', 'edited: kept', 'generated anew: kept', '  move',
                 'question later', 'question alone'):  # fmt: skip
        assert name in text


def test_no_edit_and_no_later_question_is_no_rate(source, monkeypatch):
    """No scene can be edited, and there is one question about each."""
    questions = [source.questions(i)[:1] for i in range(3)]
    sampler = Knowing(source, 3)
    sampler.answers = {
        (source.image(i).tobytes(), question.question): question.answer
        for i, (question,) in enumerate(questions)
    }
    monkeypatch.setattr(conversing.edits, 'sample', lambda *_: None)
    monkeypatch.setattr(source, 'questions', questions.__getitem__)
    text = conversing.table({
        'edits': conversing.score_edits(sampler, source, 3),
        'follow_up': conversing.score_follow_ups(sampler, source, 3),
    })  # fmt: skip
    rows = [line.split() for line in text.splitlines()]
    assert ['edited:', 'changed', '0', '-'] in rows and ['question', 'later', '0', '-'] in rows
    assert ['question', 'first', '3', '100.0%', '43.8%', '..', '100.0%'] in rows
