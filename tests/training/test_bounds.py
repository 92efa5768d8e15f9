"""bounds.py: every number of a config has bounds, and errors name the field."""

import math
import re

import pytest
from config_names import NAMES, get_config

from configs import base
from rf_jax.runtime.errors import UserError
from rf_jax.training import bounds, checks


def fields(name='base'):
    return checks.flatten(get_config(name).to_dict())


# Strings say what they are about where they are used; tables of sharding have a reader.
NUMERIC = {name: value for name, value in fields().items()
           if not isinstance(value, str) and not name.endswith('sharding')}  # fmt: skip
# Just outside, and wrong types; {field: values} for fields with bounds of their own.
OUTSIDE = {
    'seed': (-1, 2**63),
    'data.sizes': ((), (64,), ((64, 0.0),), ((64, math.nan),), ((64.0, 1.0),), ((64, 1.0, 2),)),
    'data.weights': ((1,), ((0, 1),), ((-1, (1,)),), ((0, (-1.0,)),), ((0, (math.nan,)),)),
    'model.backbone.rope_sections': ((16, 8), (16, 8, -8), (16, 8, 8.0), 16),
    'model.representation.quantizer.data_init_steps': ((-1,), (0.5,), ('0',), 0),
    'model.representation.quantizer.temperature': (0.0,),
    'model.encoder.pixel_mean': ((0.5, 0.5), (0.5, 0.5, 1.5), (123.0, 116.0, 103.0), 0.5),
    'model.encoder.pixel_std': ((0.5, 0.5), (0.5, 0.5, 0.0), (58.0, 57.0, 57.0), 0.5),
    'optimizer.lr_multipliers': (
        (1,),
        (('x',),),
        (('x', -1.0),),
        (('x', math.nan),),
        (('x', '4'),),
    ),
    'optimizer.learning_rate': (-1.0, 0.0),
    'optimizer.warmup_steps': (-5,),
    'optimizer.freeze': ('x', (1,)),
    'ema.decay': (1.5, 1.0, -0.1),
    'checkpoint.keep': (0,),
    'sampling.guidance_interval': ((0.5,), (0.0, 1.5), (0.6, 0.4), (0.0, math.nan), 0.5),
    'mesh.fsdp': (0, -2),
    'initialise_as': ((1,), (('x',),), (('x', 2),)),
}


@pytest.mark.parametrize('field', NUMERIC)
def test_a_value_out_of_bounds_names_its_field(field):
    row = bounds.FIELDS[field]
    wrong = [math.nan, math.inf, -math.inf, 'x', None, *OUTSIDE.get(field, ())]
    if isinstance(NUMERIC[field], bool):
        wrong += [0.5, 2]
    elif isinstance(NUMERIC[field], int | float):
        wrong.append(True)
        low, high = row.low, row.high
        wrong += [low - 1] if low > -math.inf and low - 1 not in getattr(row, 'also', ()) else []
        wrong += [high + 1] if high < math.inf else []
    if isinstance(NUMERIC[field], int):
        wrong.append(1.5)
    for value in wrong:
        with pytest.raises(UserError, match=rf'^{re.escape(field)}=') as error:
            bounds.check({field: value})
        assert '\n' not in str(error.value)


def test_every_bound_belongs_to_a_field():
    assert set(bounds.FIELDS) == set(NUMERIC)


@pytest.mark.parametrize('name', NAMES)
def test_every_config_is_within_its_bounds(name):
    bounds.check(fields(name))


@pytest.mark.parametrize(
    'field', ['seed', 'ema.decay', 'optimizer.warmup_steps', 'checkpoint.keep']
)
def test_a_config_is_checked_before_the_workdir_is_created(field, tmp_path):
    from rf_jax.training import train_loop

    config = base.get_config()
    config.update_from_flattened_dict({field: type(NUMERIC[field])(-5)})
    with pytest.raises(UserError, match=rf'^{field}=-5'):
        train_loop.build(config, tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('row', [('kernel(', ()), ('kernel', ('tensr',)), 'kernel'])
def test_rows_of_the_layout_for_inference_are_checked_before_training(row):
    config = get_config('emoji')
    config.sampling.sharding = (row,)
    with pytest.raises(UserError, match=r'^sampling\.sharding: '):
        checks.start(config)


@pytest.mark.parametrize(
    ('field', 'value', 'message'),
    [
        ('initialise_new', ('^encoder/', '('), r"initialise_new has '\(', which is not a regular"),
        ('initialise_as', (('(', 'x'),), r"initialise_as has '\(', which is not a regular"),
        ('initialise_as', (('a(b)', r'\2'),), r"initialise_as: '.*2' is no replacement for"),
        ('initialise_as', (('a', r'\g<n>'),), "is no replacement for 'a': unknown group name"),
    ],
)
def test_patterns_of_initial_weights_are_regular_expressions(field, value, message):
    config = base.get_config()
    config[field] = value
    with pytest.raises(UserError, match=message):
        checks.check(config)


def test_weights_of_terms_that_no_kind_has_are_not_enough():
    config = base.get_config()
    config.model.representation.kind, config.data.representation_tokens = 'none', False
    config.losses.update(text=0.0, flow=0.0)
    with pytest.raises(UserError, match="kind='none' has no term of losses"):
        checks.check(config)
