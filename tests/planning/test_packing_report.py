"""`python -m rf_jax.packing_report` predicts how full rows are before anything is trained."""

import re

import numpy as np
import pytest
from command_line import command
from small_bpe import small_bpe, write_weights

from configs import base
from rf_jax import packing_report
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


def test_rows_too_short_for_an_image_name_the_flag_that_is_too_small():
    output = command('packing_report', '--row_tokens=3', code=errors.USER_ERROR)
    assert 'error: --row_tokens=3: ' in output


def test_the_sources_of_a_config_are_reported():
    output = command('packing_report', '--config=configs/emoji.py')
    assert 80 < share(output, 'row fill') < 100
    assert 'peak memory' in output


def test_synthetic_questions_have_the_tokens_of_the_chat_format(tmp_path, monkeypatch):
    pytest.importorskip('tokenizers')
    monkeypatch.setattr(packing_report, 'Plan', lambda mixture, sizes, *_: sizes)
    config = base.get_config()
    config.data.max_text_tokens = 64
    texts = []
    for path in ('', str(write_weights(tmp_path, small_bpe()))):
        config.tokenizer.path = path
        sizes = packing_report.synthetic_plan(config, 'coco')
        texts.append(sizes('image_to_text', np.arange(9), np.zeros(9, int))[:, 0])
    chatml, plain = packing_report.load_tokenizer(path).chat.question_and_answer, 3
    np.testing.assert_array_equal(texts[1] - texts[0], chatml - plain)
    assert chatml > plain
