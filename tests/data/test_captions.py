"""captions.py: prompts contain the whole label, answers come from the record alone."""

import numpy as np

from rf_jax.data import captions
from rf_jax.data.records import Record

PLAIN = Record(4, 4, captions=('red apple',))
RICH = Record(
    4, 4, captions=('red apple',), tags=('fruit', 'red', 'health', 'pie', 'tree'), kind='food'
)


def draws(function, record, probability, count=200):
    rng = np.random.default_rng(0)
    return [function(record, rng, probability) for _ in range(count)]


def test_label_probability_is_the_share_of_bare_labels():
    assert set(draws(captions.prompt, RICH, 1.0)) == {'red apple'}
    assert 'red apple' not in draws(captions.prompt, RICH, 0.0)
    bare = sum(text == 'red apple' for text in draws(captions.prompt, RICH, 0.5, 1000))
    assert 430 < bare < 570


def test_every_prompt_contains_the_label_and_only_tags_of_the_record():
    for record in (PLAIN, RICH):
        texts = set(draws(captions.prompt, record, 0.0))
        assert len(texts) > 3
        assert all(record.captions[0] in text for text in texts)
        assert not any('{' in text or text.endswith((',', ' ')) for text in texts)
    # 'red' is already in the label and adds nothing.
    tags = {tag for text in texts for tag in text.split(', ')[1:]}
    assert tags == {'fruit', 'health', 'pie', 'tree'}


def test_one_of_several_captions_is_chosen():
    record = Record(4, 4, captions=('one', 'two', 'three'))
    assert set(draws(captions.prompt, record, 1.0)) == {'one', 'two', 'three'}
    assert set(draws(captions.question_and_answer, record, 0.0)) == {
        ('', c) for c in record.captions
    }


def test_a_caption_is_the_label_exactly():
    assert set(draws(captions.question_and_answer, RICH, 0.0)) == {('', 'red apple')}
    asked = sum(
        question != '' for question, _ in draws(captions.question_and_answer, RICH, 0.3, 1000)
    )
    assert 240 < asked < 360


def test_generic_questions_need_a_field_that_answers_them():
    assert set(draws(captions.question_and_answer, RICH, 1.0)) == {
        ('What is this?', 'red apple'),
        ('Which words describe it?', 'fruit, red, health, pie'),
        ('What kind of thing is it?', 'food'),
    }
    assert set(draws(captions.question_and_answer, PLAIN, 1.0)) == {('What is this?', 'red apple')}


def test_questions_of_the_record_replace_generic_ones():
    own = (('How many?', '3'), ('Which colour?', 'red'))
    record = Record(4, 4, captions=('x',), tags=('y',), kind='z', questions=own)
    assert set(draws(captions.question_and_answer, record, 1.0)) == set(own)


def test_the_same_generator_gives_the_same_text():
    assert draws(captions.prompt, RICH, 0.5) == draws(captions.prompt, RICH, 0.5)
    assert draws(captions.question_and_answer, RICH, 0.5) == draws(
        captions.question_and_answer, RICH, 0.5
    )


class Records:
    procedural = False
    conversations = ()

    def __init__(self, *records):
        self._records = records

    def __len__(self):
        return len(self._records)

    def record(self, i):
        return self._records[i]


def test_corpus_has_captions_tags_questions_and_templates():
    own = Record(4, 4, captions=('a', 'b'), questions=(('How many?', '3'),))
    texts = list(captions.corpus([Records(RICH, own), Records(Record(0, 0, ('a paragraph',)))]))
    assert {'red apple', 'What is this?', 'food', 'fruit, red, health, pie'} <= set(texts)
    assert {'a', 'b', 'How many?', '3', 'a paragraph'} <= set(texts)
    assert texts[1] != 'red apple' and 'red apple' in texts[1]
    assert all(texts) and texts[-1] == 'a paragraph'  # text without an image has no templates
    assert list(captions.corpus([Records()])) == []


def test_corpus_samples_a_large_source_evenly(monkeypatch):
    monkeypatch.setattr(captions, '_CORPUS_RECORDS', 10)
    source = Records(*(Record(0, 0, (str(i),)) for i in range(25)))
    assert list(captions.corpus([source])) == [str(i) for i in range(0, 25, 3)]
