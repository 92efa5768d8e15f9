"""pipeline.py: batches follow from (seed, step); condition dropout; truncated and skipped data."""

import hashlib
import io
import json
import threading
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from configs import base
from configs import emoji as emoji_config
from rf_jax.data import captions, layout, pipeline, source_list, spans
from rf_jax.data.byte_cache import ByteCache
from rf_jax.data.mixture import Example
from rf_jax.data.pipeline import Batches
from rf_jax.data.records import BadImage
from rf_jax.data.sentencepiece_tokenizer import SentencePieceTokenizer
from rf_jax.runtime.errors import UserError
from rf_jax.runtime.rng import generator, reused_generator

COUNT = 40
UNDECODABLE = 'undecodable_images'
CUT = 'text_truncated'


NO_DROPOUT = {'text_dropout': 0.0, 'representation_dropout': 0.0, 'joint_dropout': 0.0}


@pytest.fixture(scope='session')
def tokenizer():
    return SentencePieceTokenizer.train(
        ['an image of a cat, small', 'what is this? a red dog'], 300
    )


@pytest.fixture(scope='session')
def folder(tmp_path_factory):
    """Images of several sizes, one of them truncated after a valid header."""
    root, rng = tmp_path_factory.mktemp('images'), np.random.default_rng(0)
    lines = []
    for i in range(COUNT):
        height, width = rng.integers(20, 80, 2)
        data = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(data, 'PNG')
        encoded = data.getvalue()
        (root / f'{i}.png').write_bytes(encoded[: len(encoded) // 2] if i == 7 else encoded)
        lines.append(json.dumps({'file': f'{i}.png', 'caption': f'cat {i}', 'tags': ['red']}))
    (root / 'captions.jsonl').write_text('\n'.join(lines))
    return root


def config_of(folder, **data):
    config = base.get_config()
    config.data.sources = f'folder:{folder}'
    config.data.update(patch_size=4, sizes=((32, 0.6), (16, 0.4)), batch_size=4, max_text_tokens=24)
    config.data.capacity.update(
        text=64, vision=32, representation=40, pixels=128, vision_images=3, pixel_images=4
    )
    config.data.update(data)
    return config


@pytest.fixture
def make(folder, tokenizer):
    def build(rows_made=None, seed=0, capacity=None, **data):
        config = config_of(folder, **data)
        config.seed = seed
        config.data.capacity.update(capacity or {})
        found = source_list.build(config.data.sources, config.data.max_pixels)
        return Batches(config, found, tokenizer, rows_made)

    return build


def assert_equal(one, two):
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)


def test_batches_can_be_read_in_any_order(make):
    one, two = make(), make()
    end = one.plan.steps_per_epoch
    steps = [0, 1, end - 1, end, 3 * end + 1]
    wanted = {step: one.batch(step) for step in steps}
    for step in [*reversed(steps), 1, end]:
        assert_equal(two.batch(step), wanted[step])
    assert any((make(seed=1).batch(0)[name] != wanted[0][name]).any() for name in wanted[0])


@pytest.mark.parametrize('threads', [1, 3])
def test_iterate_gives_the_batches_from_its_start_step(make, threads):
    batches = make(threads=threads, prefetch=3)
    stop = batches.plan.steps_per_epoch + 2  # over the end of an epoch
    found = list(batches.iterate(stop - 5, stop))
    assert len(found) == 5
    for step, batch in zip(range(stop - 5, stop), found):
        assert_equal(batch, make().batch(step))
    assert list(batches.iterate(3, 3)) == []


@pytest.mark.parametrize('rows', [[0, 1], [2, 3], [0, 2], [1, 2, 3]])
def test_any_rows_are_those_of_the_whole_batch(make, rows):
    whole, some = make(), make(rows)
    for step in (0, 5):
        wanted = {name: array[rows] for name, array in whole.batch(step).items()}
        assert_equal(some.batch(step), wanted)


def test_shapes_follow_the_capacities(make):
    batch = make().batch(0)
    empty = layout.empty(dict(make().data.capacity), 4 * 4 * 3)
    for name, array in empty.items():
        assert batch[name].shape == (4, *array.shape) and batch[name].dtype == array.dtype


def test_a_passing_generator_gives_the_same_stream_as_a_new_one():
    def stream(rng):
        # An odd number of 32-bit values leaves half a word in the buffer.
        return [*rng.integers(9, size=5, dtype=np.uint32), *rng.random(4), *rng.permutation(7)]

    names = [('draw', i, epoch) for i in range(20) for epoch in (0, 2**70)]
    expected = [stream(generator(*each)) for each in names]
    assert [stream(reused_generator(*each)) for each in names] == expected
    assert len(set(map(tuple, expected))) == len(names)
    other = {}
    mine = reused_generator('mine')
    thread = threading.Thread(target=lambda: other.update(got=reused_generator('other')))
    thread.start()
    thread.join()
    assert stream(mine) == stream(generator('mine'))
    assert stream(other['got']) == stream(generator('other'))


def test_planned_sizes_are_those_of_the_decoded_examples(make):
    batches = make()
    for step in range(3):
        for row in batches.plan.rows(step):
            total = np.zeros(len(layout.SIZES), int)
            for example in row:
                planned = layout.size(batches.spans(example, decode=False))
                total += planned
                if example.index != 7:
                    np.testing.assert_array_equal(layout.size(batches.spans(example)), planned)
            assert (total <= [batches.data.capacity[name] for name in layout.SIZES]).all()


def test_an_undecodable_image_is_skipped_and_counted(make, caplog):
    batches = make()
    steps = batches.plan.steps_per_epoch
    rows = [row for step in range(steps) for row in batches.plan.rows(step)]
    broken = sum(example.index == 7 for row in rows for example in row)
    assert broken >= 2  # once to generate, once to read
    samples = sum(int(batches.batch(step)['segment'].max(1).sum()) for step in range(steps))
    assert samples == sum(map(len, rows)) - broken
    assert batches.counts[UNDECODABLE] == broken
    with pytest.raises(BadImage):
        batches.spans(Example('text_to_image', 7, 0))


def test_images_that_vanish_stop_the_run(make, folder, monkeypatch):
    monkeypatch.setattr(pipeline, '_MAX_UNDECODABLE', 12)
    batches = make(tasks={'text_only': 1.0})
    for step in range(3 * batches.plan.steps_per_epoch):
        batches.batch(step)  # one image in forty is broken, which does not stop the run
    lost = make(tasks={'text_only': 1.0})
    folder.rename(folder.parent / 'away')
    try:
        with pytest.raises(
            UserError, match=r'12 consecutive images .*folder:.*missing.*data\.sources'
        ):
            list(lost.iterate(0, 50))
    finally:
        (folder.parent / 'away').rename(folder)


def test_condition_dropout_has_its_rates_and_is_independent(make):
    batches = make(text_dropout=0.3, representation_dropout=0.2)
    both = Counter()
    number = 3000
    for i in range(number):
        example = Example('text_to_image', i % COUNT, i // COUNT)
        *prompt, _, pixels = batches.spans(example, decode=False)
        both[not prompt, not pixels.reads_representation] += 1
    rates = {key: count / number for key, count in both.items()}
    wanted = {(a, b): (0.3 if a else 0.7) * (0.2 if b else 0.8) for a in (0, 1) for b in (0, 1)}
    for key, rate in wanted.items():
        assert abs(rates[key] - rate) < 4 * np.sqrt(rate * (1 - rate) / number)


def test_joint_dropout_adds_to_the_independent_rates(make):
    examples = [Example('text_to_image', i % COUNT, i // COUNT) for i in range(400)]

    def dropped(**rates):
        batches = make(**NO_DROPOUT | rates)
        spans = [batches.spans(example, decode=False) for example in examples]
        return [(len(s) == 2, not s[-1].reads_representation) for s in spans]

    assert set(dropped()) == {(False, False)}
    assert set(dropped(text_dropout=1.0)) == {(True, False)}
    assert set(dropped(representation_dropout=1.0)) == {(False, True)}
    assert set(dropped(joint_dropout=0.5)) == {(False, False), (True, True)}


def test_a_dropped_prompt_can_keep_its_positions(make):
    example = Example('text_to_image', 3, 0)
    kept = make(text_dropout=0.0).spans(example)
    skip = make(text_dropout=1.0, dropout_keeps_positions=True).spans(example)
    assert skip[0] == layout.Skip(len(kept[0].tokens))
    assert isinstance(make(text_dropout=1.0).spans(example)[0], layout.Representation)


def test_prompts_answers_and_their_targets(make, tokenizer):
    batches = make(text_dropout=0.0)
    prompt, representation, pixels = batches.spans(Example('text_to_image', 2, 0))
    assert not len(prompt.targets)  # no loss on prompts by default
    assert (representation.height, representation.width) == (pixels.height, pixels.width)
    assert pixels.pixels.shape == (pixels.height * pixels.width, 48)
    asked = make(text_dropout=0.0, prompt_loss=True).spans(Example('text_to_image', 2, 0))[0]
    assert asked.tokens == prompt.tokens and list(asked.targets) == [*asked.tokens[1:], -1]
    text = spans.question_answer_span(tokenizer, 'what is this?', 'cat', 24, Counter())
    mark = text.tokens.index(tokenizer.answer)
    assert text.tokens[0] == tokenizer.bos and text.tokens[-1] == tokenizer.eos
    assert tokenizer.decode(text.tokens[:mark]) == 'what is this?'
    assert tokenizer.decode(text.tokens[mark:]) == 'cat'
    # The <answer> token predicts the first token of the answer; nothing before it is predicted.
    assert list(text.targets) == [-1] * mark + text.tokens[mark + 1 :] + [-1]
    open_ended = spans.question_answer_span(tokenizer, 'what is this?', None, 24, Counter())
    assert open_ended.tokens == text.tokens[: mark + 1]


@pytest.mark.parametrize('max_text', [8, 9, 24])
def test_long_text_is_truncated_and_counted(tokenizer, max_text):
    endless = 'a red cat ' * 1000
    counts = Counter()
    span = spans.text_span(tokenizer, endless, max_text, 0, counts)
    assert len(span.tokens) == max_text and counts[CUT] == 1
    assert span.tokens[-1] == tokenizer.eos and len(span.targets) == max_text
    assert tokenizer.eos not in span.targets
    for question, answer, cuts in ((endless, endless, 2), ('', endless, 1)):
        counts = Counter()
        span = spans.question_answer_span(tokenizer, question, answer, max_text, counts)
        assert len(span.tokens) <= max_text and counts[CUT] == cuts
        assert span.tokens[-1] == tokenizer.eos
        assert sum(target >= 0 for target in span.targets) >= 1  # part of the answer remains
        assert tokenizer.eos not in span.targets  # truncated text has no end to learn
    counts = Counter()
    spans.text_span(tokenizer, 'a', max_text, 0, counts)
    assert not counts


@pytest.mark.parametrize('max_text', [8, 9, 24])
def test_a_long_document_is_learned_to_its_last_word(tokenizer, max_text):
    text = 'a red cat and a blue dog ' * 20
    ids = [tokenizer.bos, *tokenizer.encode(text), tokenizer.eos]
    pieces = spans.document(tokenizer, text, max_text)
    assert [token for piece in pieces for token in piece.tokens] == ids[:-1]
    assert [target for piece in pieces for target in piece.targets] == ids[1:]
    assert all(0 < len(piece.tokens) <= max_text for piece in pieces)


def test_truncated_captions_of_a_batch_are_counted(tmp_path, tokenizer):
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / 'a.png')
    line = {'file': 'a.png', 'caption': 'cat ' * 500}
    (tmp_path / 'captions.jsonl').write_text(json.dumps(line))
    config = config_of(tmp_path)
    batches = Batches(
        config, source_list.build(config.data.sources, config.data.max_pixels), tokenizer
    )
    batches.batch(0)
    assert batches.counts[CUT] > 0


@pytest.mark.parametrize(
    ('capacity', 'data', 'field'),
    [
        ({'pixels': 60}, {}, 'data.capacity.pixels'),
        ({'pixels': 130}, {}, 'data.capacity.pixels'),
        ({'representation': 16}, {}, 'data.capacity.representation'),
        ({'vision': 15}, {}, 'data.capacity.vision'),
        ({'vision_images': 0}, {}, 'data.capacity.vision_images'),
        ({'pixel_images': 0}, {}, 'data.capacity.pixel_images'),
        ({'text': 20}, {}, 'data.capacity.text'),
        ({}, {'sizes': ((36, 1.0),)}, r'data.sizes has 36 px.*use 32'),
        ({}, {'sizes': ((4, 1.0),)}, r'data.sizes has 4 px.*use 8'),
        ({}, {'sizes': ((32.0, 1.0),)}, r'data.sizes=.*expected pairs \(whole pixels'),
        ({}, {'sizes': ((32, '1'),)}, r'data.sizes=.*expected pairs'),
        ({}, {'sizes': (32, 16)}, r'data.sizes=.*expected pairs'),
        ({}, {'max_text_tokens': 5}, 'data.max_text_tokens'),
        ({}, {'threads': -1}, 'data.threads=-1 must be at least 0'),
        ({}, {'threads': 5, 'prefetch': 4}, 'data.threads=5 .* data.prefetch=4'),
        ({}, {'text_dropout': 10.0}, 'data.text_dropout=10.0 must be a probability'),
        ({}, {'question_prob': -0.1}, 'data.question_prob=-0.1 must be a probability'),
        ({}, {'prefetch': -1}, 'data.prefetch=-1 must be at least 0'),
        ({}, {'tasks': {'text_only': -1.0}}, r'data.tasks.text_only=-1.0 must be at least 0'),
        ({}, {'tasks': {'text_to_image': 0.0, 'image_to_text': 0.0}}, 'all of data.tasks are 0'),
    ],
)
def test_impossible_settings_name_their_field(make, capacity, data, field):
    with pytest.raises(UserError, match=field):
        make(capacity=capacity, **data)


def test_a_source_listed_several_times_is_sampled_as_often(make, folder, tmp_path):
    (tmp_path / 'words.txt').write_text('one\n\ntwo')
    both = f'text:{tmp_path},folder:{folder}'
    tasks = {'text_to_image': 0.0, 'image_to_text': 0.0, 'text_only': 1.0}
    once = make(sources=both, tasks=tasks)
    thrice = make(sources=f'{both},text:{tmp_path},text:{tmp_path}', tasks=tasks)

    def shown(batches):
        mixture = batches.plan.mixture
        examples = mixture.window(0, {'text_only': mixture.counts['text_only']})  # one epoch
        samples = [batches.pools['text_only'].entries[i] for i in examples.index]
        return Counter(source.record(index).captions for source, index, _ in samples)

    assert shown(once) == {('one',): 1, ('two',): 1}
    assert shown(thrice) == {('one',): 3, ('two',): 3}


def test_a_task_that_no_source_can_serve_is_an_error(tmp_path, tokenizer):
    (tmp_path / 'a.txt').write_text('some words')
    config = config_of('')
    config.data.sources = f'text:{tmp_path}'
    with pytest.raises(UserError, match=r'data\.tasks\.text_to_image=0'):
        Batches(config, source_list.build(config.data.sources, config.data.max_pixels), tokenizer)


def test_settings_are_checked_before_any_text_is_split(tmp_path, tokenizer):
    (tmp_path / 'a.txt').write_text('some words')
    config = config_of('', max_text_tokens=0)
    config.data.sources = f'text:{tmp_path}'
    with pytest.raises(UserError, match=r'data\.max_text_tokens=0'):
        Batches(config, source_list.build(config.data.sources, config.data.max_pixels), tokenizer)


def test_the_default_data_fills_its_rows():
    config = emoji_config.get_config()
    found = source_list.build('emoji', config.data.max_pixels)
    tokenizer = SentencePieceTokenizer.train(captions.corpus(found), config.tokenizer.vocab_size)
    batches = Batches(config, found, tokenizer)
    rows = [row for step in range(batches.plan.steps_per_epoch) for row in batches.plan.rows(step)]
    taken = np.stack([
        sum(layout.size(batches.spans(example, decode=False)) for example in row) for row in rows
    ])  # fmt: skip
    capacity = np.array([config.data.capacity[name] for name in layout.SIZES])
    assert (taken <= capacity).all()
    fill = taken.mean(0)[:4] / capacity[:4]
    assert fill[layout.STREAMS.index('pixels')] >= 0.97
    assert taken[:, :4].sum() / (len(rows) * capacity[:4].sum()) >= 0.8


def test_runs_of_earlier_versions_go_on_with_the_same_batches():
    found = source_list.build('emoji', 64_000_000)
    tokenizer = SentencePieceTokenizer.train(captions.corpus(found), 400)
    batches = Batches(emoji_config.get_config(), found, tokenizer)
    examples, arrays = (hashlib.blake2b(digest_size=8) for _ in range(2))
    for step in range(200):
        for row in batches.examples(step):
            chosen = [(each.task, int(each.index), int(each.epoch)) for each in row]
            examples.update(str(chosen).encode())
    for step in range(10):
        for name, each in sorted(batches.batch(step).items()):
            if 'pixels' not in name:  # which may follow from the version of Pillow
                arrays.update(name.encode() + each.tobytes())
    assert examples.hexdigest() == '859820c20cba6baf'
    assert arrays.hexdigest() == '559c51a3c459383e'


def test_the_cache_evicts_the_least_recently_used():
    cache, made = ByteCache(megabytes=1), []

    def get(key):
        def make():
            made.append(key)
            return np.zeros(2**18, np.uint8)

        return cache.get(key, make)

    for key in 'abcdaeab':  # four fit; e evicts b, since a was used more recently
        get(key)
    assert made == [*'abcde', 'b']
    assert cache.held <= 2**20
