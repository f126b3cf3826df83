"""Align a face by five landmarks to the 112x112 image that the embedder takes, and measure its quality.

The alignment is the similarity transform (rotation, one scale, shift) nearest to the template in least squares: S.
Umeyama, "Least-Squares Estimation of Transformation Parameters Between Two Point Patterns", PAMI 1991, without
reflections. All faces of the training data are aligned by it. Points are pixel centres: (0, 0) is the middle of the top
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
# Left eye, right eye, nose tip, left and right mouth corner as seen in the image, in the aligned image.
TEMPLATE: tuple[Point, ...] = (
    (38.2946, 51.6963),
    (73.5318, 51.5014),
    (56.0252, 71.7366),
    (41.5493, 92.3655),
    (70.7299, 92.2041),
)
# [112, 112, 2]: x and y of each pixel of the aligned image.
GRID = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE)), axis=-1)
STRIP_PIXELS = 2**20
# The inner face, from above the eyes to below the mouth, cheek to cheek: mostly skin, hardly any background.
INNER = (slice(36, 108), slice(26, 87))


class NoAlignmentError(ValueError):
    """The points are equal or not finite, or no similarity transform fits them."""


def similarity(source: Sequence[Point], target: Sequence[Point] = TEMPLATE) -> Doubles:
    """The matrix [2, 3] of the similarity transform from `source` to `target` with the least squared error.

    Raises:
        ValueError: if the numbers of points differ. NoAlignmentError.
    """
    if len(source) != len(target):
        raise ValueError(f"expected {len(target)} points, got {len(source)}")
    # With complex numbers a similarity is z -> a z + b, so the fit is one-dimensional and has a closed form.
    z, w = (np.asarray(points, np.float64) @ (1, 1j) for points in (source, target))
    centred = z - z.mean()
    spread = float((abs(centred) ** 2).sum())
    if not (math.isfinite(spread) and spread > 0):
        raise NoAlignmentError("points that are all equal, or not finite, have no alignment")
    a = complex((centred.conj() * (w - w.mean())).sum() / spread)
    if a == 0:
        raise NoAlignmentError("the best transform of these points maps all to one point")
    b = complex(w.mean() - a * z.mean())
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def align(image: Image.Image | Pixels, landmarks: Sequence[Point]) -> Pixels:
    """The aligned face with these landmarks in an image (PIL, or uint8 [H, W, 3]): uint8 [112, 112, 3].

    A face larger than the template is first reduced by averaging areas, so that no pixel is skipped. Beyond the image,
    its edge is repeated. Only the face's part of the image is read, so the cost depends on the size of the face, not of
    the image.

    Raises:
        ValueError: see `similarity`; NoAlignmentError is a subclass.
    """
    matrix = similarity(landmarks)
    rotation = matrix[:, :2]
    scale = math.sqrt(np.linalg.det(rotation))
    points = (GRID - matrix[:, 2]) @ np.linalg.inv(rotation).T  # [112, 112, 2]: the grid in the image
    photo = np.array(image.size if isinstance(image, Image.Image) else image.shape[1::-1])
    smaller = np.maximum(1, np.rint(photo * min(scale, 1.0)))
    ratio = photo / smaller  # pixels of the photo per pixel of the smaller photo
    x, y = ((points[..., axis] + 0.5) / ratio[axis] - 0.5 for axis in (0, 1))  # [112, 112] each
    # Only the pixels of the smaller photo between these corners, with the neighbours that interpolation needs.
    lowest, highest = (np.floor([extreme(x), extreme(y)]) for extreme in (np.min, np.max))
    first = np.clip(lowest, 0, smaller - 1)
    last = np.clip(highest + 2, first + 1, smaller)
    part = _reduced(image, photo, first, last, ratio)
    crop = _bilinear(part, x - first[0], y - first[1])
    return np.ascontiguousarray(np.moveaxis(np.rint(crop).astype(np.uint8), 0, -1))


def _reduced(
    image: Image.Image | Pixels, size: npt.NDArray[np.int64], first: Doubles, last: Doubles, ratio: Doubles
) -> Floats:
    """Pixels `first` to `last` (x, y, exclusive) of the photo of `size` reduced by `ratio`: float32 [3, W', H'].

    Each is the mean of the area that it covers in the photo. The photo is read in strips of about STRIP_PIXELS, so that
    a face that fills a photo of 50 megapixels does not need a copy of the photo.
    """
    across, along = (np.arange(low, high + 1) * step for low, high, step in zip(first, last, ratio, strict=True))
    left, right = int(across[0]), min(math.ceil(across[-1]), int(size[0]))
    fewer_rows = np.empty((len(along) - 1, right - left, 3), np.float32)
    height = max(1, int(STRIP_PIXELS / (right - left) / ratio[1]))  # in rows of the reduced photo
    for start in range(0, len(fewer_rows), height):
        edges = along[start : start + height + 1]
        top = int(edges[0])
        strip = _window(image, (left, top, right, min(math.ceil(edges[-1]), int(size[1]))))
        fewer_rows[start : start + height] = _means(strip, edges - top)
    fewer = _means(np.ascontiguousarray(fewer_rows.transpose(1, 2, 0)), across - left)  # [W', 3, H']
    return np.ascontiguousarray(np.moveaxis(fewer, 1, 0))


def _window(image: Image.Image | Pixels, box: tuple[int, int, int, int]) -> Pixels:
    """The pixels of an image in the box (left, top, right, bottom): uint8 [rows, columns, 3].

    A Pillow image is cropped before the conversion, which takes 96 ms for 12 megapixels and would run for each face of
    a group photo.
    """
    if isinstance(image, Image.Image):
        window = image.crop(box)
        return np.asarray(window if window.mode == "RGB" else window.convert("RGB"))
    left, top, right, bottom = box
    return image[top:bottom, left:right]


def _means(lines: Pixels | Floats, edges: Doubles) -> Floats:
    """The means of the lines [N, ...] between neighbouring `edges` [K + 1]: float32 [K, ...].

    A line that lies partly between two edges is weighted by that share.

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
    """The image [C, W, H] interpolated bilinearly at `x` and `y`, both [...], its edges repeated: [C, ...]."""
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


# Amazon Rekognition's reasons not to index a detected face.
Reason = Literal["SMALL_BOUNDING_BOX", "LOW_SHARPNESS", "EXTREME_POSE", "LOW_BRIGHTNESS", "LOW_CONFIDENCE"]


@dataclass(frozen=True)
class Quality:
    """Measures of a face.

    `side` is the box's shorter side in pixels of the image. `brightness` is the mean of the inner face, 0..255.
    `sharpness` is the variance of its Laplacian divided by the variance of its grey values, so that it does not depend
    on contrast. `yaw` is the distance of the nose tip from the line between the centres of eyes and mouth, as a share
    of the line's length: 0 from the front, positive if the nose points to the image's right. `pitch` is the position of
    the nose tip along that line: about 0.5 from the front, less if looking up. `confidence` is the detector's.
    """

    side: float
    sharpness: float
    yaw: float
    pitch: float
    brightness: float
    confidence: float


def measure(face: Face, crop: Pixels) -> Quality:
    """The quality of a face; `crop` is its aligned image."""
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
    """Yaw and pitch of `Quality`, which do not depend on the face's rotation in the image plane."""
    left_eye, right_eye, nose, left_mouth, right_mouth = (complex(*point) for point in landmarks)
    eyes, mouth = (left_eye + right_eye) / 2, (left_mouth + right_mouth) / 2
    if eyes == mouth:
        return math.inf, math.inf
    # In units of the line, the real part is the position along it, the imaginary part the distance to its left.
    position = (nose - eyes) / (mouth - eyes)
    return -position.imag, position.real


@dataclass(frozen=True)
class QualityThresholds:
    """The thresholds beyond which a face should not be enrolled, chosen by inspecting training faces and LFW.

    `side`: when an image is rescaled, landmarks of smaller faces move by a tenth of the distance between the eyes,
    those of larger faces by half of that. `sharpness`: none of 390 training faces is below; of the same faces blurred
    by 1.5 pixels 1 in 6 is, by 2 pixels 6 in 10, by 3 pixels all. `yaw`: 1 training face in 100 is turned further, half
    to full profiles. `pitch`: training faces are between 0.48 and 0.65. `brightness`: the darkest training face has 50.
    `confidence`: slightly above the detector's threshold.
    """

    side: float = 32.0
    sharpness: float = 0.01
    yaw: float = 0.35
    pitch: tuple[float, float] = (0.35, 0.8)
    brightness: float = 40.0
    confidence: float = 0.6


def reasons(quality: Quality, thresholds: QualityThresholds | None = None) -> tuple[Reason, ...]:
    """The reasons not to enrol a face of this quality, in Amazon Rekognition's terms; empty if there are none."""
    thresholds = thresholds or QualityThresholds()
    turned = abs(quality.yaw) > thresholds.yaw or not thresholds.pitch[0] <= quality.pitch <= thresholds.pitch[1]
    checks: tuple[tuple[Reason, bool], ...] = (
        ("SMALL_BOUNDING_BOX", quality.side < thresholds.side),
        ("LOW_SHARPNESS", quality.sharpness < thresholds.sharpness),
        ("EXTREME_POSE", turned),
        ("LOW_BRIGHTNESS", quality.brightness < thresholds.brightness),
        ("LOW_CONFIDENCE", quality.confidence < thresholds.confidence),
    )
    return tuple(reason for reason, applies in checks if applies)
