"""Images that are generated together, a chunk at a time, so that others can go on in between."""

from collections.abc import Mapping, Sequence

import jax
import numpy as np

from rf_jax.data.batch import Batch
from rf_jax.generation import guidance, image_sampling
from rf_jax.generation.chat_programs import CHUNK, ChatPrograms
from rf_jax.generation.generated_image import PartialImage, from_patches, token_map
from rf_jax.generation.placement import of_results

PARTS = 12  # the flow is run in at most this many chunks


class ImageRun:
    """Images of one size (height, width), which `image_sampling.generate` would give at once.

    `rows`: as it takes them; `seeds` and `weights`: one for each row. `done`: whether all are
    finished.
    """

    def __init__(
        self,
        programs: ChatPrograms,
        params,
        rows: Mapping[guidance.Branch, Batch],
        seeds: Sequence[int],
        size: tuple[int, int],
        options: image_sampling.Options,
        weights: guidance.Weights,
    ):
        self._programs, self._params, self._size = programs, params, size
        self._options = options.program()
        rows = {branch: rows[branch] for branch in weights.rows()}
        given = rows, np.array(seeds, np.uint32), weights
        # Once, not for every chunk; placed as results are.
        self._rows, self._seeds, self._weights = (
            programs.placement.inputs(given)
            if programs.placement.mesh
            else jax.device_put(given, of_results(params))
        )
        contexts = self._weights.contexts()
        self._state = programs.begin_images(params, self._rows, self._seeds, contexts)
        self._places = self._state.writing.tokens.shape[1]
        self._written = self._moved = 0
        self._chunk = -(-options.steps // PARTS)
        times = image_sampling.times_of(programs.config, options, size[0] * size[1])
        self._times = np.asarray(times)
        self._pixels = None  # of the last chunk, once they are asked for

    @property
    def done(self) -> bool:
        return self._moved == self._options.steps

    @property
    def moved(self) -> int:
        """Steps of the flow so far."""
        return self._moved

    def step(self) -> None:
        """One chunk of tokens, or of the flow; returns when the device has done it."""
        programs, options = self._programs, self._options
        if self._written < self._places:
            first, self._written = self._written, min(self._written + CHUNK, self._places)
            self._state = programs.write_tokens(
                *(self._params, self._rows, self._seeds, self._state),
                *(np.int32(first), np.int32(self._written), self._weights, options),
            )
        else:
            first, self._moved = self._moved, min(self._moved + self._chunk, options.steps)
            self._state = programs.move(
                *(self._params, self._rows, self._state),
                *(np.int32(first), np.int32(self._moved), self._weights, options),
            )
        self._pixels = None
        jax.block_until_ready(self._state)

    def partial(self, number: int, count: int) -> PartialImage | None:
        """What image `number` shows after this chunk if `count` partial images are to be shown
        before it is finished: its tokens while they grow, then z, as the image comes out of the
        noise. (The predicted clean image hardly changes: its tokens decide it from the first step.)
        """
        if not count or self.done:
            return None
        if not self._moved:
            return PartialImage(self.tokens(number))
        due = self._due(count)
        if self._moved not in due:
            return None
        return PartialImage(self.tokens(number), self.image(number), due.index(self._moved))

    def _due(self, count: int) -> list[int]:
        """The ends of chunks after which `count` images are shown, evenly in the time of the flow;
        fewer if it has not as many.
        """
        due: list[int] = []
        for part in range(1, count + 1):
            free = set(range(self._chunk, self._options.steps, self._chunk)) - set(due)
            apart = {end: abs(self._times[end] - part / (count + 1)) for end in free}
            due += sorted(free, key=apart.get)[:1]
        return sorted(due)

    def image(self, number: int) -> np.ndarray:
        """Image `number` in its current state, uint8 [h, w, 3]."""
        if self._pixels is None:
            row = self._rows[guidance.ALL, True]
            self._pixels = np.asarray(self._programs.pixels(self._params, row, self._state.z))
        return from_patches(self._pixels[number], self._size, self._patch, self._programs.pool)

    def tokens(self, number: int) -> np.ndarray | None:
        """Its tokens sampled so far, as in GeneratedImage."""
        tokens = np.asarray(self._state.writing.tokens)[number]
        return token_map(tokens, self._size, self._patch, self._programs.pool)

    @property
    def _patch(self) -> int:
        return self._programs.config.data.patch_size
