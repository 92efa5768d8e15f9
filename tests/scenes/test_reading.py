"""Captions of scenes are read back as what they claim, and judged true or not."""

from dataclasses import replace

import pytest

from rf_jax.runtime.rng import generator
from rf_jax.scenes import language, reading, world


@pytest.mark.parametrize('rung', world.RUNGS)
def test_every_caption_is_read_as_what_it_claims(rung):
    rung = world.RUNGS[rung]
    for i in range(200):
        scene = world.make(0, i, rung)
        for caption in language.captions(scene, rung, generator('said', i)):
            assert reading.read(caption.text) == caption.claim, caption.text
            assert reading.true_of(caption.text, scene)


@pytest.mark.parametrize(
    'text',
    ['', 'a red', 'red circle', 'a red circles', 'two red circle', 'a red circle and',
     'a red circle in the corner', 'a red circle on a pink ground', 'a mauve circle',
     'a red circle left of', 'a red circle a blue ring'],
)  # fmt: skip
def test_another_wording_is_no_claim(text):
    assert reading.read(text) is None


def test_a_caption_is_true_of_exactly_its_scene():
    one = world.Object('ring', 'blue', 'large', 'plain', 0.5, 0.5, 0.14)
    other = replace(one, shape='cross', colour='red', x=0.17)
    scene = world.Scene((one, other), 'dark', 0, 'pair')
    assert reading.true_of('a blue ring and a red cross', scene)
    assert reading.true_of('a ring right of a cross', scene)
    for wrong in (
        'a blue ring',  # an object is missing
        'a blue ring, a red cross and a ring',
        'a red ring and a blue cross',
        'a ring left of a cross',
        'a blue ring at the top and a red cross on the left',
        'a blue ring and a red cross on a grey ground',
        'two blue rings',
    ):
        assert not reading.true_of(wrong, scene), wrong
