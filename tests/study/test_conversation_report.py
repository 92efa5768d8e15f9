"""The report on conversations: rates of all seeds, and what is missing is said."""

import csv
import json

import numpy as np
import pytest

from rf_jax.runtime.errors import UserError
from rf_jax.study import conversations


def score(seed: int, changed: list[int]) -> dict:
    kinds = {'move': {'changed': changed, 'kept': [1, 1]}, 'add': {'changed': [1], 'kept': [0]}}
    asked = {'first': [1, 1], 'later': [1, 0], 'alone': [1, 1]}
    talks = {'edits': {'edited': kinds}, 'follow_up': asked}
    return {'step': 10, 'seed': seed, 'conversations': talks}


def test_rates_of_each_seed(tmp_path, monkeypatch):
    for seed, changed in enumerate(([1, 0], [1, 1])):
        (tmp_path / str(seed)).mkdir()
        text = json.dumps(score(seed, changed))
        (tmp_path / str(seed) / 'score.json').write_text(text, encoding='utf-8')
    monkeypatch.setattr(
        conversations, 'sheet', lambda run, step, seed: np.zeros((4, 4, 3), np.uint8)
    )
    runs = [str(tmp_path / '0'), str(tmp_path / '1')]
    conversations.write(runs, tmp_path / 'out', 'the command')
    lines = (tmp_path / 'out' / 'report.md').read_text().splitlines()
    (all_,) = (line for line in lines if line.startswith('| edited: changed |'))
    assert '| 3 | 0.833 [' in all_ and all_.endswith('| 0.667 1.000 |')
    (difference,) = (line for line in lines if line.startswith('Questions later minus alone'))
    assert '-0.500 [' in difference
    with open(tmp_path / 'out' / 'results.csv', encoding='utf-8') as file:
        rows = list(csv.DictReader(file))
    assert [r['right'] for r in rows if r['kind'] == 'move' and r['measure'] == 'changed'] == [
        '1', '2',
    ]  # fmt: skip


def test_a_file_is_no_folder_to_write(tmp_path):
    (tmp_path / 'score.json').write_text(json.dumps(score(0, [1, 0])), encoding='utf-8')
    with pytest.raises(UserError, match=r'cannot be written.*--out'):
        conversations.write([str(tmp_path)], tmp_path / 'score.json', '')


def test_the_sheet_has_a_column_for_each_edit():
    def flat(value):
        return np.full((48, 48, 3), (value, 0, 0), np.uint8)  # captions are grey

    before, edited, anew = [flat(10), flat(20)], [None, flat(40)], [flat(50), flat(60)]
    sheet = conversations.rows_of(['move it', 'add it'], before, edited, anew)
    rows, columns = zip(
        *(np.argwhere((sheet == (value, 0, 0)).all(-1)).mean(0) for value in (10, 20, 40, 50, 60))
    )
    assert rows[0] == rows[1] < rows[2] < rows[3] == rows[4]
    assert columns[0] == columns[3] < columns[1] == columns[2] == columns[4]
    assert (sheet[round(rows[2]), round(columns[0])] == 0).all()


def test_a_run_without_conversations(tmp_path):
    with pytest.raises(UserError, match=r'rf_jax\.evaluate first'):
        conversations.load(str(tmp_path))
    (tmp_path / 'score.json').write_text('{"conversations": {}}', encoding='utf-8')
    with pytest.raises(UserError, match='was the run trained on them'):
        conversations.load(str(tmp_path))
    riddles = '{"conversations": {"riddles": {"seen": {"right": [1]}}}}'
    (tmp_path / 'score.json').write_text(riddles, encoding='utf-8')
    with pytest.raises(UserError, match=r'no scores of edits.*study\.post_training'):
        conversations.load(str(tmp_path))
    (tmp_path / 'score.json').write_text('[1]', encoding='utf-8')
    with pytest.raises(UserError, match='no scores of edits'):
        conversations.load(str(tmp_path))


def test_what_was_not_asked_has_no_rate(tmp_path):
    """No scene could be edited, and there was one question about each."""
    talks = {'edits': {'edited': {}}, 'follow_up': {'first': [1, 0], 'later': [], 'alone': []}}
    (tmp_path / 'score.json').write_text(
        json.dumps({'step': 10, 'seed': 0, 'conversations': talks}), encoding='utf-8'
    )
    conversations.write([str(tmp_path)], tmp_path / 'out', 'the command')
    text = (tmp_path / 'out' / 'report.md').read_text()
    assert '| question: first | 2 | 0.500 [' in text
    assert 'edit' not in text and 'later' not in text
    assert not (tmp_path / 'out' / 'edits.png').exists()


def test_runs_that_were_scored_differently(tmp_path):
    scores = [score(0, [1, 0]), score(1, [1, 0])]
    scores[1]['conversations']['follow_up']['alone'] = [1]
    with pytest.raises(UserError, match='b and a were scored on different edits or questions'):
        conversations.comparable(['a', 'b'], [each['conversations'] for each in scores])
