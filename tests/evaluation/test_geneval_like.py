"""geneval_like.py: every prompt gets its own images."""

from types import SimpleNamespace

import pytest

from rf_jax.evaluation import geneval_like
from rf_jax.scenes import render, world
from rf_jax.scenes.claims import Claim, Group
from rf_jax.scenes.prompts import Prompt


def look(colour, shape):
    return Prompt('colors', f'a {colour} {shape}', Claim((Group(1, shape, colour),)))


def image(colour, shape):
    each = world.Object(shape, colour, 'large', 'plain', 0.5, 0.5, 0.14)
    return render.render(world.Scene((each,), 'dark', 0, 'single'), 24)


class Painter:
    """Paints the look that a prompt names, but a red circle for the second image of each."""

    def generate(self, prompts, seed):
        self.prompts, self.seed = prompts, seed
        looks = [prompt.split()[1:] for prompt in prompts]
        looks[1::3] = [['red', 'circle']] * len(looks[1::3])
        return [SimpleNamespace(image=image(*each)) for each in looks]


def test_images_are_generated_and_judged_by_prompt():
    prompts = [look('blue', 'cross'), look('red', 'circle'), look('white', 'ring')]
    images = geneval_like.generate(Painter(), prompts, each=3, seed=5)
    correct = geneval_like.judge(prompts, images)
    assert correct.tolist() == [[True, False, True], [True, True, True], [True, False, True]]


def test_every_prompt_is_generated_as_often_as_asked():
    """In one call, in which `Sampler.generate` tells the images of equal prompts apart."""
    painter, prompts = Painter(), [look('blue', 'cross'), look('red', 'ring')] * 2
    rows = geneval_like.generate(painter, prompts, each=2, seed=5)
    assert painter.prompts == [p.text for p in prompts for _ in range(2)] and painter.seed == 5
    assert [len(row) for row in rows] == [2] * 4


def test_every_prompt_needs_its_images():
    with pytest.raises(ValueError):
        geneval_like.judge([look('blue', 'cross')], [])
