"""Which captions are longer than a run can learn and answer."""

from collections.abc import Sequence

from absl import logging

_LOOKED_AT = 2_000  # most records of a source whose captions are counted

# Tokens beside those of the text: begin and end of a prompt; an answer also has the answer mark.
_OF_A_PROMPT, _OF_AN_ANSWER = 2, 3


def longest_answer(config) -> int:
    """Tokens of the longest answer that a run both learns to its end and has room to give."""
    return min(config.data.max_text_tokens - _OF_AN_ANSWER, config.sampling.max_answer_tokens)


def too_long(tokenizer, captions: Sequence[str], longest: int) -> bool:
    """Whether every one of the captions has more than `longest` tokens."""
    return all(len(tokenizer.encode(caption)) > longest for caption in captions)


def truncated(sources: Sequence, tokenizer, data) -> tuple[int, int]:
    """(captions that do not fit into `data.max_text_tokens`, captions looked at): of all pictures,
    or of _LOOKED_AT of a source, evenly spaced.
    """
    answered = data.tasks.get('image_to_text', 0) > 0
    longest = data.max_text_tokens - (_OF_AN_ANSWER if answered else _OF_A_PROMPT)
    long = count = 0
    for source in dict.fromkeys(sources):
        for i in range(0, len(source), -(-len(source) // _LOOKED_AT)):
            record = source.record(i)
            for caption in record.captions if record.height else ():
                count += 1
                long += too_long(tokenizer, [caption], longest)
    return long, count


def tell_truncated(sources: Sequence, tokenizer, data) -> None:
    """Logs, in one line, how many captions are truncated, if any are."""
    long, count = truncated(sources, tokenizer, data)
    if long:
        logging.warning(
            '%d of %d captions looked at do not fit into data.max_text_tokens=%d tokens and are '
            'truncated: raise data.max_text_tokens and data.capacity.text',
            *(long, count, data.max_text_tokens),
        )
