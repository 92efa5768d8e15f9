"""A set is prepared into a bucket and trained on from there, as from a disk."""

import numpy as np
import pytest
from prepare_inputs import prepare, write_tar

from configs import base
from rf_jax.data import source_list
from rf_jax.data.pipeline import Batches
from rf_jax.data.tokenizer import load_tokenizer
from rf_jax.runtime import storage
from rf_jax.runtime.errors import UserError

pytest.importorskip('apache_beam')
pytestmark = pytest.mark.slow


def batches_of(folder, **data):
    config = base.get_config()
    config.data.update(sources=f'prepared:{folder}', sizes=((32, 1.0),), batch_size=4, lanes=2)
    config.data.capacity.update(text=160, vision=4, representation=10, pixels=16)
    config.data.capacity.update(vision_images=4, pixel_images=4)
    config.data.update(max_text_tokens=40, **data)
    sources = source_list.build(config.data.sources, 10**6)
    return Batches(config, sources, load_tokenizer(sources[0].tokenizer))


def test_a_set_in_a_bucket_gives_the_batches_of_one_on_a_disk(bucket, tmp_path):
    for number in range(2):
        write_tar(tmp_path / f'{number}.tar', range(100 * number, 100 * number + 70))
    folder = f'{bucket[0]}/{tmp_path.name}/set'
    found = prepare(f'webdataset:{tmp_path}', folder)
    assert found == prepare(f'webdataset:{tmp_path}', tmp_path / 'set')
    assert storage.names(folder) == [
        name for name in storage.names(tmp_path / 'set') if name != '.lock'
    ]
    there, here = batches_of(folder), batches_of(tmp_path / 'set')
    for step in range(3):
        expected = here.batch(step)
        for name, array in there.batch(step).items():
            np.testing.assert_array_equal(array, expected[name], err_msg=name)
    assert not there.counts['undecodable_images']

    bucket[1].fail('503', times=2)  # it is asked again
    another = batches_of(folder)
    np.testing.assert_array_equal(another.batch(0)['pixels'], here.batch(0)['pixels'])
    with pytest.raises(UserError, match=r'nothing has no set\.json'):
        source_list.build(f'prepared:{bucket[0]}/nothing', 10**6)
