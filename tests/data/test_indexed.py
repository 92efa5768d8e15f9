"""Sets with an index: sized without being read, every sample once a pass, on any hosts."""

from collections import Counter

import numpy as np
import prepared_set
import pytest

from configs import base
from rf_jax.data import layout, source_list
from rf_jax.data.mixture import Example
from rf_jax.data.packing import plan
from rf_jax.data.pipeline import Batches
from rf_jax.runtime.errors import UserError

CAPTIONED, TALKS = 300, 70


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """(data.sources, tokenizer) of a set of several shards."""
    tokenizer = prepared_set.tokenizer()
    folder = tmp_path_factory.mktemp('set')
    return prepared_set.write(folder, tokenizer, (128, 100, 72), (64, 6)), tokenizer


@pytest.fixture
def small_windows(monkeypatch):
    """So that a few examples make many windows."""
    monkeypatch.setattr('rf_jax.data.lanes.WINDOW', 64)
    monkeypatch.setattr(plan, 'LEAST', 16)


def config_of(sources, **data):
    config = base.get_config()
    config.data.update(sources=sources, sizes=((64, 0.5), (32, 0.5)), batch_size=8)
    config.data.update(max_text_tokens=48, question_prob=0.5, text_dropout=0.3, joint_dropout=0.1)
    config.data.capacity.update(text=120, vision=16, representation=20, pixels=64)
    config.data.capacity.update(vision_images=8, pixel_images=8)
    config.data.update(data)
    return config


def batches_of(made, rows=None, tasks=None, **data):
    sources, tokenizer = made
    config = config_of(sources, **data)
    config.data.tasks.update(tasks or {})
    return Batches(config, source_list.build(sources, 10**6), tokenizer, rows)


@pytest.mark.parametrize('task', ['text_to_image', 'image_to_text', 'text_only', 'conversation'])
def test_a_sample_takes_no_more_than_the_index_says(made, task):
    batches = batches_of(made, tasks={task: 1.0})
    (pool,) = batches.pools.of_task(task)
    assert len(pool) == (TALKS if task == 'conversation' else CAPTIONED)
    index, epoch = np.meshgrid(np.arange(len(pool)), [0, 1])
    planned = pool.sizes(index.ravel(), epoch.ravel())
    counts, slack = Counter(), []
    for sizes, i, e in zip(planned, index.ravel().tolist(), epoch.ravel().tolist()):
        taken = layout.size(pool.spans(i, e, counts))
        np.testing.assert_array_equal(taken, layout.size(pool.spans(i, e, counts, decode=False)))
        assert (taken <= sizes).all()
        if task != 'conversation':  # there, text and images are dropped only when it is read
            np.testing.assert_array_equal(taken[1:], sizes[1:])
        slack.append(sizes[0] - taken[0])
    assert planned[:, 0].max() > 0 and np.mean(np.array(slack) == 0) > 0.3


def test_captions_and_questions_are_used_word_for_word(made):
    batches = batches_of(made, text_dropout=0.0, joint_dropout=0.0)
    tokenizer = made[1]
    (drawn,), (seen,) = (batches.pools.of_task(t) for t in ('text_to_image', 'image_to_text'))
    heard = set()
    for i in range(CAPTIONED):
        text = drawn.spans(i, 0, Counter())[0].tokens
        assert tokenizer.decode(text) in prepared_set.captioned(i)[0].captions
        heard.add(tokenizer.decode(seen.spans(i, 0, Counter())[1].tokens))
    assert any('which colour is it?' in text for text in heard)


@pytest.mark.parametrize('lanes', [1, 2, 4])
def test_every_sample_comes_once_a_pass(made, lanes, small_windows):
    batches = batches_of(made, lanes=lanes, tasks={'image_to_text': 0.0})
    seen, passes = Counter(), Counter()
    for step in range(60):
        for row in batches._lanes.rows(step, batches.rows):
            for example in row:
                seen[example] += 1
                passes[example.epoch] += 1
    assert set(seen.values()) == {1}
    indices = {e.index for e in seen if e.epoch == 0}
    assert len(indices) >= CAPTIONED - batches.counts['examples_without_room']
    assert passes[1] > 0


def test_any_number_of_processes_makes_the_same_batches(made, small_windows):
    options = {'lanes': 4, 'tasks': {'conversation': 0.3}}
    whole = batches_of(made, **options)
    for processes in (2, 4):
        for rows in np.split(np.arange(8), processes):
            own = batches_of(made, rows, **options)
            for step in (0, 17):
                expected = whole.batch(step)
                for name, array in own.batch(step).items():
                    np.testing.assert_array_equal(array, expected[name][rows], err_msg=name)


def test_a_process_plans_its_own_lanes_only(made):
    own = batches_of(made, np.array([4, 5]), lanes=4)
    assert list(own._lanes._plans) == [2]
    counts, first = own.plan.mixture.counts, own.plan.mixture.first
    captioned = {name: counts[name] for name in counts if 'conversation' not in name}
    assert set(captioned.values()) == {64} and {first[name] for name in captioned} == {128}


@pytest.mark.parametrize(
    ('rows', 'data', 'message'),
    [
        (None, {'lanes': 3}, 'data.lanes=3 must divide data.batch_size=8'),
        (range(2), {'lanes': 2}, r'lane has 4 rows .*\(0, 1 of 8\): data\.lanes=-1'),
        (None, {'lanes': 400, 'batch_size': 400}, 'lane 0 has none of the 300 examples'),
        (None, {'weights': ((0, (1, 1)),)}, 'expected .step, .1 weights'),
        (None, {'weights': ((5, (1,)),)}, r'steps \[5\]; expected 0 first'),
    ],
)
def test_lanes_and_weights_that_do_not_fit(made, rows, data, message):
    with pytest.raises(UserError, match=message):
        batches_of(made, None if rows is None else np.array(rows), **data)


def share_of(batches, number, steps):
    """Share of the examples of a task that are from entry `number` of data.sources."""
    tasks = Counter(e.task for s in steps for row in batches._lanes.rows(s, batches.rows)
                    for e in row)  # fmt: skip
    own = tasks[f'text_to_image of {number}']
    return own / sum(n for task, n in tasks.items() if task.startswith('text_to_image'))


def test_weights_of_sources_change_at_a_step(made, tmp_path, small_windows):
    other = prepared_set.write(tmp_path, made[1], (64,))
    both = f'{made[0]},{other}', made[1]
    found = batches_of(both)
    assert share_of(found, 2, range(40)) == pytest.approx(64 / 364, abs=0.05)  # as many as it has
    found = batches_of(both, weights=((0, (1, 3)), (20, (1, 0)), (30, (1, 1))))
    assert share_of(found, 1, range(20)) == pytest.approx(0.75, abs=0.05)
    assert share_of(found, 1, range(21, 30)) == 0  # the first of them may carry some over
    assert share_of(found, 1, range(30, 60)) == pytest.approx(0.5, abs=0.05)
    positions = Counter()
    for step in range(60):
        for row in found._lanes.rows(step, found.rows):
            positions.update(row)
    assert set(positions.values()) == {1}
    assert all(isinstance(example, Example) for example in positions)


def test_the_tokenizer_must_be_the_one_that_counted(made):
    from rf_jax.data.sentencepiece_tokenizer import SentencePieceTokenizer

    other = SentencePieceTokenizer.train([*prepared_set.WORDS, 'else'] * 20, 299)
    with pytest.raises(UserError, match=r'counted with the tokenizer .* set tokenizer.path='):
        batches_of((made[0], other))


def test_a_sample_that_is_gone_is_skipped_or_named(made, tmp_path):
    sources = prepared_set.write(tmp_path, made[1], (70,))
    batches = batches_of((sources, made[1]))
    shard = tmp_path / 'captions-00000.tar'
    data = bytearray(shard.read_bytes())
    data[:2048] = bytes(2048)  # the first sample
    shard.write_bytes(data)
    for step in range(8):
        batches.batch(step)
    assert batches.counts['undecodable_images'] > 0
    shard.unlink()
    with pytest.raises(UserError, match=r'captions-00000.tar is gone'):
        batches.batch(9)
    with pytest.raises(UserError, match='truncated'):
        (tmp_path / 'captions-00000.tar.index').write_bytes(b'rf_jax 1')
        batches_of((sources, made[1]))


def test_a_task_whose_sources_have_no_weight_is_not_sampled(made, tmp_path, small_windows):
    other = prepared_set.write(tmp_path, made[1], (64,))  # without conversations
    both, tasks = (f'{made[0]},{other}', made[1]), {'conversation': 1.0}
    found = batches_of(both, tasks=tasks, weights=((0, (0, 1)), (10, (1, 1))))

    def talks(steps):
        rows = (row for step in steps for row in found._lanes.rows(step, found.rows))
        return sum(example.task.startswith('conversation') for row in rows for example in row)

    assert talks(range(10)) == 0 < talks(range(10, 20))
    only = {'conversation': 1.0, 'text_to_image': 0.0, 'image_to_text': 0.0}
    with pytest.raises(UserError, match='no source serves any'):
        batches_of(both, tasks=only, weights=((0, (1, 0)), (10, (0, 1))))
