"""conversations.jsonl in a folder: images by path, and what is skipped with its reason."""

import json

import numpy as np
import pytest
from PIL import Image

from configs import base
from rf_jax.data import source_list
from rf_jax.data.messages import DraftPart, ImagePart
from rf_jax.data.pipeline import Batches
from rf_jax.data.sentencepiece_tokenizer import SentencePieceTokenizer
from rf_jax.runtime.errors import UserError


@pytest.fixture
def folder(tmp_path):
    for name, size in (('a.png', (40, 20)), ('b.png', (20, 20))):
        Image.fromarray(np.full((*size[::-1], 3), 100, np.uint8)).save(tmp_path / name)
    return tmp_path


def talk(*turns, **more):
    return {'messages': [{'role': role, 'content': content} for role, content in turns]} | more


GOOD = talk(
    ('user', '<image> what is it?'), ('assistant', 'grey'), ('user', 'and <image>?'),
    ('assistant', 'grey too'), images=['a.png', 'b.png'],
)  # fmt: skip
DRAWN = talk(
    ('user', 'draw it'), ('assistant', [{'type': 'image', 'image': 'b.png'}]),
)  # fmt: skip


def write(folder, *entries, name='conversations.jsonl'):
    lines = [each if isinstance(each, str) else json.dumps(each) for each in entries]
    text = f'[{",".join(lines)}]' if name.endswith('.json') else '\n'.join(lines)
    (folder / name).write_text(text)
    (source,) = source_list.build(f'folder:{folder}', 10**6)
    return source


@pytest.mark.parametrize('name', ['conversations.jsonl', 'conversations.json'])
def test_conversations_of_a_folder(folder, name):
    source = write(folder, GOOD, DRAWN, name=name)
    assert len(source) == 0 and len(source.conversations) == 2
    first = source.conversations[0]
    assert first.sizes == ((20, 40), (20, 20))
    assert [message.images for message in first.messages] == [[0], [], [1], []]
    assert first.image(0).shape == (20, 40, 3)


def test_beside_captions(folder):
    line = json.dumps({'file': 'a.png', 'caption': 'grey'})
    (folder / 'captions.jsonl').write_text(line)
    source = write(folder, GOOD)
    assert len(source) == 1 and len(source.conversations) == 1
    assert '1 examples and 1 conversations' in source_list.summary([source])


@pytest.mark.parametrize(
    'bad, reason, said',
    [
        ('{"messages": [', 'malformed conversation', 'line 2'),
        (talk(('user', 'a')), 'malformed conversation', 'no message of the assistant'),
        (talk(('user', '<image>'), ('assistant', 'a'), images=['c.png']),
         'conversation with a bad image', 'line 2: c.png: the file is missing'),
        (talk(('user', '<image>'), ('assistant', 'a'), images=['../a.png']),
         'conversation with a bad image', '../a.png: paths must be relative'),
        (talk(('robot', 'b'), ('assistant', 'a')), 'malformed conversation', "role 'robot'"),
        (talk(('user', 'a'), ('assistant', 'b'), images=['a.png']),
         'malformed conversation', '1 images, but only 0'),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_skipped_and_named(folder, caplog, bad, reason, said):
    with caplog.at_level('WARNING', logger='absl'):
        source = write(folder, GOOD, bad)
    assert len(source.conversations) == 1 and source.skipped == {reason: 1}
    assert said in caplog.text


def test_nothing_usable(folder):
    with pytest.raises(UserError, match=r'no usable.*malformed conversation.*A line of conversat'):
        write(folder, talk(('user', 'a')))


def batches(source, tokenizer, **data):
    config = base.get_config()
    config.data.update(patch_size=4, sizes=((16, 1.0),), batch_size=2, max_text_tokens=40)
    config.data.tasks.update(text_to_image=0.0, image_to_text=0.0, conversation=1.0)
    config.data.capacity.update(
        text=80, vision=16, representation=10, pixels=32, vision_images=4, pixel_images=2
    )
    config.data.capacity.update(data)
    return Batches(config, [source], tokenizer)


@pytest.fixture(scope='module')
def tokenizer():
    return SentencePieceTokenizer.train(['what is it? grey too', 'draw and'], 300)


def test_conversations_fill_batches(folder, tokenizer):
    made = batches(write(folder, GOOD, DRAWN), tokenizer)
    batch = made.batch(0)
    assert batch['text_weight'].sum() > 0 and batch['pixel_weight'].sum() > 0
    assert (batch['vision_counts'] > 0).any() and batch['vision_pixels'].max() == 100
    again = batches(write(folder, GOOD, DRAWN), tokenizer).batch(0)
    for name, array in batch.items():
        np.testing.assert_array_equal(array, again[name], err_msg=name)


def test_the_last_turns_of_a_long_conversation_are_left_out_and_counted(folder, tokenizer):
    turns = [('user', 'what is it?'), ('assistant', 'grey')] * 9
    made = batches(write(folder, talk(*turns)), tokenizer)
    batch = made.batch(0)
    ends = (batch['text_tokens'] == tokenizer.eos).sum(1)
    assert (ends >= 1).all() and (ends < 9).all()
    assert made.counts['conversations_truncated'] >= 1


def test_a_bad_image_found_late_skips_the_conversation(folder, tokenizer):
    data = (folder / 'a.png').read_bytes()
    (folder / 'a.png').write_bytes(data[: len(data) * 2 // 3])  # the header is right
    made = batches(write(folder, GOOD, DRAWN), tokenizer)
    for step in range(4):
        made.batch(step)
    assert made.counts['undecodable_images'] >= 1


def test_a_draft_stays_one(folder):
    draft = {'type': 'image', 'image': 'a.png', 'learned': False}
    source = write(
        folder,
        talk(('user', 'draw it'), ('assistant', [draft, {'type': 'image', 'image': 'b.png'}])),
    )
    (found,) = source.conversations
    assert found.messages[1].parts == (DraftPart(0), ImagePart(1))
