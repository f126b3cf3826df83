"""Faces to enrol, and what a folder holds of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from index.embedded.gallery import EmbeddedGallery
from index.types import Face, Floats, NewFace


def vectors(count: int, dimensions: int = 4, seed: int = 0) -> Floats:
    """Of length 1, no two alike."""
    made = np.random.default_rng(seed).normal(size=(count, dimensions))
    return np.asarray(made / np.linalg.norm(made, axis=1, keepdims=True), np.float32)


def enrol(gallery: EmbeddedGallery, collection: str, count: int, seed: int = 0) -> list[Face]:
    """`count` faces of five people in turn."""
    found = gallery.collection(collection)
    faces = [NewFace(f"p{i % 5}", vector) for i, vector in enumerate(vectors(count, found.dimensions, seed))]
    return gallery.enrol(collection, faces, found.fingerprint)


def folder_bytes(folder: Path) -> bytes:
    """Every file's name and content."""
    return b"".join(path.name.encode() + path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())
