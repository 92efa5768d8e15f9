"""What a rollout sampled as training rows, one sample a row (`data.layout`), with the fields that
only a rollout has.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from rf_jax.data import image_ops, layout, spans
from rf_jax.data.batch import Batch
from rf_jax.data.records import clean
from rf_jax.generation.inputs import Request
from rf_jax.posttraining import rollout
from rf_jax.posttraining.rollout_programs import RolloutPrograms


def of_images(
    rollouts: RolloutPrograms, requests: Sequence[Request], found: rollout.Images
) -> Batch:
    """Rows of a prompt, the sampled tokens, and the noisy images before each stochastic step, which
    do not see each other. `found` as numpy arrays.
    """
    config, tokenizer = rollouts.config, rollouts.tokenizer
    data, pool, policies = config.data, spans.pool_of(config), config.grpo.policies
    steps = found.z.shape[1] - 1 if 'flow' in policies else 0
    examples = []
    for each in requests:
        grid = each.height // data.patch_size, each.width // data.patch_size
        prompt = spans.text_span(tokenizer, each.prompt, data.max_text_tokens, None, Counter())
        tokens = [layout.Representation(*grid, pool=pool, given=True)] if pool else []
        pixels = [layout.Pixels(*grid, pool=pool or 2)] * steps
        examples.append([[prompt, *tokens, *pixels]])
    rows = _rows(rollouts, examples)
    for row, each in enumerate(requests):
        patches = (each.height // data.patch_size) * (each.width // data.patch_size)
        if pool:
            count = patches // pool**2
            rows['tokens'][row, 1 : count + 1] = found.tokens[row, :count]
            rows['code_targets'][row, :count] = found.tokens[row, :count]
            rows['representation_weight'][row, :count] = 'representation' in policies
        for i in range(steps):
            own = row, slice(i * patches, (i + 1) * patches)
            rows['z'][own], rows['z_next'][own] = found.z[row, i : i + 2, :patches]
            rows['t'][own], rows['t_next'][own] = found.t[row, i : i + 2]
    return rows


def of_texts(rollouts: RolloutPrograms, pairs, found: rollout.Texts) -> Batch:
    """Rows of an image, a question and the sampled answer; each answer weighs the same."""
    data, tokenizer = rollouts.config.data, rollouts.tokenizer
    examples, lengths = [], []
    for (image, question), ids in zip(pairs, found.tokens.tolist()):
        height, width = image.shape[:2]
        pixels = image_ops.patchify(image, data.patch_size)
        head = spans.question_answer_span(
            tokenizer, clean(question), None, data.max_text_tokens, Counter()
        ).tokens
        end = next((i for i, token in enumerate(ids, 1) if token in tokenizer.ends), len(ids))
        answer = ids[:end]
        targets = [-1] * (len(head) - 1) + answer + [-1]
        lengths.append(len(answer))
        vision = layout.Vision(height // data.patch_size, width // data.patch_size, pixels)
        examples.append([[vision, layout.Text([*head, *answer], targets)]])
    rows = _rows(rollouts, examples)
    rows['text_weight'] /= np.array(lengths, np.float32)[:, None]
    return rows


def _rows(rollouts: RolloutPrograms, examples) -> Batch:
    """The rows, with the fields of a rollout still empty."""
    rows = layout.make_batch(examples, rollouts.config.data.capacity, rollouts.channels)
    count, tokens = rows['cells'].shape[:2]
    patches = rows['pixels'].shape[1]
    empty = {
        'tokens': np.full((count, tokens), -1, np.int32),
        'code_targets': np.full((count, tokens), -1, np.int32),
        't': np.zeros((count, patches), np.float32),
        't_next': np.ones((count, patches), np.float32),
        'z': np.zeros((count, patches, rollouts.flow_channels), np.float32),
        'z_next': np.zeros((count, patches, rollouts.flow_channels), np.float32),
    }
    return rows | empty
