"""What a caption claims, apart from its wording, and whether a set of objects satisfies it.

Objects are anything with `shape`, `colour`, `x` and `y` (fractions of the side): those of a scene,
or those that the judge detects in an image. A claim is checked in the same way on both.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

_MARGIN = 0.06  # least distance along an axis for a relation
_ALONG = 0.5  # least fraction of the whole distance along that axis: within 60 degrees of it
_BORDER = 0.05  # how far beyond its third of the image a place still holds
# Row and column of each third.
PLACES = {
    'at the top left': (0, 0),
    'at the top': (0, 1),
    'at the top right': (0, 2),
    'on the left': (1, 0),
    'in the middle': (1, 1),
    'on the right': (1, 2),
    'at the bottom left': (2, 0),
    'at the bottom': (2, 1),
    'at the bottom right': (2, 2),
}
_NAMES = {spot: place for place, spot in PLACES.items()}
NUMBERS = ('no', 'one', 'two', 'three', 'four', 'five', 'six')


class Placed(Protocol):
    shape: str
    colour: str
    x: float
    y: float


@dataclass(frozen=True)
class Group:
    """`count` objects of a shape; None, or '' for the place, leaves an attribute open.

    `size` and `texture` can only be checked on objects that have them, those of a scene.
    """

    count: int
    shape: str | None
    colour: str | None = None
    place: str = ''
    size: str | None = None
    texture: str | None = None

    def fits(self, each: Placed) -> bool:
        """Whether the object matches this group."""
        for name in ('shape', 'colour', 'size', 'texture'):
            wanted = getattr(self, name)
            if wanted is not None and wanted != getattr(each, name):
                return False
        return not self.place or _within(self.place, each)


@dataclass(frozen=True)
class Claim:
    """Groups of objects, and the relation of the first to the second if `relation` is not ''.

    Counts are minimums and other objects are allowed, as in GenEval. `counted`: no more objects
    match a group than its count, as in GenEval's counting. `exact`: the image has no other
    objects at all. `ground` '' leaves the ground open.
    """

    groups: tuple[Group, ...]
    relation: str = ''
    exact: bool = False
    counted: bool = False
    ground: str = ''


def holds(claim: Claim, objects: Sequence[Placed], ground: str = '') -> bool:
    """Whether the objects, and the ground if it is known, satisfy the claim.

    Each object counts for one group only.
    """
    if claim.ground and ground and claim.ground != ground:
        return False
    if claim.counted and any(sum(map(g.fits, objects)) > g.count for g in claim.groups):
        return False
    owners = [[i for i, group in enumerate(claim.groups) if group.fits(o)] for o in objects]
    if claim.exact and not all(owners):
        return False
    if not _assigned(claim, owners):
        return False
    if not claim.relation:
        return True
    first, second = claim.groups[:2]
    return any(
        related(a, claim.relation, b)
        for a in objects
        for b in objects
        if a is not b and first.fits(a) and second.fits(b)
    )


def related(a: Placed, relation: str, b: Placed) -> bool:
    """Whether the relation holds: by a margin, and within 60 degrees of its direction.

    The angle is GenEval's; two relations can hold at once.
    """
    dx, dy = a.x - b.x, a.y - b.y
    along = {'left of': -dx, 'right of': dx, 'above': -dy, 'below': dy}[relation]
    return along >= max(_MARGIN, _ALONG * math.hypot(dx, dy))


def place_of(each: Placed) -> str:
    """The place of an object, '' if it is near the border between two."""
    return _NAMES.get((_clear_third(each.y), _clear_third(each.x)), '')


def _within(place: str, each: Placed) -> bool:
    row, column = PLACES[place]
    return _within_third(each.y, row, _BORDER) and _within_third(each.x, column, _BORDER)


def _within_third(at: float, number: int, margin: float) -> bool:
    low, high = number / 3 - margin, (number + 1) / 3 + margin
    return (number == 0 or at >= low) and (number == 2 or at <= high)


def third(at: float) -> int:
    """0, 1 or 2: the third of the image's side that contains `at`, in [0, 1]."""
    return max(0, min(2, int(at * 3)))


def _clear_third(at: float) -> int | None:
    number = third(at)
    return number if _within_third(at, number, -_BORDER) else None


def _assigned(claim: Claim, owners: list[list[int]]) -> bool:
    """Whether objects can be assigned to groups, each to one, so that all counts are met."""
    left = [group.count for group in claim.groups]

    def assign(i: int) -> bool:
        if i == len(owners):
            return not any(left)
        for group in owners[i]:
            if left[group]:
                left[group] -= 1
                if assign(i + 1):
                    return True
                left[group] += 1
        return not claim.exact and assign(i + 1)  # an object that no group needs

    return assign(0)
