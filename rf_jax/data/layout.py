"""Spans to integer arrays: the one place that decides positions and what attends to what.

An example is a list of spans. A row packs several examples. Its tokens are stored by kind in four
streams `[text | vision | representation | pixels]` of fixed capacity, and `order` keeps their place
in the sequence. Training and generation call the same `make_batch`; `data.batch` lists its arrays.

Key k is visible to query q (`models.attention.masks`, with an example) when
    segment[q] == segment[k] and (order[k] <= reach[q] or (block[q] == block[k] and block[q] > 0)).

    span             order             reach                       block
    text             counts up         own order                   0
    vision           one per image     own order                   one per image
    representation   counts up         own order                   0
    pixels           NEVER             last token before them      one per image

The rows and columns of all images of an example are counted from where the first one begins, so the
same place in two images has the same row and column, as in OmniGen2 (arXiv 2506.18871): an edit
finds what it keeps at no distance.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from rf_jax.data.batch import Batch
from rf_jax.data.patch_grid import group_cells, patch_cells, patch_coords, stored_groups

STREAMS = ('text', 'vision', 'representation', 'pixels')
NEVER = 2**30  # an order beyond every reach
# What an example uses of a row: tokens of the four streams, images to read, to generate.
SIZES = (*STREAMS, 'vision_images', 'pixel_images')


@dataclass(frozen=True)
class Text:
    """Token ids; `targets[i]` is what position i must predict, -1 for no loss there."""

    tokens: Sequence[int]
    targets: Sequence[int] = ()


@dataclass(frozen=True)
class Skip:
    """Advances positions by `length` without tokens: a dropped prompt that keeps its positions."""

    length: int


@dataclass(frozen=True)
class Vision:
    """An image that the encoder reads; height and width in patches, both even."""

    height: int
    width: int
    pixels: np.ndarray | None = None  # uint8 [P, C] in 2x2 groups
    image: int = 0  # number of the image in its example


@dataclass(frozen=True)
class Representation:
    """A begin token and N = height * width / pool^2 tokens."""

    height: int
    width: int
    image: int = 0
    pool: int = 2  # side of the group of patches of one token: 1, 2 or 4
    given: bool = False  # its tokens are known: nothing to predict, and no pixels follow
    learned: bool = True  # False: no loss, but its pixels follow, from which its tokens come


@dataclass(frozen=True)
class Pixels:
    """Noisy patches of an image, after its representation if there is one.

    `reads_representation` False: their reach ends before the representation (dropped condition).
    """

    height: int
    width: int
    pixels: np.ndarray | None = None  # uint8 [P, C], ordered as `patch_grid.patch_cells`
    image: int = 0
    reads_representation: bool = True
    pool: int = 2  # as its Representation's
    learned: bool = True  # False: no loss


Span = Text | Skip | Vision | Representation | Pixels


def size(spans: Sequence[Span]) -> np.ndarray:
    """int64[6]: what an example uses of each entry of `SIZES`."""
    total = dict.fromkeys(SIZES, 0)
    for span in spans:
        if isinstance(span, Text):
            total['text'] += len(span.tokens)
        elif isinstance(span, Vision):
            total['vision'] += span.height * span.width // 4
            total['vision_images'] += 1
        elif isinstance(span, Representation):
            total['representation'] += span.height * span.width // span.pool**2 + 1
        elif isinstance(span, Pixels):
            total['pixels'] += span.height * span.width
            total['pixel_images'] += 1
    return np.array([total[name] for name in SIZES])


def empty(capacity: Mapping[str, int], channels: int, rows: Sequence[int] = ()) -> Batch:
    """An unfilled row: the arrays of `data.batch.Batch` without B.

    `capacity`: tokens of each stream (T, Vn, R, P) and images, by the names of SIZES; `channels`:
    C, values of a patch; `rows`: (B,) for that many rows.
    """
    t, v, r, p = (capacity[name] for name in STREAMS)
    total = t + v + r + p
    return {
        'segment': np.zeros((*rows, total), np.int32),
        'order': np.full((*rows, total), NEVER, np.int32),
        'reach': np.full((*rows, total), -1, np.int32),
        'block': np.zeros((*rows, total), np.int32),
        'position': np.zeros((*rows, total, 3), np.float32),
        'text_tokens': np.zeros((*rows, t), np.int32),
        'text_targets': np.zeros((*rows, t), np.int32),
        'text_weight': np.zeros((*rows, t), np.float32),
        'cells': np.full((*rows, r, 2), -1, np.int32),
        'input_group': np.full((*rows, r), -1, np.int32),
        'target_group': np.full((*rows, r), -1, np.int32),
        'representation_weight': np.zeros((*rows, r), np.float32),
        'pixels': np.zeros((*rows, p, channels), np.uint8),
        'pixel_weight': np.zeros((*rows, p), np.float32),
        'pixel_image': np.full((*rows, p), -1, np.int32),
        'pixel_cells': np.zeros((*rows, p, 2), np.int32),
        'pixel_coords': np.zeros((*rows, p, 2), np.float32),
        'vision_pixels': np.zeros((*rows, 4 * v, channels), np.uint8),
        'vision_image': np.full((*rows, 4 * v), -1, np.int32),
        'vision_coords': np.zeros((*rows, 4 * v, 2), np.float32),
        'pixel_counts': np.zeros((*rows, capacity['pixel_images']), np.int32),
        'vision_counts': np.zeros((*rows, capacity['vision_images']), np.int32),
    }


@dataclass
class Row:
    """A row being filled: `add` one example at a time, then read `arrays`, given or new ones."""

    capacity: Mapping[str, int]
    channels: int
    arrays: Batch = field(default_factory=dict)
    used: np.ndarray = field(init=False)  # int64[6], as SIZES
    examples: int = 0
    blocks: int = 0

    def __post_init__(self):
        self.arrays = self.arrays or empty(self.capacity, self.channels)
        self.used = np.zeros(len(SIZES), np.int64)
        starts = np.cumsum([0, *(self.capacity[name] for name in STREAMS)])
        self.start = dict(zip(STREAMS, starts))

    def add(self, spans: Sequence[Span]) -> None:
        """Adds an example. Raises ValueError when it exceeds what is left of the row."""
        left = np.array([self.capacity[name] for name in SIZES]) - self.used
        if (size(spans) > left).any():
            raise ValueError(
                f'an example of size {size(spans)} does not fit into {left} (of {SIZES})'
            )
        self.examples += 1
        order, frame = 0, -1
        begins = {}
        for span in spans:
            image = getattr(span, 'image', None)
            if image is not None and frame < 0:
                frame = order
            if isinstance(span, Text):
                order = self._text(span, order)
            elif isinstance(span, Skip):
                order += span.length
            elif isinstance(span, Vision):
                order = self._vision(span, order, frame)
            elif isinstance(span, Representation):
                begins[image] = order
                # The first pixel group of this image, which these tokens stand for.
                first = None if span.given else self._next_group(spans, span)
                order = self._representation(span, order, frame, first)
            else:
                reads = span.reads_representation or image not in begins
                reach = order - 1 if reads else begins[image] - 1
                self._pixels(span, order, reach, frame)

    def _next_group(self, spans, representation) -> int:
        group = int(self.used[SIZES.index('pixels')]) // representation.pool**2
        for span in spans[spans.index(representation) + 1 :]:
            if isinstance(span, Pixels):
                if span.image == representation.image:
                    return group
                group += span.height * span.width // span.pool**2
        raise ValueError('a Representation span needs a later Pixels span of the same image')

    def _take(self, stream: str, count: int) -> tuple[slice, slice]:
        """Slices of the next `count` tokens: within the stream, within the row."""
        index = SIZES.index(stream)
        at = int(self.used[index])
        self.used[index] += count
        base = self.start[stream]
        return slice(at, at + count), slice(base + at, base + at + count)

    def _write(self, where: slice, order, reach, block, position) -> None:
        row = self.arrays
        row['segment'][where] = self.examples
        row['order'][where] = order
        row['reach'][where] = reach
        row['block'][where] = block
        row['position'][where] = position

    def _image(self, kind: str, span, pool: int) -> None:
        """Writes pixels, coordinates and image number of a vision or pixel span."""
        index = SIZES.index(f'{kind}_images')
        number = int(self.used[index])
        self.used[index] += 1
        factor = 4 if kind == 'vision' else 1
        stream = 'vision' if kind == 'vision' else 'pixels'
        stop = int(self.used[SIZES.index(stream)]) * factor
        at = slice(stop - span.height * span.width, stop)
        self.arrays[f'{kind}_image'][at] = number
        self.arrays[f'{kind}_coords'][at] = patch_coords(span.height, span.width, pool)
        self.arrays[f'{kind}_counts'][number] = span.height * span.width
        if span.pixels is not None:
            self.arrays['vision_pixels' if kind == 'vision' else 'pixels'][at] = span.pixels

    def _text(self, span: Text, order: int) -> int:
        count = len(span.tokens)
        within, where = self._take('text', count)
        orders = order + np.arange(count)
        self._write(where, orders, orders, 0, orders[:, None])
        self.arrays['text_tokens'][within] = span.tokens
        if len(span.targets):
            targets = np.asarray(span.targets)
            self.arrays['text_targets'][within] = np.maximum(targets, 0)
            self.arrays['text_weight'][within] = targets >= 0
        return order + count

    def _vision(self, span: Vision, order: int, frame: int) -> int:
        cells = group_cells(span.height, span.width)
        _, where = self._take('vision', len(cells))
        self.blocks += 1
        # A pooled token has the position of the centre of its 2x2 patches.
        position = np.concatenate([np.full((len(cells), 1), order), frame + 2 * cells + 0.5], 1)
        self._write(where, order, order, self.blocks, position)
        self._image('vision', span, 2)
        return order + 1

    def _representation(self, span: Representation, order: int, frame: int, group) -> int:
        cells = group_cells(span.height, span.width, span.pool)
        count = len(cells) + 1
        within, where = self._take('representation', count)
        orders = order + np.arange(count)
        position = np.full((count, 3), frame, np.float32)
        position[:, 0] = orders
        position[1:, 1:] += span.pool * cells + (span.pool - 1) / 2
        self._write(where, orders, orders, 0, position)
        row = self.arrays
        row['cells'][within][1:] = cells
        if group is None:
            return order + count
        groups = group + stored_groups(span.height, span.width, span.pool)
        row['input_group'][within][1:] = groups
        if not span.learned:
            return order + count
        row['target_group'][within][:-1] = groups
        row['representation_weight'][within][:-1] = 1
        return order + count

    def _pixels(self, span: Pixels, order: int, reach: int, frame: int) -> None:
        cells = patch_cells(span.height, span.width, span.pool)
        within, where = self._take('pixels', len(cells))
        self.blocks += 1
        position = np.concatenate([np.full((len(cells), 1), order), frame + cells], 1)
        self._write(where, NEVER, reach, self.blocks, position)
        self.arrays['pixel_weight'][within] = span.learned
        self.arrays['pixel_cells'][within] = cells
        self._image('pixel', span, span.pool)


def make_batch(
    rows: Sequence[Sequence[Sequence[Span]]], capacity: Mapping[str, int], channels: int
) -> Batch:
    """Rows of examples of spans to a batch of numpy arrays.

    `capacity` and `channels` as in `empty`. Raises ValueError when a row's examples exceed its
    capacity.
    """
    batch = empty(capacity, channels, (len(rows),))
    for number, examples in enumerate(rows):
        row = Row(capacity, channels, {name: each[number] for name, each in batch.items()})
        for spans in examples:
            row.add(list(spans))
    return batch
