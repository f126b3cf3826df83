"""Cut a large image into tiles that a network processes one by one, and join their outputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# In pixels. A tile's output is less accurate near its edge, beyond which the network sees no pixels. Where two tiles
# overlap, outputs within the margin have almost no weight; over the rest of the overlap the outputs are blended.
SIDE, OVERLAP, MARGIN = 256, 64, 24


@dataclass(frozen=True)
class Tiling:
    """The tiles of an image of height x width pixels; the sides of all tiles are multiples of `multiple`.

    An image that fits into one tile has a single tile of its padded size; otherwise all tiles have the same size.
    """

    height: int
    width: int
    multiple: int

    @property
    def padded(self) -> tuple[int, int]:
        """Height and width, rounded up to multiples of `multiple`."""
        return -self.height % self.multiple + self.height, -self.width % self.multiple + self.width

    def pad(self, image: Tensor) -> Tensor:
        """Pad an image [C, height, width] to [C, *padded] by mirroring it at its lower and right edges."""
        below, right = self.padded[0] - self.height, self.padded[1] - self.width
        return torch.from_numpy(np.pad(image.numpy(), ((0, 0), (0, below), (0, right)), mode="symmetric"))

    def cut(self, padded: Tensor) -> list[Tensor]:
        """Cut a padded image [C, *padded] into tiles [C, h, w], row by row."""
        return [padded[:, top, left] for top, left in self._positions()]

    def join(self, tiles: Tensor) -> Tensor:
        """Join tiles [N, C, h, w] into an image [C, height, width]; blend them where they overlap."""
        total = tiles.new_zeros(tiles.shape[1], *self.padded)
        weights = tiles.new_zeros(self.padded)
        for tile, (top, left) in zip(tiles, self._positions(), strict=True):
            weight = _ramp(top, self.padded[0])[:, None] * _ramp(left, self.padded[1])
            total[:, top, left] += tile * weight
            weights[top, left] += weight
        return (total / weights)[:, : self.height, : self.width]

    def _positions(self) -> Iterator[tuple[slice, slice]]:
        rows, columns = (self._cuts(length) for length in self.padded)
        return ((row, column) for row in rows for column in columns)

    def _cuts(self, length: int) -> list[slice]:
        # The last tile overlaps more, since all tiles have the same size and start at a multiple, as the network needs.
        side = max(self.multiple, SIDE // self.multiple * self.multiple)
        if length <= side:
            return [slice(0, length)]
        step = max(self.multiple, (side - OVERLAP) // self.multiple * self.multiple)
        return [slice(start, start + side) for start in (*range(0, length - side, step), length - side)]


def _ramp(cut: slice, length: int) -> Tensor:
    """Return the weights of a cut's pixels, float32 [L]: rising from its edges to 1, except at the image's edges."""
    position = torch.arange(cut.start, cut.stop)
    distances = [torch.full_like(position, OVERLAP)]
    if cut.start:
        distances.append(position - cut.start + 1)
    if cut.stop < length:
        distances.append(cut.stop - position)
    # At least 1e-3: the tiles of a network with a very large multiple do not overlap.
    return ((torch.stack(distances).amin(0) - MARGIN) / (OVERLAP - 2 * MARGIN + 1)).clamp(1e-3, 1)
