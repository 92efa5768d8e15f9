"""plan.py: the plan depends on (sizes, mixture, step) alone, whatever the number of hosts."""

import subprocess
import sys
import tracemalloc
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest

from configs import base
from rf_jax.data import chat_format, layout, spans
from rf_jax.data.fitting import image_size, patches, picks
from rf_jax.data.hashing import hash64
from rf_jax.data.layout import SIZES
from rf_jax.data.mixture import Mixture
from rf_jax.data.packing import plan as plans
from rf_jax.data.packing.bins import recommended_capacity
from rf_jax.data.packing.plan import Plan
from rf_jax.planning import packing_stats
from rf_jax.planning.packing_stats import KINDS, SyntheticSizes

CAPACITY = np.array([20, 8, 10, 32, 2, 2])


def sizes_of(task, index, epoch):
    """Sizes of all streams, which depend on index and epoch as real ones do."""
    hashed = hash64(index.astype(np.uint64) * np.uint64(977) + epoch.astype(np.uint64))
    text, nothing, one = (1 + hashed % 11).astype(int), np.zeros(len(index), int), 1
    patches = 4 << (hashed // 11 % 3).astype(int)
    if task == 'drawn':
        columns = [text, nothing, patches // 4 + 1, patches, nothing, nothing + one]
    else:
        columns = [text, patches // 4, nothing, nothing, nothing + one, nothing]
    return np.stack(columns, 1)


def plan(seed=0, counts=None, weights=None, rows=8, sizes=sizes_of) -> Plan:
    counts = counts or {'drawn': 37, 'seen': 37}
    weights = weights or dict.fromkeys(counts, 1.0)
    return Plan(Mixture(counts, weights, seed), sizes, CAPACITY, rows)


@pytest.fixture
def small_windows(monkeypatch):
    """So that a few examples make many windows."""
    monkeypatch.setattr(plans, 'WINDOW', 128)
    monkeypatch.setattr(plans, 'LEAST', 64)


def test_steps_can_be_read_in_any_order(small_windows):
    one, two = plan(), plan()
    last = 4 * one.steps_per_window
    wanted = {step: one.rows(step) for step in range(last)}
    for step in [last - 1, 0, 3, last // 2, 3, last - 2]:
        assert two.rows(step) == wanted[step]
        assert plan().rows(step) == wanted[step]
    assert plan(seed=1).rows(0) != wanted[0]
    assert wanted[0] != wanted[one.steps_per_window]


def drawn_in(one, windows):
    rows = (row for step in range(windows * one.steps_per_window) for row in one.rows(step))
    return Counter((d.task, d.index, d.epoch) for row in rows for d in row)


@pytest.mark.parametrize('deviations', [1, -1])
def test_no_example_is_lost_or_repeated(small_windows, monkeypatch, deviations):
    """Too few rows on purpose (-1): what does not fit into a window moves to the next one."""
    monkeypatch.setattr(plans, '_DEVIATIONS', deviations)
    one = plan(counts={'drawn': 5000, 'seen': 5000})
    found = drawn_in(one, 12)
    assert max(found.values()) == 1
    wanted = Counter()
    for number in range(12):
        examples = one.mixture.window(number, one.examples_per_task)
        wanted += Counter((d.task, d.index, d.epoch) for d in examples.list())
    windows = [one.window(number) for number in range(12)]
    missing = wanted - found
    assert not found - wanted
    out = sum(window.left_out for window in windows)
    assert missing.total() == out + len(windows[-1].left_over[0])
    carried = sum(len(window.left_over[0]) for window in windows)
    if deviations < 0:
        assert carried > out, 'nothing was carried over: the test shows nothing'


def test_small_sources_are_combined_into_ever_new_rows():
    one = plan()
    assert one.examples_per_window > 1000  # many epochs of 37 examples
    partners = Counter()
    for step in range(one.steps_per_window):
        for row in one.rows(step):
            indices = sorted(d.index for d in row)
            partners.update(pairwise(indices))
    assert len(partners) > 300


@pytest.mark.parametrize('hosts', [1, 2, 4])
def test_hosts_together_make_the_same_batches(small_windows, hosts):
    """Each host takes its rows of the same plan, also when it joins a run that others started."""
    whole = plan()
    theirs = [plan() for _ in range(hosts)]
    for step in (2 * whole.steps_per_window + 1, 7 * whole.steps_per_window):
        for i, one in enumerate(theirs):
            which = range(i, whole.batch_size, hosts)
            assert one.rows(step, which) == whole.rows(step)[i::hosts]


def test_rows_of_a_plan_never_exceed_any_capacity(small_windows):
    one = plan()
    for step in range(4 * one.steps_per_window):
        for row in one.rows(step):
            sizes = [sizes_of(d.task, np.array([d.index]), np.array([d.epoch]))[0] for d in row]
            assert (np.sum(sizes, 0) <= CAPACITY).all()


def test_each_window_is_planned_by_one_thread_only():
    """Otherwise every reader thread would plan each new window."""
    asked = Counter()

    def counted(task, index, epoch):
        asked.update(zip(index.tolist(), epoch.tolist()))
        return sizes_of(task, index, epoch)

    one = plan(counts={'drawn': 3000}, sizes=counted)
    wanted = plan(counts={'drawn': 3000})
    one.rows(0)
    steps = [0, *range(one.steps_per_window, one.steps_per_window + 8)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(one.rows, steps))
    assert found == [wanted.rows(step) for step in steps]
    second = one.mixture.window(1, one.examples_per_task)
    fresh = set(zip(second.index.tolist(), second.epoch.tolist()))
    first = one.mixture.window(0, one.mixture.examples_per_task(3000))
    fresh -= set(zip(first.index.tolist(), first.epoch.tolist()))
    assert fresh and {asked[example] for example in fresh} == {1}


def test_the_next_window_is_planned_ahead():
    one = plan(counts={'drawn': 3000})
    one.rows(0)
    coming = one._windows[1]
    coming.result()
    assert one.rows(one.steps_per_window) == plan(counts={'drawn': 3000}).rows(one.steps_per_window)
    assert one._windows[1] is coming


def test_an_error_in_background_planning_is_raised():
    def failing(task, index, epoch):
        if epoch.max() > 2:
            raise ValueError('no such sample')
        return sizes_of(task, index, epoch)

    one = plan(counts={'drawn': 3000}, sizes=failing)
    with pytest.raises(ValueError, match='no such sample'):
        for window in range(9):
            one.rows(window * one.steps_per_window)


def test_a_billion_examples_need_little_memory(small_windows):
    counts = {'drawn': 10**9, 'seen': 10**9}
    tracemalloc.start()
    one = plan(counts=counts)
    rows = one.rows(12_345_678)
    one.window(12_345_678 // one.steps_per_window + 1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 50e6
    assert max(d.index for row in rows for d in row) > 10**8
    assert rows == plan(counts=counts).rows(12_345_678)
    assert 1e7 < one.steps_per_epoch < 2e9


def test_a_large_batch_of_a_small_set_is_one_window():
    one = plan(rows=4096)
    assert one.steps_per_window == 1
    held = sum(map(len, one.rows(0)))
    assert held + len(one.window(0).left_over[0]) == one.examples_per_window > 37 * 2


def test_rows_are_shuffled():
    """Otherwise the first rows of a window, packed first, would hold more than the last."""
    held = np.diff(plan(counts={'drawn': 1000, 'seen': 1000}).window(0).starts)
    assert abs(np.corrcoef(np.arange(len(held)), held)[0, 1]) < 0.15


@pytest.mark.parametrize('kind', KINDS)
def test_a_million_examples_fill_long_rows(kind, monkeypatch):
    """A smaller form of the measurement: two windows of 30,000 examples."""
    monkeypatch.setattr(plans, 'WINDOW', 30_000)
    config = base.get_config()
    config.data.update(sizes=((256, 1.0),), max_text_tokens=256)
    made_up = SyntheticSizes(kind, config)
    weights = {'text_to_image': 1.0, 'image_to_text': 1.0}
    mixture = Mixture(dict.fromkeys(weights, 10**6), weights, 0)
    sample = np.concatenate([
        made_up.sizes(task, np.arange(30_000), np.full(30_000, 7)) for task in weights
    ])  # fmt: skip
    one = Plan(mixture, made_up.sizes, recommended_capacity(sample, 32_768), 16)
    found = packing_stats.measure(one, 2 * one.examples_per_window)
    assert found.row_fill >= 0.97
    assert min(found.fill[name] for name in SIZES[:4]) >= 0.965
    assert found.left_out / found.examples < 0.01


@pytest.mark.parametrize('pool', [0, 1, 2, 4])
def test_synthetic_sizes_are_those_of_real_spans(monkeypatch, pool):
    config = base.get_config()
    config.model.representation.pool, config.data.representation_tokens = pool or 2, pool > 0
    config.data.update(sizes=((256, 1.0),), text_dropout=0.0)
    monkeypatch.setattr(KINDS['coco'], 'image', lambda shape, *_: (300 + 0 * shape, 640))
    grid = tuple(n // config.data.patch_size for n in image_size(300, 640, config))
    rest = {'drop_text': False, 'drop_representation': False, 'keep_positions': False}
    drawn = layout.size(spans.generation_spans([], grid, None, pool, **rest))
    seen = layout.size([layout.Vision(*grid)])
    for task, wanted in (('text_to_image', drawn), ('image_to_text', seen)):
        found = SyntheticSizes('coco', config).sizes(task, np.arange(2), np.zeros(2, int))
        np.testing.assert_array_equal(found[:, 1:], [wanted[1:]] * 2)


@pytest.mark.parametrize('chat', [
    chat_format.plain(1, 2, 3), chat_format.chatml(1, 2, lambda text: [*text.encode()])
])  # fmt: skip
def test_synthetic_questions_are_as_long_as_real_ones(monkeypatch, chat):
    """With what the format puts around them, truncated to any length."""
    monkeypatch.setattr(packing_stats, '_QUESTION', (9.0, 0.0))
    monkeypatch.setattr(KINDS['coco'], 'caption', (13.0, 0.0))
    tokenizer = SimpleNamespace(chat=chat, encode=lambda text: [*text.encode()])
    config = base.get_config()
    config.data.question_prob = 1.0
    for most in range(chat.question_and_answer + 2, 60, 3):
        config.data.max_text_tokens = most
        made_up = SyntheticSizes('coco', config, chat.question_and_answer)
        span = spans.question_answer_span(tokenizer, 9 * 'q', 13 * 'a', most, Counter())
        found = made_up.sizes('image_to_text', np.arange(1), np.zeros(1, int))
        assert found[0, 0] == len(span.tokens), most


@pytest.mark.parametrize('pool', [0, 1, 2, 4])
def test_synthetic_images_are_resized_as_real_ones_are(pool):
    config = base.get_config()
    config.model.representation.pool, config.data.representation_tokens = pool or 2, pool > 0
    config.data.sizes = ((256, 0.5), (512, 0.3), (1024, 0.2))
    rng = np.random.default_rng(0)
    height, width = np.rint(np.exp(rng.uniform(np.log(20), np.log(5000), (2, 400))))
    chance = rng.random(400)
    longest = np.array([256, 512, 1024])[np.searchsorted([0.5, 0.8, 1.0], chance)]
    wanted = [
        np.prod(image_size(int(h), int(w), config, int(size))) // 16**2
        for h, w, size in zip(height, width, longest)
    ]
    np.testing.assert_array_equal(picks(chance, config.data.sizes), longest)
    found = patches(height, width, longest, config.data, pool)
    np.testing.assert_array_equal(found, wanted)


def test_a_program_can_exit_while_a_window_is_planned():
    """A thread killed inside the tokenizer's C++ would abort the process."""
    code = """
from configs import scenes
from rf_jax.data import captions, pipeline, source_list
from rf_jax.data.sentencepiece_tokenizer import SentencePieceTokenizer
config = scenes.get_config()
config.data.sources += '/count=4000'
found = source_list.build(config.data.sources, config.data.max_pixels)
batches = pipeline.Batches(config, found, SentencePieceTokenizer.train(captions.corpus(found), 512))
batches.batch(0)
print('done')
"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, 'done\n'), done.stderr
    assert 'terminate' not in done.stderr
