"""The score of a checkpoint trained on scenes: generation, understanding, distances, codebook."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
from ml_collections import ConfigDict

from rf_jax.data import data_fields, fitting, image_ops, source_list
from rf_jax.data.tokenizer import Tokenizer
from rf_jax.evaluation import (
    code_content,
    conversing,
    geneval_like,
    image_distances,
    inspection,
    intervals,
    map_scores,
    reconstruction,
    thinking,
    vqa,
)
from rf_jax.generation.sampler import Sampler
from rf_jax.models import representation
from rf_jax.runtime.errors import UserError, require
from rf_jax.scenes import prompts

SIDES = ('seen', 'held_out')  # of prompts.prompt_set
_SHOWN = 2  # prompts of a category whose first image is kept for the grid
_NEW = 1_000_003  # added to the seed of the scenes


@dataclass(frozen=True)
class Amount:
    """How many samples a model is evaluated on; 0 skips that part."""

    prompts: int = 50  # per category, of each side
    images: int = 4  # per prompt
    captions: int = 200  # of new scenes; their images are compared with those scenes
    questions: int = 50  # per kind
    # Edits, images with follow-up questions, riddles, redrawn images, maps of each kind.
    conversations: int = 200

    @classmethod
    def of(cls, samples: int) -> 'Amount':
        """About `samples` images of each side and as many questions, for the end of a run."""
        few = -(-samples // len(prompts.CATEGORIES))
        return cls(few, images=1, captions=samples, questions=few, conversations=samples)

    def to_dict(self) -> dict[str, int]:
        return asdict(self)

    @property
    def size(self) -> int:
        """About the number of images and answers, to which the time is proportional."""
        categories = len(SIDES) * len(prompts.CATEGORIES)
        return categories * self.prompts * self.images + self.captions + self.questions


@dataclass(frozen=True)
class Score:
    """`values`: for JSON. `shown`: {side: uint8 [n, h, w, 3]}, a few images of each category;
    `maps`: images with the maps drawn of them.

    values['generation'][side][category]: 'prompts' and, for each, 'correct', a list with 1 or 0 of
    each image; values['understanding'][kind]: see `vqa.evaluate`; values['distances'],
    values['variety'], values['codebook'] and values['autoencoder']: numbers;
    values['conversations']: see TALKS; values['maps']: see `map_scores.score`;
    values['shown'][side]: the prompts of `shown`. Parts that the run does not train are empty.
    """

    values: dict
    shown: dict[str, np.ndarray]
    maps: map_scores.Sheet = field(default_factory=map_scores.Sheet)


def trains_on_scenes(config: ConfigDict) -> bool:
    """Whether a run has a source of scenes, so that `score` applies to it."""
    return any(
        source_list.kind_and_argument(part)[0] == 'scenes'
        for part in source_list.parts(config.data.sources)
    )


def new_scenes(config: ConfigDict):
    """The run's first source of scenes, with another seed than in training.

    Simple scenes occur under any seed: there are few of a single object, and training has seen most
    of them. Raises UserError for a run without scenes.
    """
    for part in source_list.parts(config.data.sources):
        kind, argument = source_list.kind_and_argument(part)
        if kind == 'scenes':
            options = argument.split('/')
            seeds = [int(each.removeprefix('seed=')) for each in options if 'seed=' in each]
            kept = [each for each in options if not each.startswith(('seed=', 'count='))]
            text = '/'.join([f'scenes:{kept[0]}', *kept[1:], f'seed={sum(seeds) + _NEW}'])
            return source_list.build(text, config.data.max_pixels)[0]
    raise UserError(
        f'data.sources={config.data.sources!r} of the run has no scenes: only runs with a '
        'source such as scenes:aligned/32 can be scored by prompts and questions about scenes'
    )


def score(
    sampler: Sampler, amount: Amount, codebook: np.ndarray | None = None, seed: int = 0
) -> Score:
    """Generates from the prompts and answers the questions, as far as data.tasks trains them.

    `codebook` float32 [K, Denc] of the checkpoint; None leaves its usage out. The prompts,
    questions and scenes are always the same; `seed` is that of the noise. Raises UserError as
    `check` does.
    """
    config = sampler.config
    check(config, sampler.tokenizer, amount)
    source = new_scenes(config)
    values: dict = {'generation': {}, 'understanding': {}, 'distances': {}, 'codebook': {}}
    values['autoencoder'], values['variety'] = {}, {}
    values['shown'] = shown = {}
    images: dict[str, np.ndarray] = {}
    if generates(config):
        for side in SIDES if amount.prompts else ():
            prompt_set = prompts.prompt_set(side, source.rung, amount.prompts)
            generated = geneval_like.generate(sampler, prompt_set, amount.images, seed)
            correct = geneval_like.judge(prompt_set, generated)
            values['generation'][side] = _by_category(prompt_set, correct)
            if side == SIDES[0]:
                values['variety'] = geneval_like.variety(
                    image
                    for prompt, row in zip(prompt_set, generated)
                    if prompt.category == geneval_like.FREE
                    for image in row
                )
            chosen = _first_of_each([prompt.category for prompt in prompt_set])
            shown[side] = [prompt_set[i].text for i in chosen]
            images[side] = np.stack([generated[i][0] for i in chosen])
        if amount.captions:
            size = fitting.image_size(source.size, source.size, config)
            real = [image_ops.resize(source.image(i), *size) for i in range(amount.captions)]
            captions = [source.record(i).captions[0] for i in range(amount.captions)]
            generated = [each.image for each in sampler.generate(captions, seed, size)]
            if amount.captions > 1:  # one image is not a distribution
                values['distances'] = image_distances.distances(generated, real)
        if codebook is not None and amount.captions and has_codes(config):
            scenes = [source.scene(i) for i in range(amount.captions)]
            values['codebook'] = codebook_statistics(sampler, codebook, real, scenes)
    if config.losses.reconstruction and amount.captions:
        values['autoencoder'] = reconstruction.evaluate(sampler, source, amount.captions)
    if config.data.tasks.get('image_to_text', 0) > 0 and amount.questions:
        values['understanding'] = vqa.evaluate(sampler, source, amount.questions)
    values['conversations'] = {}
    if config.data.tasks.get('conversation', 0) > 0 and amount.conversations:
        score_talks = TALKS.get(source.talks, _edits_and_questions)  # of a folder: of scenes too
        values['conversations'] = score_talks(sampler, source, amount.conversations, seed)
    values['maps'], sheet = {}, map_scores.Sheet()
    asked = data_fields.asked_maps(config)
    if asked and amount.conversations:
        values['maps'], sheet = map_scores.score(sampler, source, asked, amount.conversations, seed)
    return Score(values, images, sheet)


def _edits_and_questions(sampler: Sampler, source, count: int, seed: int) -> dict:
    return {
        'edits': conversing.score_edits(sampler, source, count, seed),
        'follow_up': conversing.score_follow_ups(sampler, source, count),
    }


def _riddles(sampler: Sampler, source, count: int, seed: int) -> dict:
    return {'riddles': thinking.score_riddles(sampler, source, count, seed)}


def _redraw(sampler: Sampler, source, count: int, seed: int) -> dict:
    return {'redraw': thinking.score_redraw(sampler, source, count, seed)}


# What is scored of each kind of conversation that a source has (`ScenesSource.talks`).
TALKS = {'conversations': _edits_and_questions, 'riddles': _riddles, 'critique': _redraw}


def generates(config: ConfigDict) -> bool:
    """Whether a run learns to generate images."""
    return config.data.tasks.get('text_to_image', 0) > 0 and config.losses.flow > 0


def check(config: ConfigDict, tokenizer: Tokenizer, amount: Amount) -> None:
    """Raises UserError if a run has no scenes, too few, or an unsuitable tokenizer."""
    source = new_scenes(config)
    require(
        amount.captions <= len(source),
        f'captions={amount.captions} (--samples of evaluate): there are only {len(source)} new '
        'scenes',
    )
    require(
        2 * amount.conversations <= len(source) or not data_fields.asked_maps(config),
        f'conversations={amount.conversations} (--conversations of evaluate): maps need twice as '
        f'many new scenes, and there are only {len(source)}',
    )
    for side in SIDES if generates(config) and amount.prompts else ():
        prompt_set = prompts.prompt_set(side, source.rung, amount.prompts)
        check_tokenizer(config, tokenizer, [prompt.text for prompt in prompt_set])


def check_tokenizer(config: ConfigDict, tokenizer: Tokenizer, texts: list[str]) -> None:
    """Raises UserError if a prompt is too long: the tokenizer was not trained on scenes."""
    longest = max(texts, key=lambda text: len(tokenizer.encode(text)))
    need, most = len(tokenizer.encode(longest)) + 2, config.data.max_text_tokens
    require(
        need <= most,
        f"the run's tokenizer splits {longest!r} into {need} tokens, more than "
        f'data.max_text_tokens={most}: it was not trained on scenes, or data.max_text_tokens is '
        'too small for the prompts',
    )


def has_codes(config: ConfigDict) -> bool:
    """Whether a run learns a codebook."""
    return representation.of(config).learns_codebook


def codebook_statistics(sampler: Sampler, codebook: np.ndarray, images, scenes) -> dict[str, float]:
    """How the images of scenes use the K prototypes when each token takes the nearest.

    Returns the share used, the perplexity (1 to K: so many prototypes, used evenly, would
    have the same entropy), and `code_content.measure` in bits per token.
    """
    codes = inspection.Inspector(sampler, codebook).codes(images)
    looks = [
        code_content.labels(scene, len(image), len(code))
        for scene, image, code in zip(scenes, images, codes)
    ]
    counts = np.bincount(np.concatenate([each.ravel() for each in codes]), minlength=len(codebook))
    used = {'used': float((counts > 0).mean()), 'perplexity': geneval_like.perplexity(counts)}
    return used | asdict(code_content.measure(codes, looks))


def _first_of_each(categories: Sequence[str]) -> list[int]:
    return [i for i, name in enumerate(categories) if list(categories[:i]).count(name) < _SHOWN]


def _by_category(prompt_set, correct: np.ndarray) -> dict[str, dict]:
    categories: dict[str, dict] = {}
    for prompt, each in zip(prompt_set, np.asarray(correct, int).tolist()):
        entry = categories.setdefault(prompt.category, {'prompts': [], 'correct': []})
        entry['prompts'].append(prompt.text)
        entry['correct'].append(each)
    return categories


def overall(categories: Mapping[str, dict]) -> float:
    """Mean over categories, or kinds, of the share of what is correct; nan without any."""
    each = [float(np.mean(entry['correct'])) for entry in categories.values()]
    return float(np.mean(each)) if each else math.nan


def table(values: Mapping) -> str:
    """The score as text, by category and by kind of question, with 95 % intervals."""
    parts = []
    for side in values['generation']:
        parts += [f'{side.replace("_", " ")} prompts']
        parts += [intervals.table(intervals.gather([(None, values)], side))]
    if values['understanding']:
        parts.append(vqa.table(values['understanding']))
    if talks := values.get('conversations'):
        parts.append((conversing if 'edits' in talks else thinking).table(talks))
    if values.get('maps'):
        parts.append(map_scores.table(values['maps']))
    numbers = dict(values['distances'])
    for part in ('variety', 'codebook'):
        numbers |= {f'{part} {name}': value for name, value in values[part].items()}
    numbers |= {f'reconstruction {k}': v for k, v in values['autoencoder'].items()}
    parts += [f'{name:28s} {value:.4g}' for name, value in numbers.items()]
    return '\n'.join(parts)


def line(values: Mapping) -> str:
    """The score in one line."""
    parts = [f'{side} {overall(by):.3f}' for side, by in values['generation'].items()]
    if values['understanding']:
        parts.append(f'understanding {overall(values["understanding"]):.3f}')
    parts += [f'{name} {value:.3g}' for name, value in values['distances'].items()]
    for part in ('variety', 'codebook', 'autoencoder'):
        parts += [f'{part} {name} {value:.3g}' for name, value in values[part].items()]
    return ' | '.join(parts) or 'nothing to score'
