"""Subjects with metadata for the tests of searches in every engine, and what numpy finds among them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from index.protocol import Gallery
from index.types import Floats, NewFace, Where
from tests.index.people import vectors

PEOPLE, FACES = 30, vectors(90)
METADATA: list[dict[str, Any]] = [
    {
        "site": ("north", "süd", "east")[n % 3],
        "level": n % 4 if n % 2 else float(n % 4),
        "staff": n % 5 == 0,
        "tags": ["a"],
        "none": None,
    }
    for n in range(PEOPLE)
]
WHERES: list[Where] = [
    {"site": ["north"]},
    {"site": ["süd", "east"]},
    {"level": [1]},
    {"level": [0, 2.0]},
    {"staff": [True]},
    {"staff": [1]},
    {"staff": ["true"]},
    {"site": ["north"], "level": [1, 3], "staff": [False]},
    {"site": ["west"]},
    {"si\u0301te": ["north"]},
    {"site": ["su\u0308d"]},
    {"tags": ["a"]},
    {"nothing": [1]},
    {"site": []},
    {},
]


def fill(gallery: Gallery) -> None:
    """Create the collection `doors`, in which face n is of the subject n % PEOPLE, and another one."""
    gallery.create("other", "face-embedder", "f1", 4)
    gallery.put_subject("other", "p0", metadata=METADATA[0])
    gallery.create("doors", "face-embedder", "f1", 4)
    gallery.enrol("doors", [NewFace(f"p{n % PEOPLE}", vector) for n, vector in enumerate(FACES)], "f1")
    for n, metadata in enumerate(METADATA):
        gallery.put_subject("doors", f"p{n}", metadata=metadata)


def matches_filter(metadata: Mapping[str, Any], where: Where) -> bool:
    """Return whether a subject with this metadata matches the filter."""

    def equal(a: object, b: object) -> bool:
        return a == b and isinstance(a, bool) == isinstance(b, bool)

    composed = {"su\u0308d": "süd", "si\u0301te": "síte"}  # form C of the values above
    return all(
        any(equal(metadata.get(composed.get(key, key)), composed.get(str(value), value)) for value in allowed)
        for key, allowed in where.items()
    )


def expected(query: Floats, where: Where, mean: bool = False) -> list[tuple[str, float]]:
    """Return key and similarity of each matching subject, most similar first."""
    results = []
    for n, metadata in enumerate(METADATA):
        if matches_filter(metadata, where):
            similarities = FACES[n::PEOPLE].astype(np.float64) @ query
            results.append((f"p{n}", float(similarities.mean() if mean else similarities.max())))
    return sorted(results, key=lambda result: -result[1])


def near(face: Floats, share: float, seed: int = 0) -> Floats:
    """Return a vector with the cosine `share` to the face."""
    other = vectors(1, seed=100 + seed)[0]
    other = other - (other @ face) * face
    return np.asarray(share * face + np.sqrt(1 - share**2) * other / np.linalg.norm(other), np.float32)
