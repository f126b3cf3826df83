"""Vectors and faces to enrol, and the content of a folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from index.embedded.gallery import EmbeddedGallery
from index.types import Face, Floats, NewFace


def vectors(count: int, dimensions: int = 4, seed: int = 0) -> Floats:
    """Random vectors [N, D] of length 1."""
    rows = np.random.default_rng(seed).normal(size=(count, dimensions))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def enrol(gallery: EmbeddedGallery, name: str, count: int, seed: int = 0) -> list[Face]:
    """Enrol `count` faces of five subjects in turn, and return them."""
    collection = gallery.collection(name)
    rows = vectors(count, collection.dimensions, seed)
    return gallery.enrol(name, [NewFace(f"p{i % 5}", row) for i, row in enumerate(rows)], collection.fingerprint)


def folder_bytes(folder: Path) -> bytes:
    """Names and contents of all files in the folder."""
    return b"".join(path.name.encode() + path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())
