"""Words for a picture: prompts to draw it from, questions about it, and the corpus of both."""

from collections.abc import Iterable, Iterator

import numpy as np

from rf_jax.data.records import Record

# The label stands whole and before the tags, so that a cut prompt loses tags first.
_PLAIN = ('a picture of {label}', 'an image of {label}', 'draw {label}', 'show me {label}')
_TAGGED = ('{label}, {tags}', 'a picture of {label}, {tags}')
_WHAT = 'What is this?'
_WORDS = 'Which words describe it?'
_KIND = 'What kind of thing is it?'
_PROMPT_TAGS = 3  # most tags in a prompt
_ANSWER_TAGS = 4  # most tags in an answer
_CORPUS_RECORDS = 200_000  # most records that a source lends to the corpus
_CORPUS_PROCEDURAL = 2_000  # the same for one that says all its words in a few


def prompt(record: Record, rng: np.random.Generator, label_probability: float) -> str:
    """What a person might ask for to get this picture: the bare label, else a paraphrase.

    The label (one of the captions) is always contained in full.
    """
    label = _draw(record.captions, rng)
    if rng.random() < label_probability:
        return label
    tags = [tag for tag in record.tags if tag not in label]  # the others would add nothing
    template = _draw(_PLAIN + _TAGGED if tags else _PLAIN, rng)
    count = int(rng.integers(1, _PROMPT_TAGS + 1))
    chosen = rng.permutation(len(tags))[:count]
    return template.format(label=label, tags=', '.join(tags[i] for i in sorted(chosen)))


def dialogue(
    record: Record, rng: np.random.Generator, question_probability: float
) -> tuple[str, str]:
    """(question, answer) about the picture; question '' asks to describe it at once.

    Describing answers one of the captions word for word. A question is the record's own if it
    has any, else a generic one that its fields can answer.
    """
    label = _draw(record.captions, rng)
    if rng.random() >= question_probability:
        return '', label
    return _draw(record.questions or _generic_questions(record, label), rng)


def corpus(sources: Iterable) -> Iterator[str]:
    """Every text that the sources lead to, in a fixed order: what a tokenizer is trained on.

    Tags and wordings are mixed in the share that prompts and dialogues show them.
    """
    for source in sources:
        most = _CORPUS_PROCEDURAL if source.procedural else _CORPUS_RECORDS
        step = -(-len(source) // most)
        for i in range(0, len(source), max(1, step)):
            record = source.record(i)
            yield from record.captions
            if not record.height:
                continue
            rng = np.random.default_rng(i)
            yield prompt(record, rng, label_probability=0.0)
            questions = record.questions or _generic_questions(record, record.captions[0])
            for question, answer in questions:
                yield question
                yield answer


def _generic_questions(record: Record, label: str) -> tuple[tuple[str, str], ...]:
    questions = [(_WHAT, label)]
    if record.tags:
        questions.append((_WORDS, ', '.join(record.tags[:_ANSWER_TAGS])))
    if record.kind:
        questions.append((_KIND, record.kind))
    return tuple(questions)


def _draw(choices, rng: np.random.Generator):
    return choices[int(rng.integers(len(choices)))]
