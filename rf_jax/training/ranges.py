"""What a config value may be: numbers in a range and tuples of them, with words for errors."""

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Protocol

INT32 = 2**31 - 1  # steps and positions are int32 on the devices


class Bounds(Protocol):
    def __contains__(self, value: Any) -> bool: ...

    def __str__(self) -> str:
        """Completes "expected ..."."""


@dataclass(frozen=True)
class Whole:
    """Integers from `low` to `high`, and those in `also`."""

    low: int
    high: int = INT32
    also: tuple[int, ...] = ()

    def __contains__(self, value: Any) -> bool:
        whole = isinstance(value, Integral) and not isinstance(value, bool)
        return whole and (self.low <= value <= self.high or value in self.also)

    def __str__(self) -> str:
        also = ''.join(f'{value}, or ' for value in self.also)
        return f'{also}a whole number of at least {self.low} and at most {self.high}'


@dataclass(frozen=True)
class Finite:
    """Finite numbers from `low` to `high`; `above`: excludes `low`, `below`: excludes `high`."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False

    def __contains__(self, value: Any) -> bool:
        if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value):
            return False
        low = value > self.low if self.above else value >= self.low
        return low and (value < self.high if self.below else value <= self.high)

    def __str__(self) -> str:
        parts = []
        if self.low > -math.inf:
            parts.append(f'{"above" if self.above else "of at least"} {self.low}')
        if self.high < math.inf:
            parts.append(f'{"below" if self.below else "of at most"} {self.high}')
        return ' '.join(['a finite number', ' and '.join(parts)]).strip()


@dataclass(frozen=True)
class Boolean:
    """True or False."""

    def __contains__(self, value: Any) -> bool:
        return isinstance(value, bool)

    def __str__(self) -> str:
        return 'True or False'


@dataclass(frozen=True)
class Text:
    """A string, as an item of a tuple."""

    def __contains__(self, value: Any) -> bool:
        return isinstance(value, str)

    def __str__(self) -> str:
        return 'a string'


@dataclass(frozen=True)
class Each:
    """Tuples of `count` items, or any number; lists too, as they come from JSON."""

    item: Bounds
    count: int | None = None

    def __contains__(self, value: Any) -> bool:
        several = isinstance(value, list | tuple) and self.count in (None, len(value))
        return several and all(each in self.item for each in value)

    def __str__(self) -> str:
        return f'a tuple of {self.count or "any number"}, each {self.item}'


@dataclass(frozen=True)
class Pair:
    """Tuples of two; `words` describes them in errors."""

    first: Bounds
    second: Bounds
    words: str

    def __contains__(self, value: Any) -> bool:
        both = isinstance(value, list | tuple) and len(value) == 2
        return both and value[0] in self.first and value[1] in self.second

    def __str__(self) -> str:
        return self.words


@dataclass(frozen=True)
class Pairs:
    """Tuples of at least `least` pairs."""

    pair: Pair
    least: int = 0

    def __contains__(self, value: Any) -> bool:
        several = isinstance(value, list | tuple) and len(value) >= self.least
        return several and all(each in self.pair for each in value)

    def __str__(self) -> str:
        return self.pair.words
