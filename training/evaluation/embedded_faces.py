"""Embed faces for an evaluation: faces of a data set, and faces detected in photos."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from models.align import align
from models.card import ModelCard
from models.detection_scale import CenterFaceDetector
from models.detector import Detector, Pixels
from models.matching import Matching
from models.runtime import prepare
from training.core import weights
from training.core.errors import DataError
from training.datasets.images import ImageSet, Indices
from training.datasets.protocols import People, Search
from training.metrics.embedding import embed_faces, embed_rows, load_embedder, load_int8_embedder
from training.metrics.verification import Flags, Floats
from training.prepare.face_photos import choose, read_photo

# The similarity of a pair if one image has no face. Less than any cosine, so no threshold accepts the pair.
FAILED = -1.0
_AT_ONCE = 256

Embed = Callable[[Pixels], Floats]  # aligned faces [N, 112, 112, 3] to unit vectors [N, D]


class FaceEmbedder:
    """A calibrated embedder with the test-time augmentation of its card; with `int8` its quantised network.

    Raises:
        CheckpointError: see `checkpoint.load` and `checkpoint.load_int8`. DataError: another task, not calibrated, or
            without a quantised network.
    """

    card: ModelCard
    matching: Matching

    def __init__(self, folder: Path, *, int8: bool = False):
        self._runtime, self.card = load_int8_embedder(folder) if int8 else load_embedder(folder)
        if self.card.matching is None:
            raise DataError(f"{folder} is not calibrated: its card has no thresholds to measure")
        self.matching = self.card.matching

    def __call__(self, faces: Pixels) -> Floats:
        """Return the unit vectors [N, D] of aligned faces [N, 112, 112, 3]."""
        vectors = embed_faces(self._runtime, faces, self.card.preprocess, tta=self.card.tta)
        return np.asarray(vectors.double().numpy())

    def rows(self, images: ImageSet, rows: Indices) -> Floats:
        """Return the unit vectors [len(rows), D] of a data set that was loaded with the card's preprocessing."""
        vectors = embed_rows(self._runtime, images, rows, self.card.preprocess, tta=self.card.tta)
        return np.asarray(vectors.double().numpy())


@dataclass(frozen=True)
class EmbeddedFaces:
    """Unit vectors [N, D] and labels [N] of images; where `has_face` [N] is false, no face was detected.

    In the terms of ISO/IEC 19795 a missing face is a failure to acquire. Such an image is compared with the similarity
    `FAILED`.
    """

    vectors: Floats
    labels: Indices
    has_face: Flags

    @property
    def failures(self) -> int:
        """The number of images without a face."""
        return int((~self.has_face).sum())

    def take(self, positions: Indices) -> EmbeddedFaces:
        """Return some of the images."""
        return EmbeddedFaces(self.vectors[positions], self.labels[positions], self.has_face[positions])

    def pairs(self, positions: Indices, others: EmbeddedFaces | None = None) -> Floats:
        """Return the similarities [P] of pairs [P, 2]; the second vector is that of `others`, of the same images."""
        first, second = positions.T
        cosines = (self.vectors[first] * (others or self).vectors[second]).sum(axis=1)
        return np.where(self.has_face[first] & self.has_face[second], cosines, FAILED)

    def search(self, search: Search) -> Floats:
        """Return the similarities [Q, G] of a search's probes to its gallery."""
        cosines = self.vectors[search.probes] @ self.vectors[search.gallery].T
        return np.where(np.outer(self.has_face[search.probes], self.has_face[search.gallery]), cosines, FAILED)


def embed_photos(people: People, detector: Detector, embed: Embed, enlarged: int = 1) -> EmbeddedFaces:
    """Detect, align and embed the face nearest to the centre of each photo, which is enlarged `enlarged` times before.

    In LFW and ORL the labelled person is in the centre; others may be beside.

    Raises:
        DataError: an unreadable photo; no face in any.
    """
    has_face: list[bool] = []
    vectors: list[Floats] = []
    for first in tqdm(range(0, len(people.paths), _AT_ONCE), disable=None):
        faces = [_centre_face(path, detector, enlarged) for path in people.paths[first : first + _AT_ONCE]]
        has_face += [face is not None for face in faces]
        if present := [face for face in faces if face is not None]:
            vectors.append(embed(np.stack(present)))
    if not vectors:
        raise DataError(f"no face was found in any of {len(has_face)} photos, as {people.paths[0]}")
    present_vectors = np.concatenate(vectors)
    all_vectors = np.zeros((len(has_face), present_vectors.shape[1]))
    all_vectors[has_face] = present_vectors
    return EmbeddedFaces(all_vectors, people.labels, np.array(has_face))


def _centre_face(path: Path, detector: Detector, enlarged: int) -> Pixels | None:
    photo = read_photo(path)
    if isinstance(photo, str):
        raise DataError(f"{path}: {photo}")
    if enlarged != 1:
        photo = photo.resize((enlarged * photo.width, enlarged * photo.height), Image.Resampling.BICUBIC)
    faces = detector(photo)
    if not faces:
        return None
    try:
        return align(photo, choose(faces, photo.size, "centre").landmarks)
    except ValueError:  # all landmarks in one point
        return None


def load_detector(folder: Path) -> Detector:
    """Return CenterFace from its weights folder.

    Raises:
        CheckpointError, DataError: see `weights.load`.
    """
    module, card = weights.load(folder, "detect")
    return CenterFaceDetector(prepare(module), card.preprocess)
