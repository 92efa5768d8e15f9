"""Visual question answering on scenes: questions about new scenes, scored by exact match."""

from collections import Counter
from collections.abc import Mapping

from rf_jax.data.records import clean
from rf_jax.evaluation.retrieval import wilson
from rf_jax.generation.sampler import Sampler
from rf_jax.runtime.rng import generator
from rf_jax.scenes.language import Question

_MOST = 50  # scenes searched for each question of a kind


def question_set(source, count: int) -> list[tuple[int, Question]]:
    """(number of the scene, question), up to `count` of each kind, ordered by kind.

    At most one question of a kind about a scene, sampled with a fixed seed from those of the kind;
    from the first scenes that have such a question.
    """
    chosen: dict[str, list[tuple[int, Question]]] = {}
    for i in range(min(len(source), _MOST * count)):
        rng = generator('asked', i)
        by_kind: dict[str, list[Question]] = {}
        for question in source.questions(i):
            by_kind.setdefault(question.kind, []).append(question)
        for kind, several in by_kind.items():
            kept = chosen.setdefault(kind, [])
            if len(kept) < count:
                kept.append((i, several[int(rng.integers(len(several)))]))
    return [each for kind in sorted(chosen) for each in chosen[kind]]


def evaluate(sampler: Sampler, source, count: int) -> dict[str, dict]:
    """{kind: {'correct': 1 or 0 of each question, 'commonest': share of its commonest answer}}.

    An answer is correct if it equals the true one up to case and white space. `source`: scenes of
    another seed than in training. A model that always gives the commonest answer of a kind scores
    'commonest'.
    """
    questions = question_set(source, count)
    images = {i: source.image(i) for i in sorted({i for i, _ in questions})}
    answers = sampler.answer(
        [images[i] for i, _ in questions], [question.question for _, question in questions]
    )
    correct: dict[str, list[int]] = {}
    truth: dict[str, Counter] = {}
    for (_, question), answer in zip(questions, answers):
        right = clean(question.answer).lower()
        correct.setdefault(question.kind, []).append(int(clean(answer).lower() == right))
        truth.setdefault(question.kind, Counter())[right] += 1
    return {
        kind: {'correct': each, 'commonest': max(truth[kind].values()) / len(each)}
        for kind, each in correct.items()
    }


def table(kinds: Mapping[str, dict]) -> str:
    """The result of `evaluate` as text, with 95 % Wilson intervals."""
    lines = [
        f'{"understanding":28s} {"asked":>6s} {"right":>7s} {"95 % interval":>17s} '
        f'{"commonest":>10s}'
    ]
    for kind, entry in kinds.items():
        count, rate = len(entry['correct']), sum(entry['correct']) / len(entry['correct'])
        low, high = wilson(rate, count)
        common = entry['commonest']
        lines.append(f'{kind:28s} {count:6d} {rate:7.1%} {low:7.1%} .. {high:6.1%} {common:10.1%}')
    return '\n'.join(lines)
