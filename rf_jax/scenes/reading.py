"""From text to claims: captions of scenes as `language.captions` words them, read back."""

import re
from collections.abc import Iterable

from rf_jax.scenes.claims import NUMBERS, PLACES, Claim, Group, holds
from rf_jax.scenes.language import plural
from rf_jax.scenes.world import COLOURS, GROUNDS, RELATIONS, SHAPES, SIZES, TEXTURES, Scene

_COUNTS = {'a': 1, 'an': 1} | {word: count for count, word in enumerate(NUMBERS) if count > 1}
_SHAPES = {shape: shape for shape in SHAPES} | {plural(shape): shape for shape in SHAPES}


def _any_of(name: str, words: Iterable[str]) -> str:
    return f'(?P<{name}>{"|".join(words)})'


_GROUP = re.compile(
    f'{_any_of("count", _COUNTS)} (?:{_any_of("size", SIZES)} )?'
    f'(?:{_any_of("texture", TEXTURES)} )?(?:{_any_of("colour", COLOURS)} )?'
    f'{_any_of("shape", _SHAPES)}(?: {_any_of("place", PLACES)})?'
)
_RELATED = re.compile(f'(.+) {_any_of("relation", RELATIONS)} (.+)')
_GROUND = re.compile(f'on a {_any_of("ground", GROUNDS)} ground, (.+)|(.+) on a (.+) ground')


def read(text: str) -> Claim | None:
    """What a caption claims, with `exact`; None if it is not worded as captions of scenes are."""
    ground = ''
    if about := _GROUND.fullmatch(text):
        ground, text = about['ground'] or about[4], about[2] or about[3]
        if ground not in GROUNDS:
            return None
    relation = ''
    parts = re.split(', | and ', text)
    if said := _RELATED.fullmatch(text):
        parts, relation = [said[1], said[3]], said['relation']
    groups = [_group(part) for part in parts]
    if None in groups:
        return None
    return Claim(tuple(groups), relation, exact=True, ground=ground)


def _group(text: str) -> Group | None:
    found = _GROUP.fullmatch(text)
    if found is None:
        return None
    count, shape = _COUNTS[found['count']], found['shape']
    if (shape in SHAPES) != (count == 1):
        return None
    more = {name: found[name] for name in ('size', 'texture')}
    return Group(count, _SHAPES[shape], found['colour'], found['place'] or '', **more)


def true_of(text: str, scene: Scene) -> bool:
    """Whether a caption can be read, and names exactly the objects of the scene."""
    claim = read(text)
    return claim is not None and holds(claim, scene.objects, scene.ground)
