"""Names of the files of rf_jax.sample, whatever the prompt."""

import pytest
from absl import flags
from absl.testing import flagsaver

from rf_jax import sample


@pytest.mark.parametrize(('prompt', 'name'), [
    ('A red, round apple!', '000-a-red-round-apple-seed7-3'),
    ('...', '000-empty-seed7-3'),
    ('a' * 300, f'000-{"a" * 60}-seed7-3'),
    ('\N{CJK UNIFIED IDEOGRAPH-20BB7}' * 80, f'000-{chr(0x20BB7) * 45}-seed7-3'),
], ids=range(4))  # fmt: skip
def test_a_name_is_that_of_a_file(prompt, name, tmp_path):
    flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(seed=7):
        assert sample._stem(prompt, 0, 3) == name
    (tmp_path / f'{name}.png').write_bytes(b'')
