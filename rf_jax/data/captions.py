"""Text for an image: prompts to generate it from, questions about it, the corpus of both,
and captions that are longer than a run can learn or generate.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from absl import logging

from rf_jax.data import maps, spans
from rf_jax.data.messages import TextPart
from rf_jax.data.records import Record, is_indexed

# The whole label comes before the tags, so that truncating a prompt removes tags first.
_PLAIN = ('a picture of {label}', 'an image of {label}', 'draw {label}', 'show me {label}')
_TAGGED = ('{label}, {tags}', 'a picture of {label}, {tags}')
_WHAT = 'What is this?'
_WORDS = 'Which words describe it?'
_KIND = 'What kind of thing is it?'
_PROMPT_TAGS = 3  # most tags in a prompt
_ANSWER_TAGS = 4  # most tags in an answer
_CORPUS_RECORDS = 200_000  # most records that a source contributes to the corpus
_CORPUS_PROCEDURAL = 2_000  # the same for a procedural source, whose words soon repeat
_CORPUS_SHARDS = 20_000  # the same for a source of shards, each a read
_CHECKED = 2_000  # most records per source whose captions are checked


def prompt(record: Record, rng: np.random.Generator, label_probability: float) -> str:
    """A prompt for this image: the bare label, or else a paraphrase.

    It always contains the whole label, which is one of the captions.
    """
    label = _choice(record.captions, rng)
    if rng.random() < label_probability:
        return label
    tags = [tag for tag in record.tags if tag not in label]  # the others add nothing
    template = _choice(_PLAIN + _TAGGED if tags else _PLAIN, rng)
    count = int(rng.integers(1, _PROMPT_TAGS + 1))
    chosen = rng.permutation(len(tags))[:count]
    return template.format(label=label, tags=', '.join(tags[i] for i in sorted(chosen)))


def question_and_answer(
    record: Record, rng: np.random.Generator, question_probability: float
) -> tuple[str, str]:
    """(question, answer) about the image; question '' asks for a caption.

    The answer is then one of the captions, word for word. A question is one of the record's own if
    it has any, or else a generic one that its fields can answer.
    """
    label = _choice(record.captions, rng)
    if rng.random() >= question_probability:
        return '', label
    return _choice(record.questions or _generic_questions(record, label), rng)


def corpus(sources: Iterable, asked: Sequence[str] = ()) -> Iterator[str]:
    """All text of the sources in a fixed order, to train a tokenizer on.

    Tags and templates occur about as often as in prompts and questions. `asked`: maps that are
    asked for (`data.maps`), whose instructions are part of it.
    """
    for name in asked:
        several = list(maps.texts([name]))
        yield from several * (_CORPUS_PROCEDURAL // len(several))
    for source in sources:
        if is_indexed(source):
            yield from source.texts(_CORPUS_SHARDS)
            continue
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
        step = -(-len(source.conversations) // most)
        for i in range(0, len(source.conversations), max(1, step)):
            for message in source.conversations[i].messages:
                yield from (part.text for part in message.parts if isinstance(part, TextPart))


def _generic_questions(record: Record, label: str) -> tuple[tuple[str, str], ...]:
    questions = [(_WHAT, label)]
    if record.tags:
        questions.append((_WORDS, ', '.join(record.tags[:_ANSWER_TAGS])))
    if record.kind:
        questions.append((_KIND, record.kind))
    return tuple(questions)


def _choice(choices, rng: np.random.Generator):
    return choices[int(rng.integers(len(choices)))]


def longest_answer(config, tokenizer) -> int:
    """Tokens of the longest answer that a run both learns to the end and has room to generate."""
    learned = config.data.max_text_tokens - tokenizer.chat.question_and_answer
    return min(learned, config.sampling.max_answer_tokens)


def too_long(tokenizer, captions: Sequence[str], longest: int) -> bool:
    """Whether every one of the captions has more than `longest` tokens."""
    return all(len(tokenizer.encode(caption)) > longest for caption in captions)


def truncated(sources: Sequence, tokenizer, data) -> tuple[int, int]:
    """(captions that do not fit into `data.max_text_tokens`, captions checked): of all images, or
    of _CHECKED evenly spaced ones per source.
    """
    answered = data.tasks.get('image_to_text', 0) > 0
    around = tokenizer.chat.question_and_answer if answered else spans.OF_A_PROMPT
    longest = data.max_text_tokens - around
    long = count = 0
    for source in dict.fromkeys(sources):
        if is_indexed(source):
            texts = list(source.texts(_CHECKED))
            count += len(texts)
            long += sum(too_long(tokenizer, [text], longest) for text in texts)
            continue
        for i in range(0, len(source), max(1, -(-len(source) // _CHECKED))):
            record = source.record(i)
            for caption in record.captions if record.height else ():
                count += 1
                long += too_long(tokenizer, [caption], longest)
    return long, count


def warn_of_truncation(sources: Sequence, tokenizer, data) -> None:
    """Logs a warning, in one line, if any captions are truncated."""
    long, count = truncated(sources, tokenizer, data)
    if long:
        logging.warning(
            '%d of %d captions checked do not fit into data.max_text_tokens=%d tokens and are '
            'truncated: raise data.max_text_tokens and data.capacity.text',
            *(long, count, data.max_text_tokens),
        )
