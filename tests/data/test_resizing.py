"""Resizing: both resizers against the Lanczos filter itself, and who uses which."""

import sys
import tarfile

import numpy as np
import prepared_set
import pytest
from PIL import Image
from test_image_ops import photo

from configs import base
from rf_jax.data import resizing, source_list
from rf_jax.data.pipeline import Batches
from rf_jax.runtime.errors import UserError

pytest.importorskip('cykooz_resizer')


def exact(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """float64: the Lanczos filter of three lobes, without rounding in between."""

    def weights(old, new):
        scale = max(old / new, 1)
        away = (np.arange(old) + 0.5 - (np.arange(new)[:, None] + 0.5) * old / new) / scale
        found = np.where(abs(away) < 3, np.sinc(away) * np.sinc(away / 3), 0)
        return found / found.sum(1, keepdims=True)

    rows, columns = weights(image.shape[0], height), weights(image.shape[1], width)
    return np.einsum('oh,hwc,pw->opc', rows, image, columns, optimize=True).clip(0, 255)


@pytest.mark.parametrize('size', [(64, 32), (96, 200), (240, 160), (480, 672)])
def test_both_resizers_are_equally_near_to_the_filter(size):
    image = (30 + 0.75 * photo(320, 448)).astype(np.uint8)  # the filter overshoots nowhere
    wanted = exact(image, *size)
    off = {
        name: np.asarray(resizing.named(name)(Image.fromarray(image), *size)) - wanted
        for name in resizing.BY_NAME
    }
    rms = {name: np.sqrt((each**2).mean()) for name, each in off.items()}
    assert rms['pillow'] < 0.4  # rounding to 8 bits once is 0.29
    assert rms['simd'] < 1.06 * rms['pillow']
    assert max(abs(each).max() for each in off.values()) < 3


def test_vector_instructions_do_not_change_a_pixel():
    library, options = resizing._cykooz()
    rng = np.random.default_rng(0)
    for height, width, *size in rng.integers(1, 300, (20, 4)).tolist():
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
        every = []
        for kind in library.CpuExtensions:
            resizer, found = library.Resizer(), Image.new('RGB', tuple(size))
            try:
                resizer.cpu_extensions = kind
            except ValueError:  # not of this processor
                continue
            resizer.resize_pil(image, found, options)
            every.append(np.asarray(found))
        assert len(every) > 1
        assert all((found == every[0]).all() for found in every)


@pytest.mark.parametrize('kind', ['indexed', 'listed'])
def test_data_resizer_resizes_the_images_of_batches(kind, tmp_path):
    tokenizer = prepared_set.tokenizer()
    Image.fromarray(photo(96, 80)).save(tmp_path / 'a.jpg', quality=95)
    (tmp_path / 'a.txt').write_text('a photo')
    (tmp_path / 'captions.jsonl').write_text('{"file": "a.jpg", "caption": "a photo"}')
    with tarfile.open(tmp_path / 'a.tar', 'w') as archive:
        for name in ('a.jpg', 'a.txt'):
            archive.add(tmp_path / name, name)
    sources = {'indexed': f'webdataset:{tmp_path}', 'listed': f'folder:{tmp_path}'}[kind]
    config = base.get_config()
    config.data.update(sources=sources, sizes=((32, 1.0),), batch_size=1)
    config.data.tasks = {'text_to_image': 1.0, 'image_to_text': 0.0, 'text_only': 0.0}

    def pixels(name):
        config.data.resizer = name
        return Batches(config, source_list.build(sources, 10**6), tokenizer).batch(0)['pixels']

    found = {name: pixels(name) for name in resizing.BY_NAME}
    off = abs(found['simd'].astype(int) - found['pillow'])
    assert found['pillow'].any() and off.any() and off.max() < 12


def test_a_resizer_that_is_not_there(monkeypatch):
    with pytest.raises(UserError, match=r"data.resizer='opencv' is unknown; known: pillow, simd"):
        resizing.named('opencv')
    resizing._cykooz.cache_clear()
    monkeypatch.setitem(sys.modules, 'cykooz_resizer', None)
    with pytest.raises(UserError, match=r"pip install '.\[simd\]'"):
        resizing.named('simd')
