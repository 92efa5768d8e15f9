"""edits.py: what a request changes, and that the judge sees the change and everything else."""

from dataclasses import replace

import numpy as np
import pytest

from rf_jax.scenes import edits, judge, render, world

SIDE = 48


@pytest.fixture(scope='module', params=['aligned', 'free'])
def made(request):
    """A hundred edits."""
    rung = world.RUNGS[request.param]
    scenes = (world.make(3, i, rung) for i in range(130))
    found = [edits.sample(scene, rung, np.random.default_rng(i)) for i, scene in enumerate(scenes)]
    return [edit for edit in found if edit is not None][:100]


def verdict(edit, scene):
    return edits.judge(edit, judge.detect(render.render(scene, SIDE)))


def test_every_kind_is_asked_for(made):
    assert {edit.kind for edit in made} == set(edits.KINDS)
    assert len({edit.request for edit in made}) > 50


def test_one_object_differs(made):
    for edit in made:
        before, after = set(edit.before.objects), set(edit.after.objects)
        assert before - after == ({edit.old} if edit.old else set()), edit.request
        assert after - before == ({edit.new} if edit.new else set()), edit.request


def test_the_scene_asked_for_is_right_and_the_scene_before_is_not(made):
    right = [verdict(edit, edit.after) for edit in made]
    assert np.mean([v.changed and v.kept for v in right]) >= 0.98
    unchanged = [verdict(edit, edit.before) for edit in made]
    assert np.mean([v.kept and not v.changed for v in unchanged]) >= 0.98


def test_another_change_is_seen(made):
    """An object that was not spoken of is recoloured too, or gone."""
    seen = []
    for edit in made:
        rest = [each for each in edit.after.objects if each is not edit.new]
        if not rest:
            continue
        victim = rest[0]
        other = next(c for c in world.COLOURS if c not in {o.colour for o in edit.after.objects})
        for objects in (
            [
                replace(victim, colour=other) if each is victim else each
                for each in edit.after.objects
            ],
            [each for each in edit.after.objects if each is not victim],
        ):
            if objects:
                seen.append(verdict(edit, replace(edit.after, objects=tuple(objects))).kept)
    assert len(seen) > 50 and np.mean(seen) <= 0.02


def test_an_object_too_many_is_seen(made):
    for edit in made[:20]:
        found = judge.detect(render.render(edit.after, SIDE))
        assert not edits.judge(edit, [*found, replace(found[0], x=0.01, y=0.99)]).kept


def test_names_single_out_one_object(made):
    for edit in made:
        if edit.old is None:
            continue
        named = f'{edit.old.colour} {edit.old.shape}'
        what = 'look' if named in edit.request else 'shape'
        assert edit.old.shape in edit.request
        alike = [o for o in edit.before.objects if getattr(o, what) == getattr(edit.old, what)]
        assert len(alike) == 1, edit.request


def test_edits_stay_in_the_training_split(made):
    assert all(world.allowed(edit.after, held_out=False) for edit in made)
