"""compositional.py: every prompt gets its own pictures, and intervals are as wide as they say."""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest

from rf_jax.data import scene_pictures, scenes
from rf_jax.data.claims import Claim, Group
from rf_jax.evaluation import compositional


@dataclass(frozen=True)
class Prompt:
    category: str
    text: str
    claim: Claim


def look(colour, shape):
    return Prompt('colors', f'a {colour} {shape}', Claim((Group(1, shape, colour),)))


def picture(colour, shape):
    each = scenes.Object(shape, colour, 'large', 'plain', 0.5, 0.5, 0.14)
    return scene_pictures.render(scenes.Scene((each,), 'dark', 0, 'single'), 24)


class Painter:
    """Draws the look that a prompt names, but a red circle for number 1 of each."""

    def request(self, prompt, seed, number=0, size=None):
        return SimpleNamespace(prompt=prompt, seed=seed, number=number, size=size)

    def draw(self, requests, options=None):
        self.requests = requests
        return [
            picture(*(('red', 'circle') if r.number == 1 else r.prompt.split()[1:]))
            for r in requests
        ]


def test_pictures_are_drawn_and_judged_by_prompt():
    prompts = [look('blue', 'cross'), look('red', 'circle'), look('white', 'ring')]
    pictures = compositional.draw(Painter(), prompts, each=3, seed=5)
    correct = compositional.judge(prompts, pictures)
    assert correct.tolist() == [[True, False, True], [True, True, True], [True, False, True]]


def test_a_prompt_that_comes_again_is_drawn_anew():
    painter, prompts = (
        Painter(),
        [look('blue', 'cross'), look('red', 'ring'), look('blue', 'cross')],
    )
    compositional.draw(painter, prompts, each=2, seed=5)
    asked = [(r.prompt, r.seed, r.number) for r in painter.requests]
    assert len(set(asked)) == 6
    assert [r.number for r in painter.requests] == [0, 1, 0, 1, 2, 3]


def test_every_prompt_needs_its_pictures():
    with pytest.raises(ValueError):
        compositional.judge([look('blue', 'cross')], [])
    with pytest.raises(ValueError, match='1 prompts'):
        compositional.summary([look('blue', 'cross')], np.zeros((2, 4), bool))


def test_overall_is_the_mean_of_categories():
    prompts = [Prompt('a', f'{i}', None) for i in range(6)] + [
        Prompt('b', f'{i}', None) for i in '67'
    ]
    correct = np.zeros((8, 4), bool)
    correct[:6] = True
    correct[6, :2] = True
    rates = compositional.summary(prompts, correct)
    assert list(rates) == ['a', 'b', compositional.OVERALL]
    assert rates['a'].rate == 1
    assert rates['b'].rate == 0.25
    assert rates['overall'].rate == pytest.approx(0.625)  # not the 26 of 32 pictures
    assert (rates['overall'].prompts, rates['overall'].pictures) == (8, 32)
    for each in rates.values():
        assert 0 <= each.low < each.rate <= each.high <= 1
    assert rates['a'].low < 0.7  # six prompts, all right, do not prove 100 %
    assert compositional.summary(prompts, correct) == rates
    assert 'overall' in compositional.table(rates)


def test_intervals_count_prompts_not_pictures():
    prompts = [Prompt('a', f'{i}', None) for i in range(50)]
    rng = np.random.default_rng(0)
    alike = np.repeat(rng.random((50, 1)) < 0.5, 4, 1)
    apart = rng.permuted(alike.ravel()).reshape(50, 4)
    width = [
        (lambda rate: rate.high - rate.low)(compositional.summary(prompts, correct)['a'])
        for correct in (alike, apart)
    ]
    assert 1.6 < width[0] / width[1] < 2.5  # the root of 4 pictures
    again = [Prompt('a', f'{i % 25}', None) for i in range(50)]
    assert compositional.summary(again, alike)['a'].prompts == 25


def test_the_interval_holds_the_truth_as_often_as_it_says():
    prompts = [Prompt('ab'[i % 2], f'{i}', None) for i in range(100)]
    rng, held = np.random.default_rng(1), 0
    for _ in range(200):
        # Prompts differ in how hard they are: means 0.5 and 0.75.
        hard = np.where(np.arange(100) % 2, rng.beta(3, 1, 100), rng.beta(1, 1, 100))
        rate = compositional.summary(prompts, rng.random((100, 4)) < hard[:, None])['overall']
        held += rate.low <= 0.625 <= rate.high
    assert 0.90 <= held / 200 <= 0.99


def test_across_seeds():
    for freedom, value in ((1, 12.706), (2, 4.303), (4, 2.776), (30, 2.042)):
        assert compositional.student(freedom) == pytest.approx(value, abs=1e-3)
    mean = compositional.across_seeds([0.7, 0.8, 0.75])
    assert mean.mean == pytest.approx(0.75)
    assert mean.high - mean.mean == pytest.approx(4.303 * 0.05 / 3**0.5, abs=1e-4)
    assert (mean.low + mean.high) / 2 == pytest.approx(0.75)
    alone = compositional.across_seeds([0.7])
    assert alone.mean == 0.7
    assert np.isnan(alone.low) and np.isnan(alone.high)
    with pytest.raises(ValueError):
        compositional.across_seeds([])
