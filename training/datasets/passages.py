"""Frames of passages, made from photos of a data set of faces: photos of one person, and bursts of one photo.

The frames of a real passage are neither: they resemble each other more than photos taken on different days, and less
than variations of one photo. A threshold that holds for both holds between them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from training.core.seeds import derive
from training.datasets.degradations import degrade
from training.datasets.faces import source_of
from training.datasets.images import ImageSet, Indices
from training.recipe.config import CameraSection

Pixels = npt.NDArray[np.uint8]

# The variation of a photo in a burst, each kind on half of the frames: motion, focus, distance, noise and compression.
BURST = CameraSection(chance=0.5, smallest=24, defocus=2.5, motion=9.0, noise=6.0, jpeg=20)


class PhotoPassages(NamedTuple):
    """Passages of different photos, as rows of the data set [P, F], and another photo of the same person [P]."""

    frames: Indices
    enrolled: Indices


def source_shares(faces: ImageSet) -> dict[str, float]:
    """Return the share of each source in the rows of the whole data set; in all, 1."""
    sources, counts = np.unique([source_of(faces.classes[label]) for label in faces.labels], return_counts=True)
    return dict(zip(sources.tolist(), (counts / counts.sum()).tolist(), strict=True))


def _rows_by_source(faces: ImageSet, rows: Indices) -> Iterator[tuple[float, Indices]]:
    """Yield the share of each source in the whole data set, and those of the `rows` that are from it."""
    shares = source_shares(faces)
    sources = np.array([source_of(faces.classes[label]) for label in faces.labels[rows]])
    for source, share in shares.items():
        yield share, rows[sources == source]


def draw_photo_passages(faces: ImageSet, rows: Indices, frames: int, count: int, seed: int) -> PhotoPassages:
    """Return about `count` passages of `frames` photos of one person each, and one more photo of that person.

    Only people with more photos than `frames` have a passage. Each source has its share of the whole data set.
    """
    random = np.random.default_rng(derive(seed, "passages", frames))
    photos = {label: rows[faces.labels[rows] == label] for label in np.unique(faces.labels[rows])}
    enough = rows[[len(photos[label]) > frames for label in faces.labels[rows]]]
    drawn = []
    for share, members in _rows_by_source(faces, enough):
        for row in random.choice(members, round(count * share) if len(members) else 0):
            others = photos[faces.labels[row]]
            drawn.append([row, *random.permutation(others[others != row])[:frames]])
    chosen = np.array(drawn, np.int64).reshape(-1, frames + 1)
    return PhotoPassages(chosen[:, :frames], chosen[:, frames])


def draw_burst_rows(faces: ImageSet, rows: Indices, count: int, seed: int) -> Indices:
    """Return about `count` different rows, ascending, of photos for bursts; sources as in `draw_photo_passages`."""
    random = np.random.default_rng(derive(seed, "bursts"))
    drawn = [random.permutation(members)[: round(count * share)] for share, members in _rows_by_source(faces, rows)]
    return np.sort(np.concatenate(drawn))


def burst(photos: Pixels, frames: int, generator: torch.Generator) -> Pixels:
    """Return `frames` variations of each aligned face [N, H, W, C]: uint8 [N, frames, H, W, C]."""
    images = torch.from_numpy(photos).movedim(-1, 1).float().repeat_interleave(frames, dim=0)
    varied = degrade(images, BURST, generator).round().clamp(0, 255).to(torch.uint8).movedim(1, -1)
    return np.ascontiguousarray(varied.numpy()).reshape(len(photos), frames, *photos.shape[1:])
