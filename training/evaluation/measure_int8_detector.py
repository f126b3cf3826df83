"""Measure the quantised network of a face detector beside torch: its faces, and verification with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from models import checkpoint
from models.card import Metric
from models.detection_agreement import compare_faces
from models.detection_scale import CenterFaceDetector
from models.detector import LANDMARKS, Detections, Detector, Face, Pixels
from models.openvino_runtime import OpenVinoInt8AnySizeRuntime
from training.core import weights
from training.core.errors import DataError
from training.datasets.protocols import read_lfw, read_views
from training.evaluation.embedded_faces import EmbeddedFaces, FaceEmbedder, embed_photos, load_detector
from training.evaluation.measure_faces import verify
from training.evaluation.report_faces import verification_metrics
from training.recipe.config import runs_folder

# The suffixes of the figures' names, for the detectors of a pair's first and second photo: 0 torch, 1 quantised.
_DETECTORS = {"": (0, 0), "_int8": (1, 1), "_mixed": (0, 1)}


class _RecordingDetector:
    """A detector that keeps the faces of all images, in `found`."""

    def __init__(self, detector: Detector):
        self._detector = detector
        self.found: list[Detections] = []

    def __call__(self, image: Image.Image | Pixels, /) -> list[Face]:
        """See `Detector`."""
        faces = self._detector(image)
        boxes = torch.tensor([face.box for face in faces]).reshape(-1, 4)
        landmarks = torch.tensor([face.landmarks for face in faces]).reshape(-1, LANDMARKS, 2)
        self.found.append(Detections(boxes, torch.tensor([face.score for face in faces]), landmarks))
        return faces


def load_int8_detector(folder: Path) -> Detector:
    """Return CenterFace's quantised network from its weights folder.

    Raises:
        CheckpointError: see `checkpoint.load_int8`. DataError: see `weights.read_card`; there is no quantised network.
    """
    card = weights.read_card(folder, "detect")
    int8 = checkpoint.load_int8(folder, card)
    if int8 is None:
        raise DataError(f"{folder} has no quantised network: `vestibule quantise {card.name}` writes it")
    cache = runs_folder() / "cache" / "compiled"
    return CenterFaceDetector(OpenVinoInt8AnySizeRuntime(*int8, card.preprocess.shape, cache), card.preprocess)


def measure(folder: Path, lfw: Path, embedder_folder: Path) -> list[Metric]:
    """Return figures of the detector in `folder` on LFW's photos, and on its lists of pairs with an embedder.

    `same_faces_int8` is the share of photos with the same faces; `landmarks_*_int8` are distances of landmarks as
    shares of the distance of the eyes; `cosine_*_int8` are cosines of two vectors of a photo, whose faces the two
    detectors found. Verification figures with the suffix `_int8` are of pairs of photos whose faces the quantised
    network found, with `_mixed` of pairs whose second photo's face it found.

    Raises:
        CheckpointError, DataError: see `load_detector`, `load_int8_detector`, `FaceEmbedder`,
            `training.datasets.protocols`.
    """
    embedder, people = FaceEmbedder(embedder_folder), read_lfw(lfw)
    detectors = [_RecordingDetector(load(folder)) for load in (load_detector, load_int8_detector)]
    photos = [embed_photos(people, detector, embedder) for detector in detectors]
    agreement = compare_faces(detectors[0].found, detectors[1].found)
    figures = {
        "same_faces": agreement.share,
        "landmarks_median": agreement.percentile(0.5),
        "landmarks_p95": agreement.percentile(0.95),
        **_cosines(photos),
    }
    data = f"{len(people.paths):,} photos of LFW"
    metrics = [Metric(name=f"{name}_int8", value=value, data=data) for name, value in figures.items()]
    for name, pairs in read_views(lfw, people).items():
        for suffix, (first, second) in _DETECTORS.items():
            part = verify(f"LFW {name}, {embedder.card.name}", photos[first], pairs, photos[second])
            metrics += verification_metrics([part], suffix)
    return metrics


def _cosines(photos: list[EmbeddedFaces]) -> dict[str, float]:
    both = photos[0].has_face & photos[1].has_face
    cosines = (photos[0].vectors * photos[1].vectors).sum(axis=1)[both]
    return {"cosine_median": float(np.median(cosines)), "cosine_p05": float(np.quantile(cosines, 0.05))}
