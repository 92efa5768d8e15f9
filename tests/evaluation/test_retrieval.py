"""retrieval.py: ranks against a spelled-out cosine, and a judge that can be right or wrong."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from configs import base
from rf_jax.data import chat_format
from rf_jax.data.image_ops import BadImage
from rf_jax.data.records import Record
from rf_jax.evaluation import retrieval, run_report
from rf_jax.runtime.errors import UserError


class Images:
    """Ten flat colours with names; number 3 cannot be read."""

    name, procedural = 'colours', False

    def __len__(self):
        return 30

    def record(self, i):
        return Record(32, 32, (f'colour {i}',))

    def image(self, i):
        if i == 3:
            raise BadImage('torn')
        rng = np.random.default_rng(i)
        return rng.integers(0, 256, (32, 32, 3)).astype(np.uint8)


class Painter:
    """Paints what the label says when `right`, else always the same image."""

    def __init__(self, source, right):
        self.source, self.right = source, right

    config = base.get_config()
    tokenizer = SimpleNamespace(encode=str.split, chat=chat_format.plain(1, 4, 2))

    def generate(self, prompts, seed, size, number):
        assert set(size) == {(64, 64)}  # the 32 px images are enlarged to the only training size
        labels = [int(prompt.split()[1]) if self.right else 0 for prompt in prompts]
        return [SimpleNamespace(image=self.source.image(i)) for i in labels]

    def caption(self, images):
        known = {self.source.image(i).tobytes(): i for i in range(30) if i != 3}
        return [f'colour {known[p.tobytes()]}' if self.right else 'colour 0' for p in images]


def test_a_task_that_is_not_trained_is_not_judged():
    source = Images()
    painter = Painter(source, True)
    painter.config = base.get_config()
    painter.config.data.tasks.text_to_image = 0.0
    result = retrieval.evaluate(painter, source, 12, seed=0)
    assert result.top10 is None and result.generated == [] and result.exact == 1.0
    assert 'captioned' in result.table() and 'generated' not in result.table()


def test_ranks_count_the_nearer_images():
    rng = np.random.default_rng(0)
    gallery = rng.normal(5, 1, (20, 7)).astype(np.float32)
    generated = rng.normal(5, 1, (4, 7)).astype(np.float32)
    truth = [3, 0, 19, 7]
    mean = gallery.mean(0)
    for i, right in enumerate(truth):
        a = generated[i] - mean
        cosines = [a @ (g - mean) / np.linalg.norm(a) / np.linalg.norm(g - mean) for g in gallery]
        expected = sorted(cosines, reverse=True).index(cosines[right])
        assert retrieval.ranks(generated, gallery, truth)[i] == expected


def test_a_right_painter_scores_all_and_a_wrong_one_almost_nothing():
    source = Images()
    good = retrieval.evaluate(Painter(source, True), source, 12, seed=0)
    assert (good.top1, good.top10, good.exact, good.count, good.gallery) == (1, 1, 1, 12, 29)
    bad = retrieval.evaluate(Painter(source, False), source, 12, seed=0)
    assert bad.top1 <= 1 / 12 and bad.exact <= 1 / 12
    assert 'colour 3' not in good.labels + bad.labels


@pytest.mark.parametrize('gallery', [1, 9, 10, 29])
def test_no_chance_level_is_above_one(gallery):
    result = retrieval.Result(1, gallery, 1.0, 1.0, 1.0, ['a'], [], [], ['a'])
    chances = [float(line.split()[-1].rstrip('%')) for line in result.table().splitlines()[1:]]
    assert chances == pytest.approx(
        [min(100, 1000 / gallery), 100 / gallery, 100 / gallery], abs=0.006
    )


def test_an_answer_that_cannot_be_given_has_no_rate(monkeypatch):
    source, words = Images(), ' '.join(map(str, range(100)))
    monkeypatch.setattr(source, 'record', lambda i: Record(32, 32, (f'colour {i} {words}',)))
    result = retrieval.evaluate(Painter(source, True), source, 12, seed=0)
    assert result.exact is None and result.top1 == 1
    assert 'exact label' not in result.table()
    assert '12 of 12 labels have more than 16 tokens' in result.table()


def test_labels_that_are_too_long_are_counted_beside_the_rate(monkeypatch):
    source = Images()
    long = {i: f'colour {i}' + ' x' * (i % 2) * 20 for i in range(30)}
    monkeypatch.setattr(source, 'record', lambda i: Record(32, 32, (long[i],)))
    result = retrieval.evaluate(Painter(source, True), source, 12, seed=0)
    odd = sum(int(label.split()[1]) % 2 for label in result.labels)
    assert result.exact == 1 - odd / 12 and 0 < odd < 12
    assert f'{odd} of 12 labels have more than 16 tokens' in result.table()


def test_a_source_without_readable_images_is_an_error(monkeypatch):
    source = Images()

    def torn(i):
        raise BadImage('torn')

    monkeypatch.setattr(source, 'image', torn)
    with pytest.raises(UserError, match='colours'):
        retrieval.evaluate(Painter(source, True), source, 12, seed=0)


def test_wilson_interval_holds_known_values():
    low, high = retrieval.wilson(0.5, 100)
    assert (round(low, 3), round(high, 3)) == (0.404, 0.596)
    assert retrieval.wilson(0.0, 200)[0] == pytest.approx(0, abs=1e-12)


def test_real_and_generated_images_have_one_size_on_a_grid_that_fits_a_screen(tmp_path):
    count, blue, red = 24, (0, 0, 255), (255, 0, 0)
    truth = [np.full((500, 375 if i % 2 else 500, 3), blue, np.uint8) for i in range(count)]
    generated = [np.full((64, 32 if i % 2 else 64, 3), red, np.uint8) for i in range(count)]
    labels = ['a label of some words'] * count
    result = retrieval.Result(count, count, 0.5, 0.5, 0.5, labels, generated, truth, labels)
    run_report.write(result, {'step': 1, 'seed': 0}, tmp_path)
    sheet = np.asarray(Image.open(tmp_path / 'grid.png'))
    assert max(sheet.shape) <= 1600
    areas = [(sheet == colour).all(-1).sum() for colour in (blue, red)]
    assert areas[0] == areas[1] > 0.25 * sheet[..., 0].size
    found = json.loads((tmp_path / 'result.json').read_text())
    assert list(found)[:3] == ['step', 'seed', 'count'], 'which checkpoint it is of'
