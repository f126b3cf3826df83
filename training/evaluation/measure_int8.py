"""Measure the quantised network of a face embedder beside torch, and the vectors of one against those of the other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from models.card import Metric
from models.detector import Pixels
from training.datasets import images
from training.datasets.faces import draw_pairs, rows_of
from training.datasets.protocols import read_lfw, read_views
from training.evaluation.embedded_faces import EmbeddedFaces, FaceEmbedder, embed_photos, load_detector
from training.evaluation.measure_faces import IMPOSTORS, MATED, SEED, Verification, verify, verify_against
from training.evaluation.report_faces import verification_metrics
from training.metrics.verification import Floats

# The suffixes of the figures' names, for the networks of a pair's first and second vector: 0 torch, 1 quantised.
_NETWORKS = {"": (0, 0), "_int8": (1, 1), "_mixed": (0, 1)}


def measure(folder: Path, dataset: str, lfw: Path | None, detector: Path) -> list[Metric]:
    """Return figures of the embedder in `folder` on a data set's test identities and on LFW's lists of pairs.

    Raises:
        CheckpointError, DataError, DatasetNotFoundError: see `FaceEmbedder`, `load_detector`, `images.load`, `rows_of`,
            `training.datasets.protocols`; the test identities have no mated or no non-mated pairs.
    """
    embedders = FaceEmbedder(folder), FaceEmbedder(folder, int8=True)
    parts = [*_on_identities(embedders, dataset), *(_on_lfw(embedders, lfw, detector) if lfw else [])]
    return [metric for suffix, part in parts for metric in verification_metrics([part], suffix)]


def _on_identities(embedders: tuple[FaceEmbedder, FaceEmbedder], dataset: str) -> Iterator[tuple[str, Verification]]:
    faces = images.load(dataset, "train", embedders[0].card.preprocess)
    rows = rows_of(faces, "test")
    pairs = draw_pairs(faces, rows, MATED, IMPOSTORS, SEED)
    vectors = [embedder.rows(faces, rows) for embedder in embedders]
    for suffix, (first, second) in _NETWORKS.items():
        yield suffix, verify_against(f"{dataset}, all", pairs, rows, vectors[first], vectors[second])


def _on_lfw(
    embedders: tuple[FaceEmbedder, FaceEmbedder], folder: Path, detector: Path
) -> Iterator[tuple[str, Verification]]:
    def embed(faces: Pixels) -> Floats:
        """Return both networks' vectors [N, 2 D] of faces that are detected once."""
        return np.concatenate([embedder(faces) for embedder in embedders], axis=1)

    people = read_lfw(folder)
    photos = embed_photos(people, load_detector(detector), embed)
    halves = [EmbeddedFaces(vectors, photos.labels, photos.has_face) for vectors in np.split(photos.vectors, 2, axis=1)]
    for name, pairs in read_views(folder, people).items():
        for suffix, (first, second) in _NETWORKS.items():
            yield suffix, verify(f"LFW {name}", halves[first], pairs, halves[second])
