"""One photo of somebody: read, its face found, judged, cut out. What `training.prepare_faces` does with each.

On a CPU photos go through the detector one after another; where there is CUDA, those of one shape together.
"""

from __future__ import annotations

import hashlib
import io
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
from models.detector import Detections, Face, Pixels, decode
from models.runtime import Runtime, default_device, prepare
from training.datasets.images import ImageSet, why_no_picture
from training.losses.metric_learning import unit
from training.metrics.classification import predict
from training.prepare.face_layouts import Photo, printable

Choice = Literal["largest", "centre"]
Outcome = Literal["kept", "unreadable", "no-face", "low-quality", "duplicate", "far", "too-few"]
_PHOTOS_AT_ONCE = 16
_MOST_PIXELS = 89_000_000  # of one photo
_PIXELS_AT_ONCE = 16_000_000  # decoded and held, beside the last photo
_DETECTION_THRESHOLD = 0.5
_WEBP_QUALITY = 90


@dataclass(frozen=True)
class Options:
    """What decides about a photo by itself. `embedder` is a weights folder where identities will be cleaned.

    `scales` names the rule for detection scales: "min-face" is the service's, "whole" detects at the detector's size
    only, which finds no small faces of large photos, and reproduces data sets that were made before there were scales.
    """

    detector: Path = Path("weights/centerface")
    choose: Choice = "largest"
    limits: QualityThresholds = field(default_factory=QualityThresholds)
    embedder: Path | None = None
    scales: Scales = "min-face"


@dataclass(frozen=True)
class Judged:
    """What became of one photo. `reasons` are words for `low-quality`, else a short text.

    Of `kept` ones `digest` is the SHA-256 of the decoded photo, `crop` its face as WebP, `vector` the face's embedding
    where identities are cleaned.
    """

    identity: str
    path: str
    outcome: Outcome
    reasons: str = ""
    digest: str = ""
    crop: bytes = b""
    vector: Sequence[float] = ()


class Examiner:
    """The networks that a photo is judged with, loaded."""

    def __init__(self, options: Options):
        self._options = options
        network, card = checkpoint.load(options.detector)
        self._detect, self._sight = prepare(network), card.preprocess
        # On a CPU several at once take longer than one after another: their maps do not fit into its caches.
        self._at_once = 1 if default_device().type == "cpu" else _PHOTOS_AT_ONCE
        self._threshold = min(_DETECTION_THRESHOLD, options.limits.confidence)
        self._embed: tuple[Runtime, ModelCard] | None = None
        if options.embedder:
            network, card = checkpoint.load(options.embedder)
            self._embed = prepare(network), card

    def __call__(self, folder: Path, photos: Sequence[Photo]) -> list[Judged]:
        """The photos below `folder`, each judged by itself, in their order."""
        judged: list[Judged] = []
        crops: list[Pixels] = []
        for window in _windows(folder, photos):
            found = iter(self._find([picture for _, picture in window if isinstance(picture, Image.Image)]))
            for photo, picture in window:
                blank = Judged(photo.identity, printable(photo.path), "unreadable")
                if isinstance(picture, str):
                    judged.append(replace(blank, reasons=picture))
                    continue
                one, crop = self._judge(blank, picture, next(found))
                judged.append(one)
                crops += [crop] if crop is not None else []
        vectors = iter(self._vectors(crops))
        return [replace(one, vector=next(vectors, ())) if one.outcome == "kept" else one for one in judged]

    def _find(self, pictures: Sequence[Image.Image]) -> list[list[Face]]:
        """The faces of each picture; tiles of one shape go through the network together."""
        rule = detection_scale.whole if self._options.scales == "whole" else detection_scale.scan
        plans = [rule(picture.size, self._sight) for picture in pictures]
        # Of each picture the tiles of all levels, one after the other.
        tiles = [
            tile
            for picture, plan in zip(pictures, plans, strict=True)
            for level in detection_scale.prepare(picture, plan, self._sight)
            for tile in level
        ]
        found = iter(self._detections(tiles))
        return [
            detection_scale.merge(plan, [[next(found) for _ in level.tiles] for level in plan.levels]) for plan in plans
        ]

    def _detections(self, tiles: Sequence[Pixels]) -> list[Detections]:
        """What the detector finds in each tile."""
        shapes: dict[tuple[int, ...], list[int]] = {}
        for place, tile in enumerate(tiles):
            shapes.setdefault(tile.shape, []).append(place)
        found: dict[int, Detections] = {}
        for places in shapes.values():
            for first in range(0, len(places), self._at_once):
                group = places[first : first + self._at_once]
                batch = torch.from_numpy(np.stack([tiles[place] for place in group]))
                outputs = self._detect(self._sight.normalise(batch))
                found |= zip(group, decode(outputs, self._threshold), strict=True)
        return [found[place] for place in range(len(tiles))]

    def _judge(self, blank: Judged, picture: Image.Image, faces: Sequence[Face]) -> tuple[Judged, Pixels | None]:
        """With the aligned face where it is kept."""
        if not faces:
            return replace(blank, outcome="no-face"), None
        face = choose(faces, picture.size, self._options.choose)
        try:
            crop = align(picture, face.landmarks)
        except ValueError as error:
            return replace(blank, outcome="no-face", reasons=str(error)), None
        against = reasons(measure(face, crop), self._options.limits)
        if against:
            return replace(blank, outcome="low-quality", reasons=" ".join(against)), None
        digest = hashlib.sha256(repr(picture.size).encode() + picture.tobytes()).hexdigest()
        return replace(blank, outcome="kept", digest=digest, crop=_webp(crop)), crop

    def _vectors(self, crops: Sequence[Pixels]) -> list[list[float]]:
        """Embeddings on the unit sphere as serving has them, of its card's views; none where nothing is cleaned."""
        if self._embed is None or not crops:
            return []
        runtime, card = self._embed
        pixels = np.stack([card.preprocess.pixels(Image.fromarray(crop)) for crop in crops])
        rows = np.arange(len(crops))
        views = predict(runtime, ImageSet(pixels, rows, ()), rows, card.preprocess, tta=card.tta)
        vectors: list[list[float]] = unit(views.sum(dim=0)).tolist()
        return vectors


def choose(faces: Sequence[Face], size: tuple[int, int], choice: Choice) -> Face:
    """The largest of some faces, or the one whose middle is nearest to that of the photo of `size` (width, height)."""
    if choice == "largest":
        return max(faces, key=lambda face: face.area)
    width, height = size
    return min(
        faces,
        key=lambda face: math.dist((face.box[0] + face.box[2], face.box[1] + face.box[3]), (width, height)),
    )


def _webp(crop: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(crop).save(buffer, "WEBP", quality=_WEBP_QUALITY)
    return buffer.getvalue()


def _windows(folder: Path, photos: Sequence[Photo]) -> Iterator[list[tuple[Photo, Image.Image | str]]]:
    """Some photos at a time, decoded, so many as memory allows; see `read_photo`."""
    window: list[tuple[Photo, Image.Image | str]] = []
    pixels = 0
    for photo in photos:
        picture = read_photo(folder / photo.path)
        window.append((photo, picture))
        pixels += picture.width * picture.height if isinstance(picture, Image.Image) else 0
        if len(window) == _PHOTOS_AT_ONCE or pixels >= _PIXELS_AT_ONCE:
            yield window
            window, pixels = [], 0
    if window:
        yield window


def read_photo(path: Path) -> Image.Image | str:
    """A photo as `image_decoder` reads it, or the reason why it cannot be read.

    A file whose header names more than `_MOST_PIXELS` is not decoded.
    """
    if (reason := why_no_picture(path)) is not None:
        return reason
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with image_decoder.open_image(path, image_decoder.FILE_FORMATS) as image:
                # Pillow's own limit is the process's, and somebody may have turned it off.
                if image.width * image.height > _MOST_PIXELS:
                    return "too many pixels"
                return image_decoder.load_file(image)
    except image_decoder.DamagedError as error:
        # No message: it may name this machine's folders.
        return f"damaged: {type(error.__cause__).__name__}"
    except image_decoder.DecodeError as error:
        return str(error)
