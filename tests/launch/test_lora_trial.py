"""The pictures of the trial are twenty different ones, with captions of their own."""

import importlib
import sys
from pathlib import Path

from rf_jax.data import source_list

sys.path.insert(0, str(Path(__file__).parents[2] / 'launch'))
trial = importlib.import_module('lora_trial')


def test_twenty_pictures_with_captions(tmp_path):
    trial.draw(tmp_path)
    (found,) = source_list.build(f'folder:{tmp_path}', 10**6)
    numbers = source_list.with_image(found)
    assert len({found.image(i).tobytes() for i in numbers}) == len(numbers) == 20
    assert len({found.record(i).captions[0] for i in numbers}) == 20
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    trial.draw(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == first
