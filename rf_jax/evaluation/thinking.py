"""Riddles and redrawn images, judged: does writing before an image, or looking at it, help?"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from rf_jax.data import image_ops
from rf_jax.data.records import clean
from rf_jax.evaluation.conversing import line
from rf_jax.generation import thinking
from rf_jax.generation.chat import ROWS
from rf_jax.generation.sampler import Sampler
from rf_jax.runtime.rng import generator
from rf_jax.scenes import critique, judge, riddles
from rf_jax.scenes.language import Caption


def score_riddles(sampler: Sampler, source, count: int, seed: int = 0) -> dict[str, dict]:
    """{'seen', 'unseen' or 'literal': {'right': 1 or 0 of each image, 'written': of each text}}.

    'seen' riddles are of combinations as in training, 'unseen' of others, 'literal' are the literal
    captions of those. A text is right if it is the literal caption, before a literal prompt's image
    if there is none; 'written' is there only for a run that learns to write.
    """
    asked = {side: riddles.riddle_set(side, source.rung, count) for side in riddles.SIDES}
    prompts = {side: [each.text for each in several] for side, several in asked.items()}
    asked['literal'] = asked['unseen']
    prompts['literal'] = [each.literal for each in asked['unseen']]
    found: dict[str, dict] = {}
    for side, several in asked.items():
        pairs = thinking.think(sampler, _filled(prompts[side]), seed=seed)
        answers = list(zip(several, pairs))  # without the copies at the end
        right = [image is not None and _accepts(r.claim, image) for r, (_, image) in answers]
        found[side] = {'right': [int(each) for each in right]}
        if source.thinks:
            wanted = ['' if side == 'literal' else riddle.literal for riddle in several]
            written = [clean(text) == want for want, (_, (text, _)) in zip(wanted, answers)]
            found[side]['written'] = [int(each) for each in written]
    return found


def prompt_set(source, count: int, name: str = 'redrawn') -> list[Caption]:
    """A prompt of each of the first `count` scenes; another name gives others of the same."""
    chosen = range(min(count, len(source)))
    return [critique.prompt(source.scene(i), source.rung, generator(name, i)) for i in chosen]


def score_redraw(sampler: Sampler, source, count: int, seed: int = 0) -> dict[str, list[int]]:
    """1 or 0 for each prompt: 'first', 'final': whether the draft is right, and the image after the
    model's critique; 'second': an independent image of the same cost; 'told': the image after the
    judge's critique in place of its own, the draft where that is right; 'noticed': whether the
    critique says that the draft is right just where it is; 'worded': whether it is the judge's.
    """
    asked = prompt_set(source, count)
    texts = _filled([each.text for each in asked])
    drawn = thinking.redraw(sampler, texts, seed=seed)[: len(asked)]
    second = thinking.draw(sampler, texts, seed=seed + 1)[: len(asked)]
    said = [clean(text) for _, text, _ in drawn]
    judged = [_criticised(each, draft) for each, (draft, _, _) in zip(asked, drawn)]
    wrong = [i for i, text in enumerate(judged) if text != critique.RIGHT]
    told = [draft for draft, _, _ in drawn]
    again = _filled([(texts[i], told[i], judged[i]) for i in wrong])
    if again:
        corrected = thinking.redraw(sampler, *map(list, zip(*again)), seed=seed)
        for i, (_, _, image) in zip(wrong, corrected):
            told[i] = image
    images = {'final': [image for *_, image in drawn], 'second': second, 'told': told}
    found = {'first': [int(text == critique.RIGHT) for text in judged]}
    for name, several in images.items():
        found[name] = [int(_accepts(each.claim, image)) for each, image in zip(asked, several)]
    pairs = list(zip(said, judged))
    found['noticed'] = [int((a == critique.RIGHT) == (b == critique.RIGHT)) for a, b in pairs]
    found['worded'] = [int(a == b) for a, b in pairs]
    return found


def write_drafts(sampler: Sampler, source, count: int, folder: Path, seed: int = 0) -> int:
    """Writes conversations.jsonl and images to a new folder: the model's own drafts of prompts of
    the first `count` scenes, the judge's critique, and the scene where the draft is wrong. Returns
    how many drafts are right.

    `source`: training scenes, as the model is to learn from them.
    """
    asked = prompt_set(source, count, f'drafts {seed}')
    drafts = thinking.draw(sampler, _filled([each.text for each in asked]), seed=seed)
    lines, right = [], 0
    for i, (caption, draft) in enumerate(zip(asked, drafts)):
        text = _criticised(caption, draft)
        first, second = f'{i:06d}-draft.png', f'{i:06d}.png'
        image_ops.save_png(folder / first, draft.image, {'prompt': caption.text})
        parts: list[dict] = [
            {'type': 'image', 'image': first, 'learned': False},
            {'type': 'text', 'text': text},
        ]
        if text != critique.RIGHT:
            image_ops.save_png(folder / second, source.image(i), {'prompt': caption.text})
            parts.append({'type': 'image', 'image': second})
        right += text == critique.RIGHT
        turns = {'user': f'draw {caption.text}', 'assistant': parts}
        messages = [{'role': role, 'content': content} for role, content in turns.items()]
        lines.append(json.dumps({'messages': messages}))
    (folder / 'conversations.jsonl').write_text('\n'.join(lines) + '\n', encoding='utf-8')
    return right


def _filled(items: Sequence) -> list:
    """With copies of the first one up to a multiple of ROWS: so all calls run the same programs."""
    return [*items, *items[:1] * (-len(items) % ROWS)]


def _accepts(claim, image) -> bool:
    return judge.accepts(claim, np.asarray(image))


def _criticised(caption: Caption, image) -> str:
    return critique.write(caption.claim, judge.detect(np.asarray(image)))


def table(values: Mapping) -> str:
    """The scores as text, with 95 % Wilson intervals."""
    lines = [f'{"thinking":28s} {"asked":>6s} {"rate":>7s} {"95 % interval":>17s}']
    for side, entry in values.get('riddles', {}).items():
        lines += [line(f'{side} prompts: {what}', each) for what, each in entry.items()]
    if redrawn := values.get('redraw'):
        lines += [line(f'redraw: {name}', each) for name, each in redrawn.items()]
        lines += [line(name, each) for name, each in changes(redrawn).items() if each]
    return '\n'.join(lines)


def changes(redrawn: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
    """What becomes of wrong and of right drafts; of independent images beside them."""
    found: dict[str, list[int]] = {}
    for name in ('final', 'second', 'told'):
        pairs = list(zip(redrawn['first'], redrawn[name]))
        found[f'{name}: right | wrong first'] = [after for first, after in pairs if not first]
        found[f'{name}: wrong | right first'] = [1 - after for first, after in pairs if first]
    del found['told: wrong | right first']  # those are left as they are
    return found
