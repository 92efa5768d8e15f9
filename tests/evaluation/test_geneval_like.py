"""geneval_like.py: every prompt gets its own pictures."""

from types import SimpleNamespace

import pytest

from rf_jax.evaluation import geneval_like
from rf_jax.scenes import render, world
from rf_jax.scenes.claims import Claim, Group
from rf_jax.scenes.prompts import Prompt


def look(colour, shape):
    return Prompt('colors', f'a {colour} {shape}', Claim((Group(1, shape, colour),)))


def picture(colour, shape):
    each = world.Object(shape, colour, 'large', 'plain', 0.5, 0.5, 0.14)
    return render.render(world.Scene((each,), 'dark', 0, 'single'), 24)


class Painter:
    """Draws the look that a prompt names, but a red circle for number 1 of each."""

    def request(self, prompt, seed, number=0, size=None):
        return SimpleNamespace(prompt=prompt, seed=seed, number=number)

    def draw(self, requests):
        self.requests = requests
        return [
            picture(*(('red', 'circle') if r.number == 1 else r.prompt.split()[1:]))
            for r in requests
        ]


def test_pictures_are_drawn_and_judged_by_prompt():
    prompts = [look('blue', 'cross'), look('red', 'circle'), look('white', 'ring')]
    pictures = geneval_like.draw(Painter(), prompts, each=3, seed=5)
    correct = geneval_like.judge(prompts, pictures)
    assert correct.tolist() == [[True, False, True], [True, True, True], [True, False, True]]


def test_a_prompt_that_comes_again_is_drawn_anew():
    painter, prompts = (
        Painter(),
        [look('blue', 'cross'), look('red', 'ring'), look('blue', 'cross')],
    )
    geneval_like.draw(painter, prompts, each=2, seed=5)
    asked = [(r.prompt, r.seed, r.number) for r in painter.requests]
    assert len(set(asked)) == 6
    assert [r.number for r in painter.requests] == [0, 1, 0, 1, 2, 3]


def test_every_prompt_needs_its_pictures():
    with pytest.raises(ValueError):
        geneval_like.judge([look('blue', 'cross')], [])
