"""The score of one checkpoint trained on scenes: generation, understanding, distances, codebook."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from rf_jax.data import images, pipeline, source_list
from rf_jax.data.tokenizer import Tokenizer
from rf_jax.evaluation import (
    code_content,
    diversity,
    geneval_like,
    image_distances,
    inspection,
    intervals,
    reconstruction,
    vqa,
)
from rf_jax.generation.sampler import Sampler
from rf_jax.runtime.errors import UserError, require
from rf_jax.scenes import prompts

SIDES = ('seen', 'held_out')  # of prompts.prompt_set
_SHOWN = 2  # prompts of a category whose first picture is kept to look at
_NEW = 1_000_003  # added to the seed of the scenes; simple ones occur under any seed


@dataclass(frozen=True)
class Amount:
    """How much is asked of a model; 0 leaves a part out."""

    prompts: int = 50  # per category, of each side
    pictures: int = 4  # per prompt
    captions: int = 200  # of new scenes, drawn to be compared with those scenes
    questions: int = 50  # per kind

    @classmethod
    def of(cls, samples: int) -> 'Amount':
        """About `samples` pictures of each side and as many questions, for the end of a run."""
        few = -(-samples // len(prompts.CATEGORIES))
        return cls(prompts=few, pictures=1, captions=samples, questions=few)

    def to_dict(self) -> dict[str, int]:
        return asdict(self)

    @property
    def size(self) -> int:
        """Pictures drawn and questions answered, nearly: what the time goes with."""
        categories = len(SIDES) * len(prompts.CATEGORIES)
        return categories * self.prompts * self.pictures + self.captions + self.questions


@dataclass(frozen=True)
class Score:
    """`values`: for JSON. `shown`: {side: uint8 [n, h, w, 3]}, a few pictures of each category.

    values['generation'][side][category]: 'prompts' and 'correct', a list of 1 or 0 for each;
    values['understanding'][kind]: see understanding.evaluate; values['distances'],
    values['variety'], values['codebook'] and values['autoencoder']: numbers;
    values['shown'][side]: prompts. What a run does not train is empty.
    """

    values: dict
    shown: dict[str, np.ndarray]


def applies(config) -> bool:
    """Whether a run is scored here: it has learned scenes."""
    return any(
        source_list.kind_and_argument(part)[0] == 'scenes'
        for part in source_list.parts(config.data.sources)
    )


def new_scenes(config):
    """The first source of scenes of a run, but of another seed than it was trained on. There are
    few scenes of a single object, and training has seen most of them.

    Raises UserError for a run that has none.
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
        f'data.sources={config.data.sources!r} of the run has no scenes (scenes:aligned/32): '
        'prompts and questions about scenes cannot be put to it'
    )


def score(
    sampler: Sampler, amount: Amount, codebook: np.ndarray | None = None, seed: int = 0
) -> Score:
    """Draws the prompts, puts the questions; only what the run trains (data.tasks).

    `codebook` float32 [K, Denc] of the checkpoint, None leaves its use out. The prompts, questions
    and scenes are always the same, `seed` is of the noise. Raises UserError as `check` does.
    """
    config = sampler.config
    check(config, sampler.tokenizer, amount)
    source = new_scenes(config)
    values: dict = {'generation': {}, 'understanding': {}, 'distances': {}, 'codebook': {}}
    values['autoencoder'], values['variety'] = {}, {}
    values['shown'] = shown = {}
    pictures: dict[str, np.ndarray] = {}
    if draws(config):
        for side in SIDES if amount.prompts else ():
            asked = prompts.prompt_set(side, source.rung, amount.prompts)
            drawn = geneval_like.draw(sampler, asked, amount.pictures, seed)
            correct = geneval_like.judge(asked, drawn)
            values['generation'][side] = _by_category(asked, correct)
            if side == SIDES[0]:
                values['variety'] = diversity.measure(
                    picture
                    for prompt, row in zip(asked, drawn)
                    if prompt.category == diversity.CATEGORY
                    for picture in row
                )
            chosen = _first_of_each([prompt.category for prompt in asked])
            shown[side] = [asked[i].text for i in chosen]
            pictures[side] = np.stack([drawn[i][0] for i in chosen])
        if amount.captions:
            side = pipeline.picture_size(source.size, source.size, config)
            real = [images.resize(source.picture(i), *side) for i in range(amount.captions)]
            captions = [source.record(i).captions[0] for i in range(amount.captions)]
            made = sampler.draw(geneval_like.requests(sampler, captions, 1, seed, side))
            if amount.captions > 1:  # of one picture there is no distribution
                values['distances'] = image_distances.distances(made, real)
        if codebook is not None and amount.captions and has_codes(config):
            scenes = [source.scene(i) for i in range(amount.captions)]
            values['codebook'] = use_of_codebook(sampler, codebook, real, scenes)
    if config.losses.reconstruction and amount.captions:
        values['autoencoder'] = reconstruction.evaluate(sampler, source, amount.captions)
    if config.data.tasks.get('image_to_text', 0) > 0 and amount.questions:
        values['understanding'] = vqa.evaluate(sampler, source, amount.questions)
    return Score(values, pictures)


def draws(config) -> bool:
    """Whether a run learns to draw."""
    return config.data.tasks.get('text_to_image', 0) > 0 and config.losses.flow > 0


def check(config, tokenizer: Tokenizer, amount: Amount) -> None:
    """Raises UserError for a run that cannot be asked this much, or has no scenes at all."""
    source = new_scenes(config)
    require(
        amount.captions <= len(source),
        f'captions={amount.captions} (--samples of evaluate): there are {len(source)} new scenes',
    )
    for side in SIDES if draws(config) and amount.prompts else ():
        asked = prompts.prompt_set(side, source.rung, amount.prompts)
        check_tokenizer(config, tokenizer, [prompt.text for prompt in asked])


def check_tokenizer(config, tokenizer: Tokenizer, texts: list[str]) -> None:
    """Raises UserError if a prompt is too long for the run: its tokenizer knows no scenes."""
    longest = max(texts, key=lambda text: len(tokenizer.encode(text)))
    need, most = len(tokenizer.encode(longest)) + 2, config.data.max_text_tokens
    require(
        need <= most,
        f'the tokenizer of the run makes {need} tokens of {longest!r}, more than '
        f'data.max_text_tokens={most}: it was not trained on scenes, or data.max_text_tokens is '
        'too small for the prompts',
    )


def has_codes(config) -> bool:
    """Whether a codebook is learned."""
    return config.model.representation.kind == 'forcing'


def use_of_codebook(sampler: Sampler, codebook: np.ndarray, pictures, scenes) -> dict[str, float]:
    """What the pictures of scenes are given of the K prototypes, each the nearest: the share used,
    the perplexity (1 to K: as many, evenly used, would have the same entropy), and in bits a token
    what it tells of the look under it, of its place, and what the look leaves unexplained.
    """
    codes = inspection.Inspector(sampler, codebook).codes(pictures)
    looks = [
        code_content.labels(scene, len(picture), len(code))
        for scene, picture, code in zip(scenes, pictures, codes)
    ]
    counts = np.bincount(np.concatenate([each.ravel() for each in codes]), minlength=len(codebook))
    used = {'used': float((counts > 0).mean()), 'perplexity': diversity.perplexity(counts)}
    return used | asdict(code_content.measure(codes, looks))


def _first_of_each(categories: Sequence[str]) -> list[int]:
    return [i for i, name in enumerate(categories) if list(categories[:i]).count(name) < _SHOWN]


def _by_category(asked, correct: np.ndarray) -> dict[str, dict]:
    found: dict[str, dict] = {}
    for prompt, each in zip(asked, np.asarray(correct, int).tolist()):
        entry = found.setdefault(prompt.category, {'prompts': [], 'correct': []})
        entry['prompts'].append(prompt.text)
        entry['correct'].append(each)
    return found


def overall(generation: Mapping[str, dict]) -> float:
    """Mean over categories of the share of pictures that are right; nan if nothing was drawn."""
    each = [float(np.mean(entry['correct'])) for entry in generation.values()]
    return float(np.mean(each)) if each else math.nan


def table(values: Mapping) -> str:
    """The score as text: by category and by kind of question, with 95 % intervals."""
    parts = []
    for side in values['generation']:
        parts += [f'{side.replace("_", " ")} prompts']
        parts += [intervals.table(intervals.gather([(None, values)], side))]
    if values['understanding']:
        parts.append(vqa.table(values['understanding']))
    numbers = dict(values['distances'])
    for part in ('variety', 'codebook'):
        numbers |= {f'{part} {name}': value for name, value in values[part].items()}
    numbers |= {f'reconstruction {k}': v for k, v in values['autoencoder'].items()}
    parts += [f'{name:28s} {value:.4g}' for name, value in numbers.items()]
    return '\n'.join(parts)


def line(values: Mapping) -> str:
    """The score in one line."""
    parts = [f'{side} {overall(by):.3f}' for side, by in values['generation'].items()]
    answers = [each for kind in values['understanding'].values() for each in kind['correct']]
    parts += [f'understanding {np.mean(answers):.3f}'] if answers else []
    parts += [f'{name} {value:.3g}' for name, value in values['distances'].items()]
    for part in ('variety', 'codebook', 'autoencoder'):
        parts += [f'{part} {name} {value:.3g}' for name, value in values[part].items()]
    return ' | '.join(parts) or 'nothing to score'
