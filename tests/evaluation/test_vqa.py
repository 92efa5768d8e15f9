"""Answers to questions about scenes are scored exactly."""

import numpy as np
import pytest

from rf_jax.data import source_list
from rf_jax.evaluation import vqa


class Answers:
    """Replaces a sampler: answers each question with `answer(right answer)`."""

    def __init__(self, source, answer):
        self.truth = {}
        for i in range(60):
            for each in source.questions(i):
                self.truth[source.image(i).tobytes(), each.question] = each.answer
        self.answer_to = answer

    def answer(self, images, questions):
        return [self.answer_to(self.truth[p.tobytes(), q]) for p, q in zip(images, questions)]


@pytest.mark.parametrize(
    'answer, right',
    [(lambda a: f' {a.upper()} ', True), (lambda a: f'{a} it is', False), (lambda a: '', False)],
)
def test_answers_must_match_exactly_except_for_case(answer, right):
    (source,) = source_list.build('scenes:aligned/32/seed=5', 10**6)
    scores = vqa.evaluate(Answers(source, answer), source, 6)
    assert set(scores) >= {'exists', 'count', 'colour', 'shape', 'where', 'compare', 'same'}
    assert all(entry['correct'] == [int(right)] * 6 for entry in scores.values())
    assert all(1 / 6 <= entry['commonest'] <= 1 for entry in scores.values())


def test_always_answering_yes_scores_as_the_most_common_answer():
    (source,) = source_list.build('scenes:aligned/32/seed=5', 10**6)
    scores = vqa.evaluate(Answers(source, lambda a: 'yes'), source, 6)
    assert max(np.mean(scores['exists']['correct']), 1 - np.mean(scores['exists']['correct'])) == (
        pytest.approx(scores['exists']['commonest'])
    )
    assert sum(scores['count']['correct']) == 0
