"""The report of post-training has the rates of the scores, arm by arm."""

import csv
import json
import re

import pytest

from rf_jax.runtime.errors import UserError
from rf_jax.study import post_training


def score(right, error=None):
    """Half of two categories' images right, plus `right` in the second; questions all right."""
    texts = ['a circle', 'a ring']
    generation = {
        'colors': {'prompts': texts, 'correct': [[1, 0], [0, 1]]},
        'position': {'prompts': texts, 'correct': [[1, 0], [right, right]]},
    }
    found = {'step': 7, 'generation': {'seen': generation}, 'understanding': {}}
    found['understanding'] = {'where': {'correct': [1, 1, 1, 0]}}
    return found | ({'maps': {'depth': {'error': [error, error]}}} if error else {})


@pytest.fixture
def folders(tmp_path):
    for name, value in {'a': score(0), 'b': score(1, 0.02), 'c': score(1, 0.04)}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / 'score.json').write_text(json.dumps(value))
    return tmp_path


def test_rates_seeds_and_maps_of_each_arm(folders):
    arms = post_training.parse([f'before={folders}/a', f'after={folders}/b,{folders}/c'])
    post_training.write(arms, folders / 'out', 'the command')
    report = (folders / 'out' / 'report.md').read_text()
    assert '`the command`' in report
    before, after = (
        next(line for line in report.splitlines() if line.startswith(f'| {name} |'))
        for name in arms
    )
    assert '| 0.375 [' in before and before.endswith('| 0.500 | 0.250 | 0.375 |')
    assert '| 0.625 [' in after and after.endswith('| 0.500 | 0.750 | 0.625 0.625 |')
    assert '| after | depth | error | 0.0300 | 0.0200 0.0400 |' in report
    with open(folders / 'out' / 'results.csv') as file:
        rows = list(csv.DictReader(file))
    assert {row['right'] for row in rows if row['side'] == 'understanding'} == {'3'}
    assert sum(int(row['trials']) for row in rows) == 3 * (4 + 4 + 4)


def test_images_that_come_back_are_compared_image_by_image(tmp_path):
    for name, values in {'a': [0.25, 0.5, 0.75, 0.5], 'b': [0.35, 0.6, 0.95, 0.5]}.items():
        (tmp_path / name).mkdir()
        bench = {'step': 3, 'similarity': {'other': values}, 'words': [4, 6, 5, 5]}
        bench |= {'recovered': values, 'exact': [1, 0, 0, 1]} if name == 'b' else {}
        (tmp_path / name / 'unified_bench.json').write_text(json.dumps(bench))
    arms = post_training.parse([f'before={tmp_path}/a', f'after={tmp_path}/b'])
    post_training.write(arms, tmp_path / 'out', '')
    report = (tmp_path / 'out' / 'report.md').read_text()
    assert '| arm | words | similarity, other; minus before |' in report
    assert '| before | 5.0 | 0.500 [' in report
    line = next(each for each in report.splitlines() if each.startswith('| after |'))
    rate, low, high = map(float, re.search(r'; (\S+) \[(\S+), (\S+)\]', line).groups())
    assert '| 0.600 [' in line and (rate, 0.0 < low < high < 0.2) == (0.1, True), 'paired'


def bench(folder, name, values):
    (folder / name).mkdir()
    found = {'step': 3, 'similarity': values, 'words': [5] * 40}
    (folder / name / 'unified_bench.json').write_text(json.dumps(found))


def images_back(folder, *arms):
    """The cells of each arm in the report about images that come back."""
    scores = post_training.parse([
        f'{name}={",".join(f"{folder}/{each}" for each in seeds)}' for name, seeds in arms
    ])  # fmt: skip
    post_training.write(scores, folder / 'out', '')
    lines = (folder / 'out' / 'report.md').read_text().splitlines()
    return {name: next(each.split(' | ') for each in lines if each.startswith(f'| {name} |'))
            for name, _ in arms}  # fmt: skip


def test_a_seed_without_images_that_come_back_counts_for_nothing_there(folders):
    """Its score.json is there, its unified_bench.json is not."""
    found = {'step': 3, 'similarity': {'one': [0.2, 0.4]}, 'words': [4, 6]}
    (folders / 'b' / 'unified_bench.json').write_text(json.dumps(found))
    cells = images_back(folders, ('after', 'bc'))['after']
    text = (folders / 'out' / 'report.md').read_text()
    assert cells[1] == '0.625 [' + cells[1].removeprefix('0.625 [')  # the first table: prompts
    assert '| after | 5.0 | 0.300 [' in text


def test_arms_with_other_categories_have_the_cells_that_they_can(folders):
    value = score(1)
    del value['generation']['seen']['position']
    value['generation']['seen']['counting'] = {'prompts': ['two rings'], 'correct': [[1, 1]]}
    (folders / 'c' / 'score.json').write_text(json.dumps(value))
    images_back(folders, ('before', 'a'), ('after', 'c'))
    lines = (folders / 'out' / 'report.md').read_text().splitlines()
    assert '| arm | all | colors | position | counting | each seed |' in lines
    rows = {line.split(' | ')[0]: line.split(' | ')[2:5] for line in lines if '0.500 | ' in line}
    assert rows == {'| before': ['0.500', '0.250', ''], '| after': ['0.500', '', '1.000']}


def test_no_arm_is_lost_because_another_has_its_name(folders):
    with pytest.raises(UserError, match=r'two of the name .a.; .*--arm=a=FOLDER,FOLDER'):
        post_training.parse([f'a={folders}/a', f'a={folders}/b'])


def test_what_cannot_be_read_or_written_is_one_line(folders):
    arms = {'a': [str(folders / 'a')]}
    with pytest.raises(UserError, match=r'cannot be written.*--out'):
        post_training.write(arms, folders / 'a' / 'score.json', '')
    (folders / 'a' / 'score.json').write_text('[]')
    with pytest.raises(UserError, match=r'score\.json holds no scores'):
        post_training.write(arms, folders / 'out', '')


def test_seeds_with_other_categories_are_no_arm(folders):
    value = score(1)
    del value['generation']['seen']['position']
    (folders / 'c' / 'score.json').write_text(json.dumps(value))
    with pytest.raises(UserError, match='seen: the seeds of a run were evaluated on different'):
        images_back(folders, ('after', 'bc'))


def test_encoders_are_compared_by_name(tmp_path):
    one, other = [0.2, 0.3] * 20, [0.8, 0.9] * 20
    bench(tmp_path, 'a', {'one': one, 'other': other})
    bench(tmp_path, 'b', {'other': other, 'one': one})
    cells = images_back(tmp_path, ('before', 'a'), ('after', 'b'))['after']
    assert [cell[:5] for cell in cells[2:]] == ['0.250', '0.850']
    assert all('; 0.000 [' in cell for cell in cells[2:])


def test_arms_with_other_numbers_of_seeds_are_compared_where_they_can_be(tmp_path):
    values = [(i * 0.618) % 1 for i in range(40)]  # images differ far more than seeds
    for shift, name in enumerate('abc'):
        bench(tmp_path, name, {'one': [0.9 * v + 0.01 * shift for v in values]})
    cells = images_back(tmp_path, ('before', 'a'), ('after', 'bc'), ('three', 'abc'))
    for name in ('after', 'three'):
        low, high = map(float, re.search(r'; \S+ \[(\S+), (\S+)\]', cells[name][2]).groups())
        assert high - low < 0.05, 'paired'
    cells = images_back(tmp_path, ('before', 'ab'), ('after', 'abc'))
    assert ';' not in cells['after'][2]


def test_other_numbers_of_images_are_not_compared(tmp_path):
    bench(tmp_path, 'a', {'one': [0.2, 0.3] * 20})
    bench(tmp_path, 'b', {'one': [0.2, 0.3] * 10})
    assert ';' not in images_back(tmp_path, ('before', 'a'), ('after', 'b'))['after'][2]
    with pytest.raises(UserError, match=r'similarity, one: the seeds .* on \[40, 20\] trials'):
        images_back(tmp_path, ('before', 'ab'))


def test_riddles_are_compared_prompt_by_prompt(tmp_path):
    for name, right in {'a': [1, 0, 0, 0], 'b': [1, 1, 1, 0], 'c': [1, 1, 0, 0]}.items():
        (tmp_path / name).mkdir()
        entry = {'right': right} | ({'written': [1, 1, 1, 1]} if name != 'a' else {})
        talks = {'conversations': {'riddles': {'unseen': entry}}}
        (tmp_path / name / 'score.json').write_text(json.dumps(score(0) | talks))
    arms = post_training.parse(
        [f'direct={tmp_path}/a,{tmp_path}/a', f'think={tmp_path}/b,{tmp_path}/c']
    )
    post_training.write(arms, tmp_path / 'out', '')
    report = (tmp_path / 'out' / 'report.md').read_text()
    right, written = (line for line in report.splitlines() if line.startswith('| unseen prompts'))
    assert re.match(r'\| unseen prompts, right \| 0.250 \[.*\] \| 0.625 \[.*\]; 0.375 \[', right)
    assert right.endswith('| 0.250 0.250 / 0.750 0.500 |')
    assert written.startswith('| unseen prompts, written |  | 1.000 [')
    assert (
        'think,1,thinking,"unseen prompts, right",4,2'
        in (tmp_path / 'out' / 'results.csv').read_text()
    )


def test_what_is_missing_is_named(folders):
    with pytest.raises(UserError, match='expected NAME=FOLDER'):
        post_training.parse(['runs/a'])
    with pytest.raises(UserError, match=r'd/score\.json.*rf_jax\.evaluate'):
        post_training.write({'x': [f'{folders}/d']}, folders / 'out', '')
