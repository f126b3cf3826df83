"""From five landmarks to the 112x112 picture that the embedder reads, and how far that picture can be trusted.

The alignment is the similarity transform (rotation, one scale, shift) nearest to the template in least squares: S.
Umeyama, "Least-Squares Estimation of Transformation Parameters Between Two Point Patterns", PAMI 1991, without
reflections. Every face of the training data went through it. Points are pixel centres: (0, 0) is the middle of the top
left pixel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from models.detector import Face, Pixels, Point

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

SIDE = 112
# Left eye, right eye, nose tip, left and right mouth corner as seen in the picture, in the aligned one.
TEMPLATE: tuple[Point, ...] = (
    (38.2946, 51.6963),
    (73.5318, 51.5014),
    (56.0252, 71.7366),
    (41.5493, 92.3655),
    (70.7299, 92.2041),
)
# From above the eyes to below the mouth, cheek to cheek: mostly skin, hardly any background.
INNER = (slice(36, 108), slice(26, 87))


class NoAlignmentError(ValueError):
    """Points that are all the same, not finite, or so placed that no similarity transform fits them."""


def similarity(source: Sequence[Point], target: Sequence[Point] = TEMPLATE) -> Doubles:
    """The matrix [2, 3] of the similarity transform that takes `source` to `target` with the least squared error.

    Raises:
        ValueError: different numbers of points. NoAlignmentError.
    """
    if len(source) != len(target):
        raise ValueError(f"expected {len(target)} points, got {len(source)}")
    # As complex numbers a similarity is z -> a z + b, so the fit is one-dimensional and has a closed form.
    z, w = (np.asarray(points, np.float64) @ (1, 1j) for points in (source, target))
    centred = z - z.mean()
    spread = float((abs(centred) ** 2).sum())
    if not (math.isfinite(spread) and spread > 0):
        raise NoAlignmentError("points that are all the same, or not finite, have no alignment")
    a = complex((centred.conj() * (w - w.mean())).sum() / spread)
    if a == 0:
        raise NoAlignmentError("the best transform of these points makes one point of all")
    b = complex(w.mean() - a * z.mean())
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def align(picture: Image.Image | Pixels, landmarks: Sequence[Point]) -> Pixels:
    """The face with these landmarks, upright, from a picture (PIL, or uint8 [H, W, 3]): uint8 [112, 112, 3].

    A face larger than the template is first made smaller by averaging areas, so that nothing of it is skipped over.
    Outside the photo its edge goes on. Only the face's own part of the picture is read, so the cost depends on the size
    of the face, not on that of the picture.

    Raises:
        ValueError: see `similarity`; NoAlignmentError is one.
    """
    matrix = similarity(landmarks)
    turn = matrix[:, :2]
    scale = math.sqrt(np.linalg.det(turn))
    grid = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE)), axis=-1)  # [112, 112, 2]: x, y
    places = (grid - matrix[:, 2]) @ np.linalg.inv(turn).T  # the same points, in the picture
    photo = np.array(picture.size if isinstance(picture, Image.Image) else picture.shape[1::-1])
    smaller = np.maximum(1, np.rint(photo * min(scale, 1.0)))
    ratio = photo / smaller  # pixels of the photo in one of the smaller photo
    places = (places + 0.5) / ratio - 0.5
    # Only what is looked at: these pixels of the smaller photo, with the neighbours that interpolating asks for.
    corners = np.floor(places.reshape(-1, 2))
    first = np.clip(corners.min(axis=0), 0, smaller - 1)
    last = np.clip(corners.max(axis=0) + 2, first + 1, smaller)
    part = _reduced(picture, first, last, ratio)
    return np.rint(_bilinear(part, places - first)).astype(np.uint8)


def _reduced(picture: Image.Image | Pixels, first: Doubles, last: Doubles, ratio: Doubles) -> Floats:
    """Pixels `first` to `last` (x, y, exclusive) of the photo made smaller by `ratio`: [H', W', C].

    Each is the mean of the area that it covers in the photo.
    """
    across, along = (np.arange(low, high + 1) * step for low, high, step in zip(first, last, ratio, strict=True))
    left, right = int(across[0]), math.ceil(across[-1])
    top, bottom = int(along[0]), math.ceil(along[-1])
    part = _window(picture, left, top, right, bottom).astype(np.float32)
    fewer_rows = np.tensordot(_shares(along, top, part.shape[0]), part, axes=1)  # [H', W, C]
    return np.moveaxis(np.tensordot(_shares(across, left, part.shape[1]), fewer_rows, axes=(1, 1)), 0, 1)


def _window(picture: Image.Image | Pixels, left: int, top: int, right: int, bottom: int) -> Pixels:
    """The pixels of a picture in these columns and rows, which may end beyond it: uint8 [rows, columns, 3].

    A Pillow picture is cropped before it is converted: converting all of it costs 96 ms for 12 megapixels, for each
    face of a group photo.
    """
    if isinstance(picture, Image.Image):
        box = (left, top, min(right, picture.width), min(bottom, picture.height))
        return np.asarray(picture.crop(box).convert("RGB"))
    return picture[top:bottom, left:right]


def _shares(edges: Doubles, start: int, count: int) -> Floats:
    """[new, count]: the share of each old pixel, from `start` on, in each new one between two `edges`."""
    old = np.arange(start, start + count)
    covered = np.minimum(edges[1:, None], old + 1) - np.maximum(edges[:-1, None], old)
    return np.asarray(covered.clip(min=0) / np.diff(edges)[:, None], np.float32)


def _bilinear(pixels: Floats, places: Doubles) -> Floats:
    """The picture [H, W, C] between its pixels, at `places` [..., 2] (x, y); beyond its edge, its edge: [..., C]."""
    limits = np.array([pixels.shape[1], pixels.shape[0]]) - 1
    places = places.clip(0, limits)
    low = np.floor(places).astype(int)
    high = np.minimum(low + 1, limits)
    right, down = np.moveaxis((places - low).astype(np.float32), -1, 0)[..., None]
    top = pixels[low[..., 1], low[..., 0]] * (1 - right) + pixels[low[..., 1], high[..., 0]] * right
    bottom = pixels[high[..., 1], low[..., 0]] * (1 - right) + pixels[high[..., 1], high[..., 0]] * right
    return np.asarray(top * (1 - down) + bottom * down, np.float32)


# Amazon Rekognition's words for a face that was found and is not indexed.
Reason = Literal["SMALL_BOUNDING_BOX", "LOW_SHARPNESS", "EXTREME_POSE", "LOW_BRIGHTNESS", "LOW_CONFIDENCE"]


@dataclass(frozen=True)
class Quality:
    """Measures of one face.

    `side` is the box's shorter side in pixels of the picture. `brightness` is the mean of the inner face, 0..255.
    `sharpness` is the variance of its Laplacian as a share of the variance of its grey, so that contrast does not
    count. `yaw` is how far the nose tip lies beside the line from the middle of the eyes to the middle of the mouth,
    as a share of that line's length: 0 from the front, positive where it points to the picture's right. `pitch` is how
    far down that line the nose tip lies: about 0.5 from the front, less looking up. `confidence` is the detector's.
    """

    side: float
    sharpness: float
    yaw: float
    pitch: float
    brightness: float
    confidence: float


def measure(face: Face, crop: Pixels) -> Quality:
    """The quality of a face, of which `crop` is the aligned picture."""
    left, top, right, bottom = face.box
    grey = crop[INNER] @ np.array([0.299, 0.587, 0.114], np.float32)
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * grey[1:-1, 1:-1]
    yaw, pitch = _pose(face.landmarks)
    return Quality(
        side=min(right - left, bottom - top),
        sharpness=float(laplacian.var() / max(float(grey.var()), 1.0)),
        yaw=yaw,
        pitch=pitch,
        brightness=float(grey.mean()),
        confidence=face.score,
    )


def _pose(landmarks: Sequence[Point]) -> tuple[float, float]:
    """Yaw and pitch as `Quality` has them. Turning the head sideways within the picture changes neither."""
    left_eye, right_eye, nose, left_mouth, right_mouth = (complex(*point) for point in landmarks)
    eyes, mouth = (left_eye + right_eye) / 2, (left_mouth + right_mouth) / 2
    if eyes == mouth:
        return math.inf, math.inf
    # Divided by the line, a place along it is real, a place to its left (the picture's right, as it runs down) is not.
    place = (nose - eyes) / (mouth - eyes)
    return -place.imag, place.real


@dataclass(frozen=True)
class Limits:
    """Beyond these a face is better not enrolled. Chosen by looking at training faces and LFW, never at who they are.

    `side`: smaller faces' landmarks move by a tenth of the distance between the eyes when the picture is scaled anew,
    larger ones' by half of that. `sharpness`: no training face of 390 lies below; of the same faces blurred by 1.5
    pixels 1 in 6 does, by 2 pixels 6 in 10, by 3 pixels all. `yaw`: 1 training face in 100 is turned further, half to
    full profiles. `pitch`: training faces lie between 0.48 and 0.65. `brightness`: the darkest training face has 50.
    `confidence`: just above what the detector tells of.
    """

    side: float = 32.0
    sharpness: float = 0.01
    yaw: float = 0.35
    pitch: tuple[float, float] = (0.35, 0.8)
    brightness: float = 40.0
    confidence: float = 0.6


def reasons(quality: Quality, limits: Limits | None = None) -> tuple[Reason, ...]:
    """Why this face should not be enrolled, in Amazon Rekognition's words; empty for a good one."""
    limits = limits or Limits()
    turned = abs(quality.yaw) > limits.yaw or not limits.pitch[0] <= quality.pitch <= limits.pitch[1]
    against: tuple[tuple[Reason, bool], ...] = (
        ("SMALL_BOUNDING_BOX", quality.side < limits.side),
        ("LOW_SHARPNESS", quality.sharpness < limits.sharpness),
        ("EXTREME_POSE", turned),
        ("LOW_BRIGHTNESS", quality.brightness < limits.brightness),
        ("LOW_CONFIDENCE", quality.confidence < limits.confidence),
    )
    return tuple(reason for reason, holds in against if holds)
