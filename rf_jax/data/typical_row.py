"""A row as a config would fill it, without data: for costs that depend on the attention mask."""

import numpy as np

from rf_jax.data import layout, maps
from rf_jax.data.spans import generation_spans, pool_of
from rf_jax.runtime.rng import generator

PROMPT = 24  # tokens of a prompt of text-to-image, special tokens included
ANSWER = 64  # tokens of a question and its answer
TRIES = 50  # examples that do not fit before a row counts as full


def row(config, seed: int = 0) -> dict[str, np.ndarray]:
    """One row as arrays of `layout.empty`: examples sampled by `data.tasks` and `data.sizes`, with
    square images, prompts of 24 tokens, answers of 64 and documents of `max_text_tokens`, added
    until none fits. A conversation changes an image and is asked about the result; a map is asked
    for by a prompt.
    """
    data, rng = config.data, generator(seed, 'typical')
    tasks = [task for task, weight in data.tasks.items() if weight > 0]
    weights = np.array([data.tasks[task] for task in tasks], float)
    filled, missed = layout.Row(dict(data.capacity), data.patch_size**2 * 3), 0
    sizes = np.array([weight for _, weight in data.sizes], float)
    while missed < TRIES:
        task = tasks[rng.choice(len(tasks), p=weights / weights.sum())]
        side = data.sizes[rng.choice(len(sizes), p=sizes / sizes.sum())][0] // data.patch_size
        prompt, answer = (_text(count, data) for count in (PROMPT, ANSWER))
        generated = generation_spans(
            *([prompt], (side, side), None, pool_of(config)),
            drop_text=False,
            drop_representation=False,
            keep_positions=False,
        )
        seen = layout.Vision(side, side)
        answered = [seen, *generated, layout.Vision(side, side, image=1)]
        spans = {
            'text_to_image': generated,
            'image_to_text': [seen, answer],
            'text_only': [_text(data.max_text_tokens, data)],
            'conversation': [*answered, answer],
            **dict.fromkeys(maps.TASKS, answered),
        }[task]
        try:
            filled.add(spans)
        except ValueError:
            missed += 1
    return filled.arrays


def _text(count: int, data) -> layout.Text:
    return layout.Text([0] * min(count, data.max_text_tokens))


def visible_pairs(arrays: dict[str, np.ndarray]) -> float:
    """Number of (query, key) pairs of a row that are visible (design rule 2)."""
    total = 0.0
    for example in range(1, arrays['segment'].max(initial=0) + 1):
        at = arrays['segment'] == example
        order, reach, block = (arrays[name][at] for name in ('order', 'reach', 'block'))
        covered = np.searchsorted(np.sort(order), reach, side='right').sum()
        blocks, counts = np.unique(block[block > 0], return_counts=True)
        # Pairs of a block beyond the reach: all of a noisy image, none of an encoded one.
        for number, count in zip(blocks, counts):
            inside = block == number
            covered += count * np.sum(order[inside][:, None] > reach[inside].max())
        total += covered
    return float(total)


def image_pairs(counts: np.ndarray, extra: int) -> float:
    """Visible pairs within the images of a row in the encoder.

    `counts`: patches of each image; `extra`: class token and registers of each image.
    """
    counts = counts[counts > 0] + extra
    return float(np.sum(counts.astype(float) ** 2))
