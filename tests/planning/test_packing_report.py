"""`python -m rf_jax.packing_report` predicts how full rows are before anything is trained."""

import re

import pytest
from command_line import command

from rf_jax.runtime import errors

pytestmark = pytest.mark.slow


def share(output, name):
    return float(re.search(rf'^ *{name} +([\d.]+)%$', output, re.M)[1])


def test_capacities_are_recommended_for_a_given_row_length():
    output = command(
        'packing_report', '--config=configs/base.py', '--distribution=coco', '--row_tokens=8192',
        '--samples=12000', "--config.data.sizes=((256, 1.0),)",
    )  # fmt: skip
    found = dict(re.findall(r'--config.data.capacity.(\w+)=(\d+)', output))
    streams = ('text', 'vision', 'representation', 'pixels')
    assert sum(int(found[name]) for name in streams) == 8192
    assert share(output, 'row fill') > 95
    assert share(output, 'left out') < 1
    output = command(
        'packing_report',
        '--distribution=coco',
        '--config.data.sizes=((256, 1.0),)',
        code=errors.USER_ERROR,
    )
    assert 'data.capacity' in output


def test_the_sources_of_a_config_are_reported():
    output = command('packing_report', '--config=configs/emoji.py')
    assert 80 < share(output, 'row fill') < 100
    assert 'peak memory' in output
