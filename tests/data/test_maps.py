"""maps.py: an image is shown, and its map is what the assistant draws; scenes and folders alike."""

import hashlib
import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from configs import base
from rf_jax.data import captions, image_ops, maps, source_list
from rf_jax.data.messages import ImagePart, TextPart
from rf_jax.data.pipeline import Batches
from rf_jax.data.sentencepiece_tokenizer import SentencePieceTokenizer
from rf_jax.runtime.errors import UserError

MANY = 10**6


@pytest.fixture(scope='module')
def scenes():
    return source_list.build('scenes:aligned/32/count=300', MANY)[0]


@pytest.fixture(scope='module')
def tokenizer():
    return SentencePieceTokenizer.train(list(maps.texts(maps.NAMES)) * 20, 400)


def batches(source, tokenizer, *names, **capacity):
    config = base.get_config()
    config.data.update(patch_size=4, sizes=((32, 1.0),), batch_size=4, max_text_tokens=44)
    config.data.update(text_dropout=0.0, image_dropout=0.0, representation_dropout=0.0)
    config.data.tasks.update(text_to_image=0.0, image_to_text=0.0)
    config.data.tasks.update({f'image_to_{name}': 1.0 for name in names})
    config.data.capacity.update(
        text=64, vision=32, representation=17, pixels=64, vision_images=2, pixel_images=1
    )
    config.data.capacity.update(capacity)
    config.data.sources = source.name
    return Batches(config, [source], tokenizer)


@pytest.mark.parametrize('name', maps.NAMES)
def test_an_image_is_shown_and_its_map_is_the_answer(scenes, name):
    said = Counter()
    for i in range(300):
        talk = maps.conversation(scenes, i, name, np.random.default_rng(i))
        asked, answer = talk.messages
        assert (asked.role, answer.role) == ('user', 'assistant')
        assert answer.parts == (ImagePart(1),) and talk.sizes == ((32, 32),) * 2
        said[asked.parts] += 1
    drawn = scenes.image(299) if name == 'pixels' else scenes.map(299, name)
    np.testing.assert_array_equal(talk.image(0), scenes.image(299))
    np.testing.assert_array_equal(talk.image(1), drawn)
    texts = {parts[-1].text for parts in said}
    assert texts == set(maps.texts([name])), 'every wording is used'
    alone = sum(count for parts, count in said.items() if len(parts) == 1)
    assert 15 < alone < 50 if name == 'pixels' else not alone
    assert all(parts[0] == ImagePart(0) for parts in said if len(parts) == 2)
    assert {parts for parts in said if len(parts) == 1} == (
        {(TextPart(text),) for text in maps.UNCONDITIONAL} if name == 'pixels' else set()
    )


def test_wordings_belong_to_one_map():
    every = list(maps.texts(maps.NAMES))
    assert len(set(every)) == len(every)
    assert len(maps.INSTRUCTIONS['depth']) >= 5
    assert min(len(maps.INSTRUCTIONS[name]) for name in ('pixels', 'segmentation')) >= 8


def test_batches_hold_the_image_and_its_map(scenes, tokenizer):
    """The loss is on the map; what is read is the image, and then the map."""
    made = batches(scenes, tokenizer, 'depth', 'segmentation')
    seen = Counter()
    shown = {scenes.image(i).tobytes(): i for i in range(300)}
    for row, examples in enumerate(made.plan.rows(0)):
        (example,) = examples
        name = maps.TASKS[example.task]
        seen[name] += 1
        arrays = {key: value[row] for key, value in made.batch(0).items()}
        read = [
            image_ops.unpatchify(arrays['vision_pixels'][at : at + 64], 32, 32, 4) for at in (0, 64)
        ]
        number = shown[read[0].astype(np.uint8).tobytes()]
        assert number == example.index
        drawn = image_ops.unpatchify(arrays['pixels'], 32, 32, 4)
        np.testing.assert_array_equal(drawn, scenes.map(number, name))
        np.testing.assert_array_equal(read[1], drawn)
        assert arrays['text_weight'].sum() == 2, '<image> and <eos>'
    assert len(seen) == 2


def test_maps_have_equal_shares(scenes, tokenizer):
    made = batches(scenes, tokenizer, *maps.NAMES)
    assert {made.plan.mixture.counts[task] for task in maps.TASKS} == {300}
    assert len(set(made.plan.examples_per_task.values())) == 1


def test_a_row_too_small_is_an_error_that_names_the_field(scenes, tokenizer):
    with pytest.raises(UserError, match=r'data\.capacity\.vision_images=1'):
        batches(scenes, tokenizer, 'pixels', vision_images=1)
    with pytest.raises(UserError, match=r'data\.capacity\.vision=16'):
        batches(scenes, tokenizer, 'depth', vision=16)


def test_the_tokenizer_learns_what_is_asked(scenes):
    plain = set(captions.corpus([scenes]))
    assert set(captions.corpus([scenes], ['depth'])) - plain == set(maps.texts(['depth']))


def test_conversations_are_what_they_were():
    """Recorded before there were maps."""
    (source,) = source_list.build('scenes:aligned/48/conversations/count=3000', MANY)
    digest = hashlib.blake2b(digest_size=8)
    for i in range(300):
        each = source.conversations[i]
        digest.update(repr((each.messages, each.scenes)).encode())
    assert digest.hexdigest() == '8970f2b00ac94bad'


def save(path, values):
    Image.fromarray(values).save(path)


@pytest.fixture
def folder(tmp_path):
    """Three images; all have depth (of 16 bits), one has segmentation, some maps are bad."""
    rng = np.random.default_rng(0)
    for i in range(3):
        save(tmp_path / f'{i}.png', rng.integers(0, 256, (32, 32, 3), np.uint8))
        save(tmp_path / f'{i}_depth.png', np.full((64, 64), 257 * (10 + i), np.uint16))
    save(tmp_path / 'wide.png', np.zeros((32, 64, 3), np.uint8))
    lines = [{'file': f'{i}.png', 'caption': 'a', 'depth': f'{i}_depth.png'} for i in range(3)]
    lines[0]['segmentation'] = '0.png'
    lines[1]['segmentation'] = 'wide.png'
    lines[2]['segmentation'] = 'missing.png'
    write(tmp_path, lines)
    return tmp_path


def write(folder, lines):
    text = '\n'.join(json.dumps(line) for line in lines)
    (folder / 'captions.jsonl').write_text(text, encoding='utf-8')


def open_folder(folder):
    return source_list.build(f'folder:{folder}', MANY)[0]


def test_maps_of_a_folder(folder, tokenizer, caplog):
    source = open_folder(folder)
    assert len(source) == 3 and source.maps == {'depth': [0, 1, 2], 'segmentation': [0]}
    assert [source.map(i, 'depth').max() for i in range(3)] == [10, 11, 12]
    assert source.skipped == {'segmentation map of another shape': 1, 'bad segmentation map': 1}
    assert 'wide.png: 32x32 and 64x32' in caplog.text and 'missing.png' in caplog.text
    made = batches(source, tokenizer, 'depth', 'segmentation', 'pixels')
    counts = made.plan.mixture.counts
    assert [counts.get(f'image_to_{n}', 0) for n in maps.NAMES] == [3, 3, 1, 0]
    depth = batches(source, tokenizer, 'depth').batch(0)  # at the size of the image
    assert set(np.unique(depth['pixels'])) <= {10, 11, 12}


def test_a_map_that_no_image_has_is_an_error_that_names_the_field(folder, tokenizer):
    said = r'(?s)image_to_regions.*data\.tasks\.image_to_regions=0.*captions\.jsonl.*"regions"'
    with pytest.raises(UserError, match=said):
        batches(open_folder(folder), tokenizer, 'depth', 'regions')


def test_a_changed_list_of_maps_is_other_data(folder):
    before = source_list.summary([open_folder(folder)])
    write(folder, [{'file': f'{i}.png', 'caption': 'a'} for i in range(3)])
    assert (
        source_list.summary([open_folder(folder)]).split('digest')[1] != (before.split('digest')[1])
    )


def test_maps_are_paths(folder):
    write(
        folder, [{'file': '0.png', 'caption': 'a'}, {'file': '1.png', 'caption': 'a', 'depth': 3}]
    )
    assert open_folder(folder).skipped == {'malformed line': 1}
