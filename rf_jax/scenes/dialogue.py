"""Conversations about scenes: follow-up questions, edits, long descriptions, two images compared.

Every answer and every image follows from the scenes, so all of it can be judged exactly.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rf_jax.scenes import edits, language
from rf_jax.scenes.edits import Edit
from rf_jax.scenes.world import Rung, Scene

# Kinds of conversations and their probabilities.
KINDS = {'follow_up': 0.2, 'draw': 0.1, 'edit': 0.6, 'compare': 0.1}
_QUESTIONS = (2, 4)  # fewest and most questions about one image
_DRAWN_FIRST = 0.3  # probability that the image to edit is one that the assistant generates
FIRST, SECOND, SAME = 'the first', 'the second', 'both the same'

Turn = tuple[str, tuple[str | int, ...]]  # role and parts; an integer is the number of a scene


@dataclass(frozen=True)
class Dialogue:
    """`turns`: (role, parts), where a part is text or the number of an image: `scenes[i]`.
    `drafts`: numbers of images of the assistant that are not learned.
    """

    kind: str
    turns: tuple[Turn, ...]
    scenes: tuple[Scene, ...]
    drafts: tuple[int, ...] = ()


def make(scene: Scene, other: Scene, rung: Rung, rng: np.random.Generator) -> Dialogue:
    """A conversation about a scene, and about another if two are compared."""
    kind = str(rng.choice(list(KINDS), p=list(KINDS.values())))
    if kind == 'edit':
        edit = edits.sample(scene, rung, rng)
        if edit is not None:
            return _edited(edit, rung, rng)
        kind = 'follow_up'
    if kind == 'compare':
        return Dialogue(kind, _exchange((0, 1), *compare(scene, other, rng)), (scene, other))
    if kind == 'draw':
        return Dialogue(kind, _drawn(scene, rung, rng) + _asked((), scene, rng, (0, 2)), (scene,))
    return Dialogue(kind, _asked((0,), scene, rng, _QUESTIONS), (scene,))


def compare(a: Scene, b: Scene, rng: np.random.Generator) -> tuple[str, str]:
    """A question about two images, and its answer."""
    what = str(rng.choice(['more objects', 'fewer objects', *_shapes(a, b)]))
    if what in ('more objects', 'fewer objects'):
        counts = [len(scene.objects) for scene in (a, b)]
        if what == 'fewer objects':
            counts = [-count for count in counts]
    else:
        counts = [sum(o.shape == what for o in scene.objects) for scene in (a, b)]
        what = 'more ' + language.plural(what)
    answer = SAME if counts[0] == counts[1] else FIRST if counts[0] > counts[1] else SECOND
    return f'which image has {what}?', answer


def _shapes(a: Scene, b: Scene) -> list[str]:
    return list(dict.fromkeys(each.shape for each in (*a.objects, *b.objects)))


def _edited(edit: Edit, rung: Rung, rng) -> Dialogue:
    if rng.random() < _DRAWN_FIRST:
        turns = (*_drawn(edit.before, rung, rng), *_exchange((), edit.request, 1))
    else:
        turns = _exchange((0,), edit.request, 1)
    return Dialogue('edit', turns, (edit.before, edit.after))


def _drawn(scene: Scene, rung: Rung, rng) -> tuple[Turn, ...]:
    """A request to generate image 0 by one of its captions, the long one as often as the others."""
    *short, long = language.captions(scene, rung, rng)
    said = long if not short or rng.random() < 0.5 else short[int(rng.integers(len(short)))]
    return _exchange((), f'draw {said.text}', 0)


def _asked(images: tuple[int, ...], scene: Scene, rng, bounds: tuple[int, int]):
    """Questions about the image before, or about `images`, in random order."""
    asked = language.questions(scene, rng)
    count = min(int(rng.integers(bounds[0], bounds[1] + 1)), len(asked))
    turns: Sequence[Turn] = ()
    for number in rng.permutation(len(asked))[:count]:
        each = asked[int(number)]
        turns = (*turns, *_exchange(images if not turns else (), each.question, each.answer))
    return turns


def _exchange(images: tuple[int, ...], said: str, answer: str | int) -> tuple[Turn, ...]:
    return ('user', (*images, said)), ('assistant', (answer,))
