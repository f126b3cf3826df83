"""Select the photos of one identity: without duplicates, without outliers, and enough of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from training.prepare.face_photos import JudgedPhoto

_FEWEST_TO_CLEAN = 3  # of two photos that differ it is unknown which is wrong


@dataclass(frozen=True)
class SelectionRules:
    """The least number of photos of an identity, and the cosine distance, 0..2, above which a photo is an outlier."""

    min_photos: int = 2
    distance: float | None = None


def select_photos(photos: Sequence[JudgedPhoto], rules: SelectionRules) -> list[JudgedPhoto]:
    """Return all photos of one identity, some with a new outcome: duplicates, outliers, or all if too few are left."""
    selected = _mark_outliers(_mark_duplicates(photos), rules.distance)
    kept = sum(photo.outcome == "kept" for photo in selected)
    if kept >= rules.min_photos:
        return selected
    return [
        replace(photo, outcome="too-few", reasons=f"{kept} left") if photo.outcome == "kept" else photo
        for photo in selected
    ]


def _mark_duplicates(photos: Sequence[JudgedPhoto]) -> list[JudgedPhoto]:
    first: dict[str | bytes, str] = {}
    marked = []
    for photo in photos:
        if photo.outcome == "kept":
            original = first.get(photo.digest) or first.get(photo.crop)
            if original:
                marked.append(replace(photo, outcome="duplicate", reasons=f"of {original}"))
                continue
            first |= {photo.digest: photo.path, photo.crop: photo.path}
        marked.append(photo)
    return marked


def _mark_outliers(photos: Sequence[JudgedPhoto], limit: float | None) -> list[JudgedPhoto]:
    kept = [position for position, photo in enumerate(photos) if photo.outcome == "kept"]
    marked = list(photos)
    if limit is None or len(kept) < _FEWEST_TO_CLEAN:
        return marked
    distances = distances_from_median(np.array([photos[position].vector for position in kept]))
    for position, distance in zip(kept, distances.tolist(), strict=True):
        if distance > limit:
            marked[position] = replace(photos[position], outcome="far", reasons=f"{distance:.3f}")
    return marked


def distances_from_median(vectors: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the cosine distance [N], 0..2, of each unit vector [N, D] from the direction of the elementwise median.

    Outliers affect a median less than a mean.
    """
    median = np.median(vectors, axis=0)
    length = float(np.linalg.norm(median))
    return np.asarray(1 - vectors @ (median / length if length else median), np.float64)
