"""Report, results and figures of a study agree with its scores."""

import csv
import re
from types import SimpleNamespace

import numpy as np
import pytest
from small_study import scores

from rf_jax.evaluation import scoring
from rf_jax.scenes import prompts
from rf_jax.study import plots, report

pytestmark = pytest.mark.slow


def test_report_and_results_agree_with_the_scores(finished):
    _, workdir = finished
    all_scores = scores(workdir)
    text = (workdir / 'report.md').read_text()
    with (workdir / 'results.csv').open() as file:
        lines = list(csv.DictReader(file))
    for line in lines:
        score = all_scores[f'{line["arm"]}-s{line["seed"]}/scores/{int(line["step"]):08d}.json']
        entries = score['generation'] | {'understanding': score['understanding']}
        correct = np.array(entries[line['side']][line['category']]['correct'])
        assert int(line['correct']) == correct.sum() and int(line['count']) == correct.size
        assert float(line['rate']) == pytest.approx(correct.mean(), abs=1e-6)
    sides = len(scoring.SIDES) * len(prompts.CATEGORIES)
    assert len(lines) == sum((sides if s['generation'] else 0) + 2 for s in all_scores.values())
    for name, title, step in (
        ('whole', 'equal steps', 4), ('half', 'equal steps', 4),
        ('whole', 'equal FLOPs', 4), ('half', 'equal FLOPs', 8),
    ):  # fmt: skip
        score = all_scores[f'{name}-s0/scores/{step:08d}.json']
        section = text.split(f'## Generation at {title}')[1].split('##')[0]
        row = re.search(
            rf'^\| {name} \| {step} \| (\S+) .*\| (\S+) \S+ \S+ \| \S+ \|$', section, re.M
        )
        for rate, side in zip(row.groups(), scoring.SIDES):
            assert float(rate) == pytest.approx(
                scoring.overall(score['generation'][side]), abs=6e-4
            )
        section = text.split(f'## Understanding at {title}')[1].split('##')[0]
        kinds = [np.mean(entry['correct']) for entry in score['understanding'].values()]
        row = re.search(rf'^\| {name} \| (\S+)', section, re.M)
        assert float(row[1]) == pytest.approx(np.mean(kinds), abs=6e-4)
    for image in (
        'score_against_steps',
        'score_by_category',
        'codebook_use',
        'flow_loss',
        'grid_seen',
    ):
        assert f'![{image}.png]' in text
        assert (workdir / f'{image}.png').read_bytes().startswith(b'\x89PNG')


def of_rates(right):
    """A score of one category; `right`: [prompts][images] of 0 or 1."""
    texts = [f'text {i}' for i in range(len(right))]
    entry = {'prompts': texts, 'correct': right}
    return {'generation': {'seen': {'colors': entry}}, 'understanding': {}}


def test_every_pair_of_arms_is_compared_over_the_seeds_that_both_have():
    def group(*rates_of_seeds):
        runs = enumerate(rates_of_seeds)
        return [
            (SimpleNamespace(seed=seed), of_rates([[1] * n + [0] * (4 - n)] * 5))
            for seed, n in runs
        ]

    groups = {'rf': group(4, 3), 'pixel': group(1, 2), 'repa': group(2)}
    text = report._differences(['rf', 'pixel', 'late', 'repa'], groups)
    lines = [line.split('|')[1:-1] for line in text.splitlines() if line.startswith('|')]
    cells = {line[0].strip(): [cell.split('[')[0].strip() for cell in line[1:]] for line in lines}
    assert cells['repa minus rf'][:2] == ['-0.500', '-0.500'], 'seed 0 alone'
    assert cells['pixel minus rf'][1] == '-0.750 -0.250'
    assert cells['pixel'] == ['-0.500', '']
    assert cells['repa'] == ['-0.500', '0.250']
    two = report._differences(['rf', 'pixel'], {k: groups[k] for k in ('rf', 'pixel')})
    assert 'Row minus column' not in two


def test_all_points_of_a_curve_use_the_same_prompts():
    right = [[1, 0], [0, 0], [1, 1], [1, 1]]
    assert plots.same_prompts(of_rates(right), 'seen', 2) == 0.5


def test_an_unfinished_run_does_not_truncate_the_curves_of_finished_ones():
    done, begun, new = (
        SimpleNamespace(name='half', seed=seed, finished=seed == 0) for seed in range(3)
    )
    scores = {('half', 0): {2: {}, 4: {}}, ('half', 1): {2: {}}, ('half', 2): {}}
    assert plots.runs_to_plot('half', [done, begun, new], scores) == [done]
    assert plots.runs_to_plot('half', [begun, new], scores) == [begun]
    assert plots.runs_to_plot('half', [new], scores) == []


@pytest.mark.parametrize(
    'content',
    [
        '[]',
        '{"attempts": 3}',
        '{"attempts": [3], "seconds": {}}',
        '{"attempts": [{"last_step": 5}], "seconds": []}',
        '{"attempts": [{"last_step": 5}], "seconds": {"steps": null}}',
    ],
)
def test_the_record_of_another_version_has_no_time(content, tmp_path):
    (tmp_path / 'goodput.json').write_text(content)
    job = SimpleNamespace(folder=tmp_path)
    assert report.training_time(job) == report.TrainingTime(0, 0.0)


def test_answers_stand_below_their_kind_where_arms_have_other_kinds():
    def answered(**right):
        kinds = {k: {'correct': each, 'commonest': 0.25} for k, each in right.items()}
        return [(None, {'generation': {}, 'understanding': kinds})]

    groups = {'a': answered(count=[1, 1], where=[0, 0]), 'b': answered(colour=[1, 0], where=[1, 1])}
    head, _, first, second, always = (
        [cell.strip()[:5] for cell in line.strip('|').split('|')]
        for line in report._understanding(groups).splitlines()
    )
    assert head == ['arm', 'overa', 'count', 'where', 'colou']
    assert first == ['a', '0.500', '1.000', '0.000', '']
    assert second == ['b', '0.750', '', '1.000', '0.500']
    assert always[1:] == ['0.250'] * 4
