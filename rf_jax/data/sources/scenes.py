"""Procedural scenes as a data source: made on demand, so a million scenes cost no start-up time."""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from rf_jax.data.messages import DraftPart, ImagePart, Message, TextPart
from rf_jax.data.records import Record, Source
from rf_jax.runtime.errors import UserError, choose, require
from rf_jax.runtime.rng import generator
from rf_jax.scenes import critique, dialogue, language, render, riddles, world

SIZES = (24, 256)  # smallest and largest side in pixels
_SYNTAX = 'scenes:RUNG/SIZE[/option...]'
_RECORDS = 20_000  # in memory
_SCENES = 1000  # in memory
_MOST_CELLS = 8  # per side
RIDDLES = ('think', 'direct')  # whether the literal caption is written before the image
_MOST_OBJECTS = max(most for _, most in world.COUNTS.values())


def _form(text: str) -> str:
    if text not in RIDDLES:
        raise ValueError
    return text


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


@dataclass(frozen=True)
class Options:
    """Options after the size; None and False leave the rung unchanged."""

    count: int = 20_000  # number of scenes
    seed: int = 0  # different seeds give different scenes
    objects: int | None = None  # largest number in a scene
    grid: int | None = None  # cells per side, for an aligned rung
    overlap: float | None = None  # fraction by which objects of two colours may come closer
    textures: bool = False  # striped and checked objects
    clutter: bool = False  # an uneven ground
    held_out: bool = False  # only scenes with a look or relation that never occurs in the others
    long: bool = False  # only the long caption, which names all of a scene
    conversations: bool = False  # a conversation about each scene as well
    riddles: str = ''  # 'think' or 'direct': with a riddle and its image in place of it
    critique: bool = False  # with a draft that is judged and drawn again


_READ: dict[str, Callable] = {
    'count': _count,
    'seed': int,
    'objects': _count,
    'grid': _count,
    'overlap': float,
    'riddles': _form,
}
_FLAGS = ('textures', 'clutter', 'held_out', 'long', 'conversations', 'critique')


def _talk(source: 'ScenesSource', i: int, rng: np.random.Generator) -> dialogue.Dialogue:
    other = source.scene((i + 1) % len(source))
    return dialogue.make(source.scene(i), other, source.rung, rng)


def _riddle(source: 'ScenesSource', i: int, rng: np.random.Generator) -> dialogue.Dialogue:
    return riddles.converse(source.scene(i), source.rung, rng, source.thinks)


def _critique(source: 'ScenesSource', i: int, rng: np.random.Generator) -> dialogue.Dialogue:
    return critique.converse(source.scene(i), source.rung, rng)


# Options of which there is one at most, and the conversation that each makes of scene i.
_TALKS = {'conversations': _talk, 'riddles': _riddle, 'critique': _critique}


@dataclass(frozen=True)
class SceneConversation:
    """A `records.Conversation` whose images are rendered scenes."""

    messages: tuple[Message, ...]
    sizes: tuple[tuple[int, int], ...]
    scenes: tuple[world.Scene, ...]

    def image(self, number: int, target=None) -> np.ndarray:
        """uint8 [size, size, 3]."""
        return render.render(self.scenes[number], self.sizes[number][0])


class ScenesSource(Source):
    """`scenes:RUNG/SIZE[/option...]`, such as scenes:aligned/48/count=5000/textures.

    RUNG is one of `world.RUNGS`, SIZE the side in pixels, options are the fields of `Options`.
    Raises UserError.
    """

    procedural = True

    def __init__(self, argument: str, max_pixels: int):
        self.name = f'scenes:{argument}'
        self.skipped: dict[str, int] = {}
        parts = [part.strip() for part in argument.split('/')]
        require(
            len(parts) >= 2 and all(parts),
            f'data.sources: {self.name!r} is not {_SYNTAX}, such as scenes:aligned/48. '
            f'Rungs: {", ".join(world.RUNGS)}; options: {_known()}',
        )
        rung = choose(f'data.sources: rung of {self.name!r}', parts[0], world.RUNGS)
        self.size = self._side(parts[1], max_pixels)
        self._options = Options(**dict(self._option(part) for part in parts[2:]))
        self.rung = self._changed(rung)
        self._records = lru_cache(_RECORDS)(self._record)
        self._scenes = lru_cache(_SCENES)(self._scene)
        self.maps = dict.fromkeys(render.MAPS, range(len(self)))
        self.conversations = _Conversations(self) if self.talks else ()

    def __len__(self) -> int:
        return self._options.count

    @property
    def talks(self) -> str:
        """What its conversations are about: an option of _TALKS, '' without conversations."""
        return next((name for name in _TALKS if getattr(self._options, name)), '')

    @property
    def thinks(self) -> bool:
        """Whether the literal caption of a riddle is written before its image."""
        return self._options.riddles == 'think'

    def record(self, i: int) -> Record:
        return self._records(i)

    def scene(self, i: int) -> world.Scene:
        """Raises IndexError if there is no such scene."""
        return self._scenes(i)

    def captions(self, i: int) -> list[language.Caption]:
        """The captions of record(i), with their claims."""
        found = language.captions(self.scene(i), self.rung, self._words('captions', i))
        return found[-1:] if self._options.long else found

    def questions(self, i: int) -> list[language.Question]:
        """The questions of record(i), with their kinds."""
        rng = self._words('questions', i)
        return language.questions(self.scene(i), rng, self._options.held_out)

    def image(self, i: int, target=None) -> np.ndarray:
        """uint8 [size, size, 3]."""
        return render.render(self.scene(i), self.size)

    def dialogue(self, i: int) -> dialogue.Dialogue:
        """The conversation about scene i; it may have other scenes too."""
        return _TALKS[self.talks](self, i, self._words('dialogue', i))

    def map(self, i: int, name: str) -> np.ndarray:
        """uint8 [size, size, 3]: the exact map of scene i; `name` of `render.MAPS`."""
        return render.MAPS[name](self.scene(i), self.size)

    def _scene(self, i: int) -> world.Scene:
        if not 0 <= i < len(self):
            raise IndexError(f'{self.name} has scenes 0 .. {len(self) - 1}, not {i}')
        return world.make(self._options.seed, i, self.rung, self._options.held_out)

    def _record(self, i: int) -> Record:
        return Record(
            self.size,
            self.size,
            captions=tuple(each.text for each in self.captions(i)),
            kind=self.scene(i).kind,
            questions=tuple((each.question, each.answer) for each in self.questions(i)),
        )

    def _words(self, name: str, i: int) -> np.random.Generator:
        return generator(self._options.seed, name, self._options.held_out, i)

    def _side(self, text: str, max_pixels: int) -> int:
        low, high = SIZES
        if not (text.isdecimal() and low <= int(text) <= high):
            raise UserError(
                f'data.sources: {self.name!r} has the size {text!r}; expected the side in pixels, '
                f'{low} to {high}, as in scenes:aligned/48'
            )
        if int(text) ** 2 > max_pixels:
            raise UserError(
                f'data.sources: images of {self.name!r} have {int(text) ** 2} pixels, '
                f'data.max_pixels={max_pixels} allows fewer'
            )
        return int(text)

    def _option(self, text: str) -> tuple[str, object]:
        name, equals, value = text.partition('=')
        if name in _FLAGS and not equals:
            return name, True
        if name not in _READ and name not in _FLAGS:
            near = difflib.get_close_matches(name, (*_READ, *_FLAGS), n=1)
            hint = f' Did you mean {near[0]!r}?' if near else ''
            raise UserError(
                f'data.sources: unknown option {text!r} in {self.name!r}.{hint} Known: {_known()}'
            )
        try:
            return name, _READ[name](value)
        except (KeyError, ValueError) as error:
            raise UserError(
                f'data.sources: cannot read option {text!r} of {self.name!r}. Known: {_known()}'
            ) from error

    def _changed(self, rung: world.Rung) -> world.Rung:
        """The rung with the options applied; raises UserError if they do not fit together."""
        given = self._options
        for name, fits, which in (
            ('grid', rung.grid, 'aligned: other rungs have no grid'),
            ('overlap', not rung.grid, 'free or crowded: cells of a grid do not overlap'),
        ):
            require(
                getattr(given, name) is None or bool(fits),
                f'data.sources: option {name} of {self.name!r} only applies to {which}',
            )
        talks = [name for name in _TALKS if getattr(given, name)]
        require(
            len(talks) < 2,
            f'data.sources: {self.name!r} has the options {", ".join(talks)}; expected one of '
            'them: give several sources, separated by commas',
        )
        objects, grid = given.objects or rung.objects, given.grid or rung.grid
        require(
            objects > 1 or not given.riddles,
            f'data.sources: riddles of {self.name!r} ask for 2 to 4 objects: raise objects',
        )
        overlap = rung.overlap if given.overlap is None else given.overlap
        require(
            objects <= _MOST_OBJECTS,
            f'data.sources: {self.name!r}: objects={objects}, expected 1 to {_MOST_OBJECTS}',
        )
        require(
            grid <= _MOST_CELLS,
            f'data.sources: {self.name!r}: grid={grid}, expected 1 to {_MOST_CELLS} cells per side',
        )
        require(
            0 <= overlap <= 0.5,
            f'data.sources: {self.name!r}: overlap={overlap}, expected 0 to 0.5',
        )
        require(
            not grid or grid**2 >= objects,
            f'data.sources: {self.name!r}: a grid of {grid} x {grid} = {grid**2} cells cannot hold '
            f'{objects} objects; set objects={grid**2} or a larger grid',
        )
        return replace(
            rung,
            grid=grid,
            objects=objects,
            overlap=overlap,
            textures=world.TEXTURES if given.textures else rung.textures,
            clutter=rung.clutter or given.clutter,
        )


def _known() -> str:
    return ', '.join([*(f'{name}=...' for name in _READ), *_FLAGS])


class _Conversations(Sequence[SceneConversation]):
    """The conversations of a source, made on demand."""

    def __init__(self, source: ScenesSource):
        self._source = source
        self._made = lru_cache(_RECORDS)(self._make)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, i: int) -> SceneConversation:
        return self._made(i)

    def _make(self, i: int) -> SceneConversation:
        made = self._source.dialogue(i)
        messages = tuple(
            Message(role, tuple(_part(part, made.drafts) for part in parts))
            for role, parts in made.turns
        )
        size = self._source.size
        return SceneConversation(messages, ((size, size),) * len(made.scenes), made.scenes)


def _part(part: str | int, drafts: Sequence[int]) -> TextPart | ImagePart:
    if isinstance(part, str):
        return TextPart(part)
    return DraftPart(part) if part in drafts else ImagePart(part)
