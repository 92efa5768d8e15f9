"""Looks inside a trained run: the representation tokens of an image, and what each stands for."""

import os
from collections.abc import Sequence

import numpy as np

from rf_jax.data import arrays, contact_sheet, fitting, image_ops, layout, patch_grid, spans
from rf_jax.generation.sampler import Sampler
from rf_jax.models import quantizer
from rf_jax.models.representation.features import group_features
from rf_jax.runtime import checkpoint, paths

BATCH = 64  # images encoded at a time


class Inspector:
    """A sampler with the codebook of its representation tokens.

    Codes are those of the nearest prototype, without the balancing over a batch as in training.
    """

    def __init__(self, sampler: Sampler, codebook: np.ndarray, step: int | None = None):
        """`codebook` float32 [K, Denc]; `step` of the checkpoint, if they are from one."""
        self.sampler, self.codebook, self.step = sampler, np.asarray(codebook), step
        self.pool = sampler.config.model.representation.pool
        self._encode = sampler.placement.jit(self._codes_of_batch)

    @classmethod
    def load(cls, workdir: str | os.PathLike, step: int | None = None, **placed) -> 'Inspector':
        """The EMA parameters and the codebook of a run, from its folder alone.

        `step` of the checkpoint; None is the newest. `placed`: `mesh`, `dtype`
        and `sampling` of `Sampler.load`. Raises UserError if the folder is not a run.
        """
        sampler = Sampler.load(workdir, step, **placed)
        # The same step for both: a run that is training may have saved another one meanwhile.
        folder = paths.anywhere(workdir, '--workdir') / 'checkpoints'
        _, saved = checkpoint.restore_numpy(folder, sampler.step, only='codebook')
        return cls(sampler, saved['codebook'], sampler.step)

    def codes(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """int32 [rows, columns] for each image, one code for each group of patches.

        `images`: as `Sampler.caption` takes them. Raises UserError.
        """
        images = arrays.as_rgb(images, self.sampler.config.data.max_pixels)
        codes = []
        for start in range(0, len(images), BATCH):
            codes += self._codes(images[start : start + BATCH])
        return codes

    def _codes(self, images) -> list[np.ndarray]:
        data = self.sampler.config.data
        rows, grids = [], []
        for image in images:
            height, width = fitting.image_size(*image.shape[:2], self.sampler.config)
            grid = height // data.patch_size, width // data.patch_size
            resized = image_ops.resize(image, height, width)
            pixels = image_ops.patchify(resized, data.patch_size, self.pool)
            example = spans.generation_spans(
                *([], grid, pixels, self.pool),
                drop_text=False,
                drop_representation=False,
                keep_positions=False,
            )
            rows.append([example])
            grids.append(grid)
        sizes = np.max([layout.size(row[0]) for row in rows], axis=0)
        placement = self.sampler.placement
        rows_of_batch = placement.full(BATCH if len(rows) > 1 else 1)  # few compiled programs
        rows += [[]] * (rows_of_batch - len(rows))
        capacity = dict(zip(layout.SIZES, sizes.tolist()))
        batch = layout.make_batch(rows, capacity, self.sampler.model.channels)
        batch = placement.inputs(batch)
        codes = np.asarray(self._encode(self.sampler.params, self.codebook, batch))
        return [
            row[patch_grid.stored_groups(h, w, self.pool)].reshape(h // self.pool, w // self.pool)
            for row, (h, w) in zip(codes, grids)
        ]

    def _codes_of_batch(self, params, codebook, batch):
        z, valid = group_features(self.sampler.config, self.sampler.model, params, batch)
        return quantizer.Nearest()(z, codebook, valid).reshape(batch['pixels'].shape[0], -1)

    def meanings(self, images: Sequence[np.ndarray], tokens: int = 16, examples: int = 8):
        """A sheet of what the most frequent tokens stand for, uint8 [height, width, 3].

        One row for each token, the most frequent first: `examples` patches of the images that
        have this token. `images`: as `Sampler.caption` takes them. Raises UserError.
        """
        side, pieces = self.side, self._pieces(images)
        most = sorted(pieces, key=lambda code: -len(pieces[code]))[:tokens]
        blank = np.full((side, side, 3), 255, np.uint8)
        shown, names = [], []
        for code in most:
            shown += [*pieces[code][:examples], *[blank] * (examples - len(pieces[code]))]
            names += [f'{code}: {len(pieces[code])}x', *[''] * (examples - 1)]
        return contact_sheet.grid(shown, examples, names)

    def mean_pieces(self, images: Sequence[np.ndarray]) -> dict[int, np.ndarray]:
        """{code: the mean of the patches of the images that have it, uint8 [side, side, 3]}.

        `images`: as `Sampler.caption` takes them. Raises UserError.
        """
        means = {code: np.mean(pieces, 0) for code, pieces in self._pieces(images).items()}
        return {code: (mean + 0.5).astype(np.uint8) for code, mean in means.items()}

    @property
    def side(self) -> int:
        """Pixels of a side of the square that a token stands for."""
        return self.pool * self.sampler.config.data.patch_size

    def _pieces(self, images: Sequence[np.ndarray]) -> dict[int, list[np.ndarray]]:
        """{code: the patches of the images that have it}."""
        images, side = arrays.as_rgb(images, self.sampler.config.data.max_pixels), self.side
        pieces: dict[int, list[np.ndarray]] = {}
        for image, codes in zip(images, self.codes(images)):
            resized = image_ops.resize(image, *(side * n for n in codes.shape))
            for (row, column), code in np.ndenumerate(codes):
                piece = resized[row * side : (row + 1) * side, column * side : (column + 1) * side]
                pieces.setdefault(int(code), []).append(piece)
        return pieces
