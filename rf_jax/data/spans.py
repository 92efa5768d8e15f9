"""From the text and image of one example to spans; training and generation share it."""

from collections import Counter

import numpy as np
from ml_collections import ConfigDict

from rf_jax.data import layout
from rf_jax.runtime.errors import require

POOLS = (1, 2, 4)
OF_A_PROMPT = 2  # special tokens beside the text: begin and end


def pool_of(config: ConfigDict) -> int:
    """Side in patches of the group that one representation token stands for, 0 if pixels follow
    the prompt at once. Raises UserError.
    """
    pool = config.model.representation.pool
    require(pool in POOLS, f'model.representation.pool={pool!r} must be one of {POOLS}')
    return pool if config.data.representation_tokens else 0


def text_span(tokenizer, text, max_text, loss_from, counts: Counter) -> layout.Text:
    """`<bos> text <eos>`; loss on the tokens after position `loss_from`, None for no loss.

    Longer text is truncated to `max_text` tokens and counted; the loss then leaves out its end.
    """
    whole = tokenizer.encode(text)
    ids = [tokenizer.bos, *_truncate(whole, max_text - OF_A_PROMPT, counts), tokenizer.eos]
    end = tokenizer.eos if len(ids) == len(whole) + OF_A_PROMPT else -1
    targets = [*ids[1:-1], end, -1]
    if loss_from is None:
        return layout.Text(ids)
    return layout.Text(ids, [t if i >= loss_from else -1 for i, t in enumerate(targets)])


def document(tokenizer, text: str, max_text: int) -> list[layout.Text]:
    """`<bos> text <eos>` in pieces of at most `max_text` tokens; each token predicts the next."""
    ids = np.array([tokenizer.bos, *tokenizer.encode(text), tokenizer.eos], np.int32)
    tokens, targets = ids[:-1], ids[1:]
    return [
        layout.Text(tokens[start : start + max_text], targets[start : start + max_text])
        for start in range(0, len(tokens), max_text)
    ]


def first_piece(tokenizer, text: str, max_text: int, counts: Counter) -> layout.Text:
    """The first piece of `document`; a text with more pieces is counted as truncated."""
    first, *rest = document(tokenizer, text, max_text)
    if rest:
        counts['text_truncated'] += 1
    return first


def question_room(tokenizer, max_text: int) -> int:
    """The most tokens that a question may have: half of a span of `max_text`, or fewer, so that the
    answer has at least one.
    """
    return min(max_text // 2, max_text - tokenizer.chat.question_and_answer - 1)


def question_answer_span(tokenizer, question, answer, max_text, counts: Counter) -> layout.Text:
    """A question and its answer in the tokenizer's chat format (plain: `<bos> question <answer>
    answer <eos>`) with loss on the answer and its end.

    A long question is truncated to `question_room`, the answer to the rest. The loss leaves out
    the end of a truncated answer, or the model would learn to stop in mid-sentence.
    `answer` None ends the span where the answer begins, for generation to continue.
    """
    chat = tokenizer.chat
    asked = tokenizer.encode(question) if question else []
    asked = _truncate(asked, question_room(tokenizer, max_text), counts)
    head = [*chat.before['user'], *asked, *chat.after['user'], *chat.answer_begins]
    if answer is None:
        return layout.Text(head)
    whole, after = tokenizer.encode(answer), chat.after['assistant']
    said = _truncate(whole, max_text - len(head) - len(after), counts)
    end = after if len(said) == len(whole) else [-1] * len(after)
    return layout.Text([*head, *said, *after], [-1] * (len(head) - 1) + [*said, *end, -1])


def generation_spans(
    prompt: list[layout.Span],
    grid: tuple[int, int],
    pixels: np.ndarray | None,
    pool: int,
    *,
    drop_text: bool,
    drop_representation: bool,
    keep_positions: bool,
) -> list[layout.Span]:
    """Spans of text-to-image with condition dropout; training and generation share it.

    `pool` as `pool_of` gives it; 0: the pixels follow the prompt directly.
    """
    if drop_text:
        length = sum(len(span.tokens) for span in prompt)
        prompt = [layout.Skip(length)] if keep_positions else []
    if not pool:
        return [*prompt, layout.Pixels(*grid, pixels)]
    return [
        *prompt,
        layout.Representation(*grid, pool=pool),
        layout.Pixels(*grid, pixels, reads_representation=not drop_representation, pool=pool),
    ]


def _truncate(tokens: list[int], most: int, counts: Counter) -> list[int]:
    if len(tokens) > most:
        counts['text_truncated'] += 1
    return tokens[:most]
