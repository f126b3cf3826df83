"""Read a photo, detect its face, check the quality and cut the face out, for `training.prepare_faces`.

On a CPU the detector runs on one photo at a time, with CUDA on batches of photos of one shape.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image

from models import checkpoint, detection_scale, image_decoder
from models.align import QualityThresholds, align, measure, reasons
from models.card import ModelCard
from models.detection_scale import Scales
from models.detector import DETECTION_THRESHOLD, Detections, Face, Pixels, decode
from models.imported_runtime import load_reference
from models.runtime import Runtime, default_device, prepare
from training.datasets.images import why_no_image
from training.metrics.embedding import embed_faces
from training.prepare.face_layouts import Photo, printable

Choice = Literal["largest", "centre"]
Outcome = Literal["kept", "unreadable", "no-face", "low-quality", "duplicate", "far", "too-few"]
_PHOTOS_AT_ONCE = 16
_MOST_PIXELS = 89_000_000  # of one photo
_PIXELS_AT_ONCE = 16_000_000  # decoded at the same time, not counting the last photo
_WEBP_QUALITY = 90


@dataclass(frozen=True)
class PhotoOptions:
    """Options for judging single photos; `embedder` is a weights folder if outliers will be removed.

    `scales` is the rule for detection scales: "min-face" is the service's; "whole" detects at the detector's size only,
    which misses small faces in large photos, and reproduces data sets older than the detection scales.
    """

    detector: Path = Path("weights/centerface")
    choose: Choice = "largest"
    limits: QualityThresholds = field(default_factory=QualityThresholds)
    embedder: Path | None = None
    scales: Scales = "min-face"


@dataclass(frozen=True)
class JudgedPhoto:
    """A photo and its outcome. `reasons` are words for `low-quality`, else a short text.

    If it is `kept`, `digest` is the SHA-256 of the decoded photo, `crop` its face as WebP, and `vector` the face's
    embedding if outliers will be removed.
    """

    identity: str
    path: str
    outcome: Outcome
    reasons: str = ""
    digest: str = ""
    crop: bytes = b""
    vector: Sequence[float] = ()


class PhotoExaminer:
    """Judges photos with a detector and, if outliers will be removed, an embedder."""

    def __init__(self, options: PhotoOptions):
        self._options = options
        network, card = checkpoint.load(options.detector)
        self._detect, self._preprocess = prepare(network), card.preprocess
        # On a CPU a batch takes longer than its photos one by one: the feature maps exceed the caches.
        self._at_once = 1 if default_device().type == "cpu" else _PHOTOS_AT_ONCE
        self._threshold = min(DETECTION_THRESHOLD, options.limits.confidence)
        self._embed: tuple[Runtime, ModelCard] | None = None
        if options.embedder:
            self._embed = load_reference(options.embedder)

    def __call__(self, folder: Path, photos: Sequence[Photo]) -> list[JudgedPhoto]:
        """Return the photos below `folder` with their outcomes, in the same order."""
        judged: list[JudgedPhoto] = []
        crops: list[Pixels] = []
        for window in _windows(folder, photos):
            detected = iter(self._detect_all([image for _, image in window if isinstance(image, Image.Image)]))
            for photo, image in window:
                unreadable = JudgedPhoto(photo.identity, printable(photo.path), "unreadable")
                if isinstance(image, str):
                    judged.append(replace(unreadable, reasons=image))
                    continue
                result, crop = self._judge(unreadable, image, next(detected))
                judged.append(result)
                crops += [crop] if crop is not None else []
        vectors = iter(self._vectors(crops))
        return [replace(photo, vector=next(vectors, ())) if photo.outcome == "kept" else photo for photo in judged]

    def _detect_all(self, images: Sequence[Image.Image]) -> list[list[Face]]:
        """Return the faces of each image; tiles of one shape are detected in batches."""
        rule = detection_scale.whole if self._options.scales == "whole" else detection_scale.scan
        plans = [rule(image.size, self._preprocess) for image in images]
        # The tiles of all levels of the first image, then those of the next.
        tiles = [
            tile
            for image, plan in zip(images, plans, strict=True)
            for level in detection_scale.prepare(image, plan, self._preprocess)
            for tile in level
        ]
        detections = iter(self._detect_tiles(tiles))
        return [
            detection_scale.merge(plan, [[next(detections) for _ in level.tiles] for level in plan.levels])
            for plan in plans
        ]

    def _detect_tiles(self, tiles: Sequence[Pixels]) -> list[Detections]:
        """Return the detections in each tile."""
        shapes: dict[tuple[int, ...], list[int]] = {}
        for position, tile in enumerate(tiles):
            shapes.setdefault(tile.shape, []).append(position)
        detections: dict[int, Detections] = {}
        for positions in shapes.values():
            for first in range(0, len(positions), self._at_once):
                batch = positions[first : first + self._at_once]
                pixels = torch.from_numpy(np.stack([tiles[position] for position in batch]))
                outputs = self._detect(self._preprocess.normalise(pixels))
                detections |= zip(batch, decode(outputs, self._threshold), strict=True)
        return [detections[position] for position in range(len(tiles))]

    def _judge(
        self, photo: JudgedPhoto, image: Image.Image, faces: Sequence[Face]
    ) -> tuple[JudgedPhoto, Pixels | None]:
        """Return the photo with its outcome, and the aligned face if it is kept."""
        if not faces:
            return replace(photo, outcome="no-face"), None
        face = choose(faces, image.size, self._options.choose)
        try:
            crop = align(image, face.landmarks)
        except ValueError as error:
            return replace(photo, outcome="no-face", reasons=str(error)), None
        defects = reasons(measure(face, crop), self._options.limits)
        if defects:
            return replace(photo, outcome="low-quality", reasons=" ".join(defects)), None
        digest = hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()
        face_image = Image.fromarray(crop)
        webp = checkpoint.bytes_of(lambda file: face_image.save(file, "WEBP", quality=_WEBP_QUALITY))
        return replace(photo, outcome="kept", digest=digest, crop=webp), crop

    def _vectors(self, crops: Sequence[Pixels]) -> list[list[float]]:
        """Return the embeddings of `crops` as serving computes them; an empty list without an embedder."""
        if self._embed is None or not crops:
            return []
        runtime, card = self._embed
        vectors: list[list[float]] = embed_faces(runtime, np.stack(crops), card.preprocess, tta=card.tta).tolist()
        return vectors


def choose(faces: Sequence[Face], size: tuple[int, int], choice: Choice) -> Face:
    """Return the largest face, or the one nearest to the centre of a photo of `size` (width, height)."""
    if choice == "largest":
        return max(faces, key=lambda face: face.area)
    width, height = size
    return min(
        faces,
        key=lambda face: math.dist((face.box[0] + face.box[2], face.box[1] + face.box[3]), (width, height)),
    )


def _windows(folder: Path, photos: Sequence[Photo]) -> Iterator[list[tuple[Photo, Image.Image | str]]]:
    """Yield decoded photos in groups of limited number and size; see `read_photo`."""
    window: list[tuple[Photo, Image.Image | str]] = []
    pixels = 0
    for photo in photos:
        image = read_photo(folder / photo.path)
        window.append((photo, image))
        pixels += image.width * image.height if isinstance(image, Image.Image) else 0
        if len(window) == _PHOTOS_AT_ONCE or pixels >= _PIXELS_AT_ONCE:
            yield window
            window, pixels = [], 0
    if window:
        yield window


def read_photo(path: Path) -> Image.Image | str:
    """Return a decoded photo, or the reason why it cannot be read.

    A file whose header states more than `_MOST_PIXELS` is not decoded.
    """
    if (reason := why_no_image(path)) is not None:
        return reason
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with image_decoder.open_image(path, image_decoder.FILE_FORMATS) as image:
                # Pillow's own limit is global, and may be disabled.
                if image.width * image.height > _MOST_PIXELS:
                    return "too many pixels"
                return image_decoder.load_file(image)
    except image_decoder.DamagedError as error:
        # Omit the message, which may contain paths.
        return f"damaged: {type(error.__cause__).__name__}"
    except image_decoder.DecodeError as error:
        return str(error)
