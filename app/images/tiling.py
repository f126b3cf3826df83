"""A large picture as tiles that a network can take one by one, and the tiles' answers as one picture again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# In pixels. What a tile's edge lacks of its surroundings shows some way into it: there, within the margin, it counts
# for nothing where a neighbour has the same pixels; over the rest of an overlap one fades into the other.
SIDE, OVERLAP, MARGIN = 256, 64, 24


@dataclass(frozen=True)
class Tiling:
    """How a picture of height x width pixels is cut; all of its sides and tiles are multiples of `multiple`.

    A picture that fits into one tile is one, of its own size; else all tiles have the same size.
    """

    height: int
    width: int
    multiple: int

    @property
    def padded(self) -> tuple[int, int]:
        """Height and width, rounded up to multiples."""
        return -self.height % self.multiple + self.height, -self.width % self.multiple + self.width

    def pad(self, picture: Tensor) -> Tensor:
        """[C, height, width] -> [C, *padded], mirrored beyond its lower and its right edge."""
        below, right = self.padded[0] - self.height, self.padded[1] - self.width
        return torch.from_numpy(np.pad(picture.numpy(), ((0, 0), (0, below), (0, right)), mode="symmetric"))

    def cut(self, padded: Tensor) -> list[Tensor]:
        """[C, *padded] -> tiles [C, h, w], row by row."""
        return [padded[:, top, left] for top, left in self._places()]

    def join(self, tiles: Tensor) -> Tensor:
        """Tiles [N, C, h, w] -> [C, height, width], where they overlap each the weightier the further from its edge."""
        total = tiles.new_zeros(tiles.shape[1], *self.padded)
        weights = tiles.new_zeros(self.padded)
        for tile, (top, left) in zip(tiles, self._places(), strict=True):
            weight = _ramp(top, self.padded[0])[:, None] * _ramp(left, self.padded[1])
            total[:, top, left] += tile * weight
            weights[top, left] += weight
        return (total / weights)[:, : self.height, : self.width]

    def _places(self) -> Iterator[tuple[slice, slice]]:
        rows, columns = (self._cuts(length) for length in self.padded)
        return ((row, column) for row in rows for column in columns)

    def _cuts(self, length: int) -> list[slice]:
        # The last starts where it fits: all are of one size, and all begin at a multiple, as the network's grids do.
        side = max(self.multiple, SIDE // self.multiple * self.multiple)
        if length <= side:
            return [slice(0, length)]
        step = max(self.multiple, (side - OVERLAP) // self.multiple * self.multiple)
        return [slice(start, start + side) for start in (*range(0, length - side, step), length - side)]


def _ramp(cut: slice, length: int) -> Tensor:
    """A cut's weights, float32 [its length]: from its edges up to 1, but for those that are the picture's own."""
    place = torch.arange(cut.start, cut.stop)
    distances = [torch.full_like(place, OVERLAP)]
    if cut.start:
        distances.append(place - cut.start + 1)
    if cut.stop < length:
        distances.append(cut.stop - place)
    # Never 0: the tiles of a network with a very large multiple only touch.
    return ((torch.stack(distances).amin(0) - MARGIN) / (OVERLAP - 2 * MARGIN + 1)).clamp(1e-3, 1)
