"""Conversations about new scenes: edits against images generated anew, follow-up questions against
the same questions asked alone.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from rf_jax.data.messages import Message, user
from rf_jax.data.records import clean
from rf_jax.evaluation.retrieval import wilson
from rf_jax.generation.sampler import Sampler
from rf_jax.runtime.rng import generator
from rf_jax.scenes import edits, judge, language, render
from rf_jax.scenes.edits import Edit
from rf_jax.scenes.language import Question

ROWS = 32  # conversations at a time
TURNS = 3  # questions about one image


def edit_set(source, count: int) -> list[Edit]:
    """The first `count` scenes that can be edited, each with one edit, by a fixed seed."""
    found: list[Edit] = []
    for i in range(len(source)):
        edit = edits.sample(source.scene(i), source.rung, generator('edited', i))
        if edit is not None:
            found.append(edit)
        if len(found) == count:
            break
    return found


def score_edits(sampler: Sampler, source, count: int, seed: int = 0) -> dict[str, dict]:
    """{'edited' or 'generated anew': {kind: {'changed': 1 or 0 of each edit, 'kept': the same}}}.

    An image is edited in a conversation that shows it. The baseline generates a new one from the
    caption of the scene as it should become. An answer without an image changes nothing and keeps
    nothing.
    """
    chosen = edit_set(source, count)
    edited, anew = images_of(sampler, source, chosen, seed)
    return {'edited': _by_kind(chosen, edited), 'generated anew': _by_kind(chosen, anew)}


def images_of(sampler: Sampler, source, chosen: Sequence[Edit], seed: int):
    """(edited images, None where the answer had none; images generated anew), uint8 [h, w, 3]."""
    asked = [[user(render.render(e.before, source.size), e.request)] for e in chosen]
    said = chat(sampler, asked, seed=seed)
    edited = [np.asarray(m.images[0]) if m.images else None for m in said]
    captions = [
        language.captions(e.after, source.rung, generator('edited', 'caption', i))[-1].text
        for i, e in enumerate(chosen)
    ]
    return edited, [each.image for each in sampler.generate(captions, seed)]


def _by_kind(chosen: Sequence[Edit], images: Sequence[np.ndarray | None]) -> dict[str, dict]:
    found: dict[str, dict] = {kind: {'changed': [], 'kept': []} for kind in edits.KINDS}
    for edit, image in zip(chosen, images):
        verdict = edits.Verdict(changed=False, kept=False)
        if image is not None:
            verdict = edits.judge(edit, judge.detect(image))
        found[edit.kind]['changed'].append(int(verdict.changed))
        found[edit.kind]['kept'].append(int(verdict.kept))
    return {kind: each for kind, each in found.items() if each['changed']}


def question_set(source, count: int) -> list[tuple[int, list[Question]]]:
    """(number of the scene, TURNS questions in random order) of the first `count` scenes."""
    found = []
    for i in range(min(count, len(source))):
        several = source.questions(i)
        order = generator('followed', i).permutation(len(several))[:TURNS]
        found.append((i, [several[int(number)] for number in order]))
    return found


def score_follow_ups(sampler: Sampler, source, count: int) -> dict[str, list[int]]:
    """{'first', 'later' or 'alone': 1 or 0 of each question}: the first question of a conversation,
    those that follow, and the same as 'later' asked without what came before.
    """
    chosen = question_set(source, count)
    talks: list[list[Message]] = [[] for _ in chosen]
    found: dict[str, list[int]] = {'first': [], 'later': [], 'alone': []}
    for turn in range(TURNS):
        live = [(t, i, q[turn]) for t, (i, q) in zip(talks, chosen) if turn < len(q)]
        for talk, i, question in live:
            shown = () if turn else (source.image(i),)
            talk.append(user(*shown, question.question))
        said = chat(sampler, [talk for talk, *_ in live], images=False)
        for (talk, _, question), message in zip(live, said):
            talk.append(message)
            found['later' if turn else 'first'].append(_right(message, question))
    # In the order of 'later', so that the two can be compared question by question.
    later = [(i, several[t]) for t in range(1, TURNS) for i, several in chosen if t < len(several)]
    alone = [[user(source.image(i), question.question)] for i, question in later]
    said = chat(sampler, alone, images=False)
    found['alone'] = [_right(message, question) for message, (_, question) in zip(said, later)]
    return found


def _right(message: Message, question: Question) -> int:
    return int(clean(message.text).lower() == question.answer.lower())


def chat(sampler: Sampler, conversations: Sequence, **settings) -> list[Message]:
    """`Sampler.chat` in calls of ROWS conversations, the last one filled up with copies: so all
    calls run the same programs.
    """
    found: list[Message] = []
    for start in range(0, len(conversations), ROWS):
        some = list(conversations[start : start + ROWS])
        padded = some + some[:1] * (ROWS - len(some))
        found += sampler.chat(padded, max_tokens=32, **settings)[: len(some)]
    return found


def table(values: Mapping) -> str:
    """The scores as text, with 95 % Wilson intervals."""
    lines = [f'{"conversations":28s} {"asked":>6s} {"right":>7s} {"95 % interval":>17s}']
    for name, kinds in values['edits'].items():
        for what in ('changed', 'kept'):
            each = [value for kind in kinds.values() for value in kind[what]]
            lines.append(line(f'{name}: {what}', each))
            lines += [line(f'  {kind}', entry[what]) for kind, entry in kinds.items()]
    for name, each in values['follow_up'].items():
        lines.append(line(f'question {name}', each))
    return '\n'.join(lines)


def line(name: str, each: Sequence[int]) -> str:
    """A line of a table: count, rate and 95 % Wilson interval of 1s and 0s; '-' without any."""
    if not each:
        return f'{name:28s} {0:6d} {"-":>7s}'
    rate = float(np.mean(each))
    low, high = wilson(rate, len(each))
    return f'{name:28s} {len(each):6d} {rate:7.1%} {low:7.1%} .. {high:6.1%}'
