"""What a rollout sampled as training rows, one sample a row (`data.layout`), with the fields that
only a rollout has.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from rf_jax.data import image_ops, layout, spans
from rf_jax.data.batch import Batch
from rf_jax.data.records import clean
from rf_jax.posttraining import rollout
from rf_jax.posttraining.rollout_programs import ImageRequest, RolloutPrograms


def of_images(
    rollouts: RolloutPrograms, requests: Sequence[ImageRequest], found: rollout.Images
) -> Batch:
    """Rows of what stands before an image, its sampled tokens, and the noisy images before each
    stochastic step, which do not see each other. `found` as numpy arrays.
    """
    config = rollouts.config
    data, pool, policies = config.data, spans.pool_of(config), config.grpo.policies
    steps = found.z.shape[1] - 1 if 'flow' in policies else 0
    examples = []
    for each in requests:
        grid = each.height // data.patch_size, each.width // data.patch_size
        tokens = [layout.Representation(*grid, pool=pool, given=True)] if pool else []
        pixels = [layout.Pixels(*grid, pool=pool or 2)] * steps
        examples.append([[each.prompt, *tokens, *pixels]])
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
    """Rows of an image, a question and the sampled answer."""
    patch, examples = rollouts.config.data.patch_size, []
    for (image, _), text in zip(pairs, answers(rollouts, pairs, found)):
        pixels = image_ops.patchify(image, patch)
        height, width = image.shape[:2]
        examples.append([[layout.Vision(height // patch, width // patch, pixels), text]])
    return _rows(rollouts, examples)


def answers(rollouts: RolloutPrograms, pairs, found: rollout.Texts) -> list[layout.Text]:
    """Each question with its sampled answer up to its end, of which all tokens are learned."""
    said = []
    for (_, question), ids in zip(pairs, found.tokens.tolist()):
        head = spans.question_answer_span(
            rollouts.tokenizer, clean(question), None, rollouts.config.data.max_text_tokens,
            Counter(),
        ).tokens  # fmt: skip
        end = next((i for i, token in enumerate(ids, 1) if token in rollouts.stops), len(ids))
        targets = [-1] * (len(head) - 1) + ids[:end] + [-1]
        said.append(layout.Text([*head, *ids[:end]], targets))
    return said


def _rows(rollouts: RolloutPrograms, examples) -> Batch:
    """The rows, with the fields of a rollout still empty. Each text weighs the same."""
    rows = layout.make_batch(examples, rollouts.config.data.capacity, rollouts.channels)
    rows['text_weight'] /= np.maximum(rows['text_weight'].sum(1, keepdims=True), 1)
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
