"""scenes.py: scenes as a data source, made on demand; errors name the mistake."""

import hashlib
import re

import numpy as np
import pytest

from configs import base
from configs.posttraining import think
from rf_jax.data import captions, source_list
from rf_jax.data.messages import DraftPart, ImagePart, TextPart
from rf_jax.data.packing import plan
from rf_jax.data.pipeline import Batches
from rf_jax.data.sentencepiece_tokenizer import SentencePieceTokenizer
from rf_jax.runtime.errors import UserError
from rf_jax.scenes import render, world
from rf_jax.scenes.claims import holds

MANY = 10**6


def build(text, max_pixels=MANY):
    (source,) = source_list.build(text, max_pixels)
    return source


def test_long_captions_alone():
    usual, long = build('scenes:aligned/48/count=20'), build('scenes:aligned/48/count=20/long')
    for i in range(20):
        assert long.record(i).captions == usual.record(i).captions[-1:]
        assert long.captions(i)[0].claim.ground == long.scene(i).ground


def test_a_record_says_what_its_scene_shows():
    source = build('scenes:crowded/32/count=50/seed=4')
    assert len(source) == 50 and source.name == 'scenes:crowded/32/count=50/seed=4'
    assert source.skipped == {}
    for i in range(50):
        scene, record = source.scene(i), source.record(i)
        assert scene == world.make(4, i, world.RUNGS['crowded'])
        assert (record.height, record.width, record.kind) == (32, 32, scene.kind)
        assert record.captions == tuple(each.text for each in source.captions(i))
        assert all(holds(each.claim, scene.objects) for each in source.captions(i))
        asked = source.questions(i)
        assert record.questions == tuple((each.question, each.answer) for each in asked)
        image = source.image(i)
        np.testing.assert_array_equal(image, render.render(scene, 32))
        for name, make in render.MAPS.items():
            np.testing.assert_array_equal(source.map(i, name), make(scene, 32))
            assert list(source.maps[name]) == list(range(50))
    for i in (-1, 50):
        with pytest.raises(IndexError, match=r'0 \.\. 49'):
            source.record(i)


def test_records_are_the_same_in_any_order_and_again():
    one, again = build('scenes:free/24'), build('scenes:free/24')
    assert len(one) == 20_000
    forwards = [one.record(i) for i in range(30)]
    assert forwards == [again.record(i) for i in reversed(range(30))][::-1]
    assert forwards != [build('scenes:free/24/seed=1').record(i) for i in range(30)]
    # Another size: the same scenes, the same text.
    larger = build('scenes:free/96')
    assert [r.captions for r in forwards] == [larger.record(i).captions for i in range(30)]
    assert larger.image(0).shape == (96, 96, 3)


def test_options_change_the_rung():
    plain = world.RUNGS['aligned']
    assert build('scenes:aligned/48').rung == plain
    changed = build('scenes:aligned/48/objects=3/grid=2/textures/clutter').rung
    assert (changed.objects, changed.grid, changed.clutter) == (3, 2, True)
    assert changed.textures == world.TEXTURES and changed.radius == plain.radius
    assert build('scenes:free/48/overlap=0.3').rung.overlap == 0.3
    held = build('scenes:aligned/48/held_out').scene(0)
    assert world.allowed(held, True) and not world.allowed(held, False)
    textured = build('scenes:aligned/48/textures')
    words = ' '.join(text for i in range(50) for text in textured.record(i).captions)
    assert 'striped' in words and 'small' not in words


@pytest.mark.parametrize(
    ('text', 'said'),
    [
        ('scenes', 'scenes:RUNG/SIZE'),
        ('scenes:aligned', 'scenes:RUNG/SIZE'),
        ('scenes:aligned/', 'scenes:RUNG/SIZE'),
        ('scenes:alinged/48', "did you mean 'aligned'.*Known: aligned, free, crowded"),
        ('scenes:aligned/48px', '24 to 256'),
        ('scenes:aligned/16', '24 to 256'),
        ('scenes:aligned/512', '24 to 256'),
        ('scenes:aligned/48/texture', "Did you mean 'textures'.*Known: count=..., seed=..."),
        ('scenes:aligned/48/counts=5', "Did you mean 'count'"),
        ('scenes:aligned/48/count=0', "cannot read option 'count=0'"),
        ('scenes:aligned/48/count', "cannot read option 'count'"),
        ('scenes:aligned/48/count=1e5', "cannot read option 'count=1e5'"),
        ('scenes:aligned/48/textures=yes', "cannot read option 'textures=yes'"),
        ('scenes:aligned/48/objects=5/grid=2', '2 x 2 = 4 cells cannot hold 5.*objects=4'),
        ('scenes:aligned/48/grid=1', 'cannot hold 4 objects'),
        ('scenes:aligned/48/grid=9', '1 to 8 cells'),
        ('scenes:aligned/48/objects=7', '1 to 6'),
        ('scenes:free/48/grid=2', 'grid .* only applies to aligned'),
        ('scenes:aligned/48/overlap=0.2', 'overlap .* only applies to free or crowded'),
        ('scenes:free/48/overlap=2', '0 to 0.5'),
        ('scenes:aligned/48/riddles=draw', "cannot read option 'riddles=draw'"),
        ('scenes:aligned/48/riddles=think/objects=1', 'raise objects'),
        ('scenes:aligned/48/riddles=think/critique', 'riddles, critique; expected one'),
        ('scene:aligned/48', "Did you mean 'scenes'"),
    ],
)
def test_mistakes_are_named(text, said):
    with pytest.raises(UserError) as error:
        source_list.build(text, MANY)
    assert re.search(said, str(error.value)) and '\n' not in str(error.value)
    assert 'data.sources' in str(error.value)


def test_images_larger_than_allowed_are_an_error():
    assert len(build('scenes:aligned/100', 10_000))
    with pytest.raises(UserError, match=r'data\.max_pixels=9999'):
        source_list.build('scenes:aligned/100', 9999)


@pytest.fixture(scope='module')
def config():
    config = base.get_config()
    config.data.sources = 'scenes:aligned/64/count=1000000'
    config.data.max_text_tokens = 48
    config.data.capacity.text = 96
    return config


def test_millions_of_scenes_cost_no_start_up_time(config, monkeypatch):
    """Only the few thousand that the tokenizer reads are made."""
    made = []
    original = world.make
    monkeypatch.setattr(world, 'make', lambda *a, **k: made.append(a[1]) or original(*a, **k))
    monkeypatch.setattr(plan, 'WINDOW', 300)  # examples
    found = source_list.build(config.data.sources, MANY)
    assert len(source_list.with_image(found[0])) == 1_000_000 and not made
    tokenizer = SentencePieceTokenizer.train(captions.corpus(found), 400)
    assert 1000 < len(made) <= 2000
    made.clear()
    batches = Batches(config, found, tokenizer)
    assert batches.pools.count('image_to_text') == 1_000_000 and len(made) <= 300
    assert all(piece is None for _, _, piece in batches.pools['text_to_image'].entries[:9])
    pixels = batches.batch(0)['pixels']
    assert np.ptp(pixels) > 100 and not batches.counts['text_truncated']
    assert found[0].record(123_456).captions == build(config.data.sources).record(123_456).captions


def test_the_corpus_holds_all_words():
    source = build('scenes:crowded/32/count=1000000')
    known = set(' '.join(captions.corpus([source])).split())
    others = build('scenes:crowded/32/seed=1')
    words = {w for i in range(500) for text in others.record(i).captions for w in text.split()}
    asked = {
        w for i in range(500) for q in others.record(i).questions for t in q for w in t.split()
    }
    assert words | asked <= known


def test_sources_that_are_not_procedural_are_read():
    assert list(source_list.with_image(build('emoji'))) == list(range(1851))


def test_conversations_are_those_that_runs_were_trained_on():
    """Recorded before riddles and critiques were added beside them."""
    talks, found = hashlib.blake2b(digest_size=8), build('scenes:aligned/48/conversations')
    for talk in (found.conversations[i] for i in range(100)):
        talks.update(repr((talk.messages, talk.scenes)).encode())
    assert found.talks == 'conversations' and talks.hexdigest() == '982b563da5f6eba1'


def test_riddles_of_both_forms_show_the_same_images():
    direct, thought = (build(f'scenes:aligned/48/riddles={form}') for form in ('direct', 'think'))
    assert (direct.talks, direct.thinks, thought.thinks) == ('riddles', False, True)
    written = 0
    for i in range(20):
        one, other = direct.conversations[i], thought.conversations[i]
        np.testing.assert_array_equal(one.image(0), other.image(0))
        assert one.messages[0] == other.messages[0]
        *text, image = other.messages[1].parts
        assert one.messages[1].parts == (image,) == (ImagePart(0),)
        assert all(isinstance(part, TextPart) for part in text) and len(text) < 2
        written += len(text)
    assert 8 < written < 20  # of captions, which need no thought, there is none


@pytest.fixture(scope='module')
def words():
    return SentencePieceTokenizer.train(
        captions.corpus([build('scenes:aligned/48/count=500')]), 357
    )


@pytest.mark.parametrize('variant', think.VARIANTS)
def test_rows_of_riddles_and_critiques(variant, words, monkeypatch):
    """With the tokenizer of a run on captions: nothing is truncated, no image left out."""
    monkeypatch.setattr(plan, 'WINDOW', 300)  # examples
    config = think.get_config(variant)
    config.data.text_dropout = config.data.image_dropout = config.data.joint_dropout = 0.0
    (found,) = source_list.build(config.data.sources, MANY)
    batches = Batches(config, [found], words)
    seen = {'think': TextPart, 'direct': ImagePart, 'redraw': DraftPart}
    batch = batches.batch(0)
    assert not batches.counts, batches.counts
    counts = (batch['pixel_counts'] > 0).sum()
    assert counts >= 1.5 * len(batch['pixels']), 'rows are full of images'
    first = found.conversations[0].messages[1].parts[0]
    assert type(first) is seen[variant]
    unlearned = (batch['pixel_weight'] == 0) & (batch['pixel_image'] >= 0)
    assert unlearned.any() == (variant == 'redraw')
    # Pixels and tokens of one image are learned both or not at all.
    places = 9 * (batch['pixel_weight'].sum() / 36)
    assert batch['representation_weight'].sum() == (batch['target_group'] >= 0).sum() == places
