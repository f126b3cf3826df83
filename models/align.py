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
# [112, 112, 2]: x and y of each pixel of the aligned picture.
GRID = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE)), axis=-1)
STRIP_PIXELS = 2**20
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
    places = (GRID - matrix[:, 2]) @ np.linalg.inv(turn).T  # [112, 112, 2]: the same points, in the picture
    photo = np.array(picture.size if isinstance(picture, Image.Image) else picture.shape[1::-1])
    smaller = np.maximum(1, np.rint(photo * min(scale, 1.0)))
    ratio = photo / smaller  # pixels of the photo in one of the smaller photo
    x, y = ((places[..., axis] + 0.5) / ratio[axis] - 0.5 for axis in (0, 1))  # [112, 112] each
    # Only the pixels of the smaller photo between these corners, with the neighbours that interpolation needs.
    lowest, highest = (np.floor([extreme(x), extreme(y)]) for extreme in (np.min, np.max))
    first = np.clip(lowest, 0, smaller - 1)
    last = np.clip(highest + 2, first + 1, smaller)
    part = _reduced(picture, photo, first, last, ratio)
    crop = _bilinear(part, x - first[0], y - first[1])
    return np.ascontiguousarray(np.moveaxis(np.rint(crop).astype(np.uint8), 0, -1))


def _reduced(
    picture: Image.Image | Pixels, size: npt.NDArray[np.int64], first: Doubles, last: Doubles, ratio: Doubles
) -> Floats:
    """Pixels `first` to `last` (x, y, exclusive) of the photo of `size` reduced by `ratio`: float32 [3, W', H'].

    Each is the mean of the area that it covers in the photo. The photo is read in strips of about STRIP_PIXELS, so that
    a face that fills a photo of 50 megapixels needs no copy of all of it.
    """
    across, along = (np.arange(low, high + 1) * step for low, high, step in zip(first, last, ratio, strict=True))
    left, right = int(across[0]), min(math.ceil(across[-1]), int(size[0]))
    fewer_rows = np.empty((len(along) - 1, right - left, 3), np.float32)
    height = max(1, int(STRIP_PIXELS / (right - left) / ratio[1]))  # in rows of the reduced photo
    for start in range(0, len(fewer_rows), height):
        edges = along[start : start + height + 1]
        top = int(edges[0])
        strip = _window(picture, (left, top, right, min(math.ceil(edges[-1]), int(size[1]))))
        fewer_rows[start : start + height] = _means(strip, edges - top)
    fewer = _means(np.ascontiguousarray(fewer_rows.transpose(1, 2, 0)), across - left)  # [W', 3, H']
    return np.ascontiguousarray(np.moveaxis(fewer, 1, 0))


def _window(picture: Image.Image | Pixels, box: tuple[int, int, int, int]) -> Pixels:
    """The pixels of a picture in the box (left, top, right, bottom): uint8 [rows, columns, 3].

    A Pillow picture is cropped before it is converted: converting all of it costs 96 ms for 12 megapixels, for each
    face of a group photo.
    """
    if isinstance(picture, Image.Image):
        part = picture.crop(box)
        return np.asarray(part if part.mode == "RGB" else part.convert("RGB"))
    left, top, right, bottom = box
    return picture[top:bottom, left:right]


def _means(lines: Pixels | Floats, edges: Doubles) -> Floats:
    """The mean of the lines [N, ...] between each two neighbours of `edges` [K + 1], as lines: float32 [K, ...].

    A line that lies partly between two edges counts for that share.

    Each sum is rounded to float32 after each addition, as in a product of matrices with fused multiply-add: existing
    collections were aligned by such a product, and aligned faces must stay the same to the bit. (For windows of more
    than some hundred rows BLAS adds in blocks: one value in some millions may differ by one grey level.) The product
    itself is not used because BLAS computes it in threads that wait actively: with two of them on one core, aligning 52
    faces took 1.7 s of processor time instead of 0.1 s.
    """
    low, high = edges[:-1], edges[1:]
    start = low.astype(int)
    sums = np.zeros((len(start), *lines.shape[1:]), np.float32)
    for step in range(math.ceil((high - start).max())):
        line = start + step
        covered = np.minimum(high, line + 1) - np.maximum(low, line)
        shares = np.asarray(covered.clip(min=0) / (high - low), np.float32).astype(np.float64)
        shares = shares.reshape(-1, *(1 for _ in lines.shape[1:]))
        sums = (sums + shares * lines[np.minimum(line, len(lines) - 1)]).astype(np.float32)
    return sums


def _bilinear(pixels: Floats, x: Doubles, y: Doubles) -> Floats:
    """The picture [C, W, H] between its pixels, at places [...] each; beyond its edge, its edge: [C, ...]."""
    channels, width, height = pixels.shape
    x, y = x.clip(0, width - 1), y.clip(0, height - 1)
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    right, bottom = np.minimum(left + 1, width - 1), np.minimum(top + 1, height - 1)
    across, down = (x - left).astype(np.float32), (y - top).astype(np.float32)
    flat = pixels.reshape(channels, -1)
    upper = flat.take(left * height + top, axis=1) * (1 - across) + flat.take(right * height + top, axis=1) * across
    lower = (
        flat.take(left * height + bottom, axis=1) * (1 - across) + flat.take(right * height + bottom, axis=1) * across
    )
    return np.asarray(upper * (1 - down) + lower * down, np.float32)


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
