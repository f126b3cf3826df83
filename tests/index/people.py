"""Test data for galleries: faces to enrol, a clock, and the content of a folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from index.embedded.gallery import EmbeddedGallery
from index.embedded.tasks.maintenance import Maintenance, MaintenanceLimits
from index.types import Face, Floats, NewFace

LIMITS = MaintenanceLimits(segment=8, exact_below=16, growth=2.0)


class Clock:
    """A clock that stands still unless a test changes `now`."""

    def __init__(self, now: float = 1_000_000.0):
        self.now = now

    def __call__(self) -> float:
        return self.now


def vectors(count: int, dimensions: int = 4, seed: int = 0) -> Floats:
    """Return different vectors of length 1, [count, dimensions]."""
    values = np.random.default_rng(seed).normal(size=(count, dimensions))
    return np.asarray(values / np.linalg.norm(values, axis=1, keepdims=True), np.float32)


def enrol(gallery: EmbeddedGallery, collection: str, count: int, seed: int = 0) -> list[Face]:
    """Enrol `count` faces, of the subjects p0 to p4 in turn."""
    target = gallery.collection(collection)
    faces = [NewFace(f"p{i % 5}", vector) for i, vector in enumerate(vectors(count, target.dimensions, seed))]
    return gallery.enrol(collection, faces, target.fingerprint)


def maintain(gallery: EmbeddedGallery) -> None:
    """Run a round of maintenance with small segments, and let other processes do the next one."""
    maintenance = Maintenance(gallery, LIMITS)
    assert maintenance.run()
    maintenance.release()


def folder_bytes(folder: Path) -> bytes:
    """Return the names and contents of all files, concatenated."""
    return b"".join(path.name.encode() + path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())
