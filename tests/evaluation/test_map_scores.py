"""map_scores.py: exact maps score best, black ones worst, the mean map in between."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from configs import base
from rf_jax.data import maps, source_list
from rf_jax.data.messages import assistant
from rf_jax.evaluation import conversing, map_scores, scoring
from rf_jax.generation.generated_image import GeneratedImage
from rf_jax.runtime.errors import UserError

COUNT = 24
NAMES = {text: name for name in maps.NAMES for text in maps.INSTRUCTIONS[name]}


class Painter:
    """Draws the exact map of the image that it is shown; `silent`: answers with a word."""

    def __init__(self, source, silent=False):
        config = base.get_config()
        config.data.update(patch_size=8, sizes=((48, 1.0),))
        self.config, self.source, self.silent = config, source, silent
        self.numbers = {source.image(i).tobytes(): i for i in range(COUNT)}

    def chat(self, conversations, **settings):
        assert len(conversations) == conversing.ROWS
        return [self.answer(talk) for talk in conversations]

    def answer(self, talk):
        ((shown,), name) = talk[-1].images, NAMES[talk[-1].text]
        i = self.numbers[shown.tobytes()]
        drawn = shown if name == 'pixels' else self.source.map(i, name)
        return assistant('no' if self.silent else GeneratedImage(drawn, None, name, 0))


@pytest.fixture(scope='module')
def source():
    return source_list.build('scenes:aligned/48/seed=77', 10**6)[0]


def means(values):
    return {
        name: SimpleNamespace(**{what: np.mean(numbers) for what, numbers in each.items()})
        for name, each in values.items()
    }


def test_exact_maps(source):
    values, sheet = map_scores.score(Painter(source), source, maps.NAMES, COUNT)
    found = means(values)
    for each in found.values():
        assert each.drawn == 1 and each.error == 0 < min(each.mean, each.median)
    assert found['depth'].median < found['depth'].mean
    assert found['segmentation'].f1 == 1 > 0.6 > found['segmentation'].mean_f1 > 0
    assert found['pixels'].recovered == found['pixels'].found > 0.95
    assert len(values['depth']['error']) == COUNT
    assert sheet.columns == 8 and len(sheet.images) == len(sheet.names) == 8 * map_scores.SHOWN
    row = dict(zip(sheet.names[8:16], sheet.images[8:16]))
    np.testing.assert_array_equal(row['image'], source.image(1))
    np.testing.assert_array_equal(row['exact depth'], source.map(1, 'depth'))
    np.testing.assert_array_equal(row['drawn again'], row['image'])
    text = map_scores.table(values)
    assert all(f'\n{name} ' in text for name in maps.NAMES)
    assert 'F1 of boundary pixels 1.000' in text and 'objects recovered' in text


def test_an_answer_without_an_image_is_black(source):
    values, _ = map_scores.score(Painter(source, silent=True), source, ('pixels', 'depth'), COUNT)
    found = means(values)
    assert found['pixels'].drawn == found['pixels'].recovered == 0
    darkness = np.mean([source.map(i, 'depth') for i in range(COUNT)]) / 255
    assert found['depth'].error == pytest.approx(darkness)


def test_the_mean_map_is_of_other_scenes(source):
    values, _ = map_scores.score(Painter(source), source, ('depth',), COUNT)
    mean = np.mean([source.map(i, 'depth') for i in range(COUNT, 2 * COUNT)], 0)
    error = np.abs(mean - source.map(3, 'depth')).mean() / 255
    assert values['depth']['mean'][3] == pytest.approx(error)


def test_more_scenes_than_there_are_is_one_line():
    config = base.get_config()
    config.data.sources = 'scenes:aligned/48'
    config.data.tasks.update(text_to_image=0.0, image_to_depth=1.0)
    scoring.check(config, None, scoring.Amount(captions=0, conversations=10_000))
    with pytest.raises(UserError, match=r'conversations=10001.*only 20000'):
        scoring.check(config, None, scoring.Amount(captions=0, conversations=10_001))


def test_f1():
    true = np.array([1, 1, 0, 0], bool)
    assert map_scores.f1(np.array([1, 0, 1, 0], bool), true) == 0.5
    assert map_scores.f1(true, true) == map_scores.f1(~true & true, ~true & true) == 1
    assert map_scores.f1(~true, true) == 0


def test_objects_must_be_recovered_in_place(source):
    number = next(i for i in range(100) if len(source.scene(i).objects) > 1)
    objects, image = source.scene(number).objects, source.image(number)
    assert map_scores.recovered(objects, image) == 1
    assert map_scores.recovered(objects, np.zeros_like(image)) == 0
    moved = [replace(objects[0], x=1 - objects[0].x + 0.2), *objects[1:]]
    assert map_scores.recovered(moved, image) == 1 - 1 / len(objects)
