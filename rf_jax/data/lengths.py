"""Captions that are longer than a run can learn or generate."""

from collections.abc import Sequence

from absl import logging

_CHECKED = 2_000  # most records per source whose captions are checked

# Special tokens beside the text: begin and end of a prompt; an answer also has <answer>.
_OF_A_PROMPT, _OF_AN_ANSWER = 2, 3


def longest_answer(config) -> int:
    """Tokens of the longest answer that a run both learns to the end and has room to generate."""
    return min(config.data.max_text_tokens - _OF_AN_ANSWER, config.sampling.max_answer_tokens)


def too_long(tokenizer, captions: Sequence[str], longest: int) -> bool:
    """Whether every one of the captions has more than `longest` tokens."""
    return all(len(tokenizer.encode(caption)) > longest for caption in captions)


def truncated(sources: Sequence, tokenizer, data) -> tuple[int, int]:
    """(captions that do not fit into `data.max_text_tokens`, captions checked): of all images, or
    of _CHECKED evenly spaced ones per source.
    """
    answered = data.tasks.get('image_to_text', 0) > 0
    longest = data.max_text_tokens - (_OF_AN_ANSWER if answered else _OF_A_PROMPT)
    long = count = 0
    for source in dict.fromkeys(sources):
        for i in range(0, len(source), -(-len(source) // _CHECKED)):
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
