"""Photos of people as they are sent to a service, and which of the faces that it sees in them is the person's."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from benchmarks.gallery.client import Json
from training.core.errors import DataError
from training.datasets.images import Indices
from training.datasets.protocols import People
from training.prepare.face_photos import read_photo


@dataclass(frozen=True)
class Photos:
    """Encoded photos [N], their sizes (width, height), and the labels [N] of the people they show, in the middle."""

    files: list[bytes]
    sizes: list[tuple[int, int]]
    labels: Indices

    @classmethod
    def read(cls, people: People, enlarged: int = 1) -> Photos:
        """As they lie there; made larger where that is asked, and then as PNG, which adds nothing of its own.

        Raises:
            DataError: an unreadable picture.
        """
        files, sizes = [], []
        for path in people.paths:
            picture = read_photo(path)
            if isinstance(picture, str):
                raise DataError(f"{path}: {picture}")
            data = path.read_bytes()
            if enlarged != 1:
                size = (enlarged * picture.width, enlarged * picture.height)
                picture = picture.resize(size, Image.Resampling.BICUBIC)
                buffer = io.BytesIO()
                picture.save(buffer, "PNG")
                data = buffer.getvalue()
            files.append(data)
            sizes.append(picture.size)
        return cls(files, sizes, people.labels)

    def of_several(self) -> Photos:
        """Of those people only of whom there are two photos or more."""
        rows = np.flatnonzero(np.bincount(self.labels)[self.labels] > 1).tolist()
        return Photos([self.files[row] for row in rows], [self.sizes[row] for row in rows], self.labels[rows])


def middle(faces: Sequence[Json], size: tuple[int, int]) -> Json:
    """The one of several answers about a face whose `face` is nearest to the middle, where the photo has its person."""

    def distance(one: Json) -> float:
        left, top, right, bottom = one["face"]["box"]
        return math.dist((left + right, top + bottom), size)

    return min(faces, key=distance)
