"""Typical rows are full, and their visible pairs are those of the attention mask."""

import numpy as np
import pytest
from config_names import get_config

from rf_jax.data import typical_row
from rf_jax.models.attention import masks

CONFIGS = ('stages:joint', 'emoji', 'stages:continued', 'paper:alignment')


@pytest.mark.parametrize('name', CONFIGS)
def test_visible_pairs_are_those_of_the_mask(name):
    config = get_config(name)
    if name.startswith('paper'):
        config.data.capacity.update(text=1024, vision=1024, vision_images=16)
    row = typical_row.row(config)
    integers = {field: row[field][None] for field in masks.FIELDS}
    assert typical_row.visible_pairs(row) == np.asarray(masks.visible(integers, integers)).sum()
    assert (row['segment'] > 0).mean() > 0.35
