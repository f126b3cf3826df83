"""Alignment against scikit-image's fit and OpenCV's warp; quality of degraded images."""

from __future__ import annotations

import math
import tracemalloc
from dataclasses import replace
from typing import NoReturn

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter
from skimage.transform import SimilarityTransform

from models.align import (
    SIDE,
    TEMPLATE,
    NoAlignmentError,
    Quality,
    QualityThresholds,
    Reason,
    align,
    measure,
    reasons,
    similarity,
)
from models.detector import Face, Pixels, Point
from tests.conftest import photo
from tests.models import centerface

# CenterFace's landmarks in astronaut, rounded.
ASTRONAUT = ((203.2, 101.7), (247.0, 104.5), (223.3, 125.1), (203.4, 142.3), (241.3, 144.4))
FACE = Face((181.5, 58.2, 269.9, 177.8), 0.93, ASTRONAUT)

coordinate = st.floats(-1000, 1000)
points = st.lists(st.tuples(coordinate, coordinate), min_size=5, max_size=5)


def moved(landmarks: tuple[Point, ...], scale: float = 1.0, degrees: float = 0.0, dx: float = 0.0) -> tuple[Point, ...]:
    rotation = scale * np.exp(1j * math.radians(degrees))
    z = (np.array(landmarks) @ (1, 1j)) * rotation + dx
    return tuple((float(point.real), float(point.imag)) for point in z)


@given(points)
def test_similarity_is_scikit_images(landmarks: list[Point]) -> None:
    spread = np.std(landmarks, axis=0).min()
    if spread < 1:  # nearly a point or a line, for which scikit-image's singular value decomposition is inexact
        return
    theirs = SimilarityTransform.from_estimate(np.array(landmarks), np.array(TEMPLATE))
    assert np.allclose(similarity(landmarks), theirs.params[:2], atol=1e-6)


@pytest.mark.parametrize(
    ("landmarks", "target", "message"),
    [
        ([(3.0, 4.0)] * 5, TEMPLATE, "all equal"),
        ([(math.nan, 4.0), *TEMPLATE[1:]], TEMPLATE, "not finite"),
        ([(math.inf, 4.0), *TEMPLATE[1:]], TEMPLATE, "not finite"),
        (TEMPLATE[:4], TEMPLATE, "expected 5 points, got 4"),
        ([(1.0, 0.0), (-1.0, 0.0)], [(3.0, 0.0), (3.0, 0.0)], "to one point"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_points_without_an_alignment(landmarks: list[Point], target: list[Point], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        similarity(landmarks, target)
    assert isinstance(error.value, NoAlignmentError) == (len(landmarks) == len(target))


@pytest.mark.parametrize("scale", [0.3, 0.7, 1.0, 1.3, 2.0, 3.1])
@pytest.mark.parametrize("degrees", [0, 17])
def test_crops_are_opencvs(scale: float, degrees: float) -> None:
    image = photo("astronaut")
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    landmarks = moved(ASTRONAUT, scale)
    landmarks = moved(landmarks, degrees=degrees, dx=40.0 * (degrees > 0))
    crop = align(image, landmarks)
    assert crop.shape == (SIDE, SIDE, 3)
    assert crop.dtype == np.uint8
    assert crop.std() > 20, "a flat crop proves nothing"
    difference = np.abs(crop.astype(int) - centerface.opencv_crop(image, landmarks))
    assert difference.mean() <= 1.0


@pytest.mark.parametrize("dx", [-1e6, -60.0, 480.0, 1e6])
@pytest.mark.parametrize("scale", [0.02, 0.6, 4.0])
def test_edge_is_repeated_outside_the_photo(dx: float, scale: float) -> None:
    image = photo("astronaut")
    landmarks = moved(TEMPLATE, scale, dx=dx)
    crop = align(image, landmarks)
    assert crop.shape == (SIDE, SIDE, 3)
    if abs(dx) < 1e6:
        assert np.abs(crop.astype(int) - centerface.opencv_crop(image, landmarks)).mean() <= 1.0
    else:
        assert np.ptp(crop, axis=1).max() == 0  # every row repeats a pixel of the edge


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (2, 2)])
@pytest.mark.parametrize("scale", [0.1, 1.0, 50.0])
def test_tiny_images(size: tuple[int, int], scale: float) -> None:
    pixels = np.full((*size, 3), 77, np.uint8)
    assert (align(pixels, moved(TEMPLATE, scale)) == 77).all()


def quality(crop: Pixels | None = None, face: Face = FACE) -> Quality:
    return measure(face, align(photo("astronaut"), ASTRONAUT) if crop is None else crop)


def test_only_the_faces_part_of_an_image_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the cost of a group photo is faces x pixels."""
    large = Image.new("RGB", (6000, 4000))
    large.paste(photo("astronaut"), (3000, 1000))
    landmarks = [(x + 3000, y + 1000) for x, y in ASTRONAUT]
    sizes = []
    crop_of = Image.Image.crop

    def recording_crop(image: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
        cropped = crop_of(image, box)
        sizes.append(cropped.width * cropped.height)
        return cropped

    def refuse(*_: object) -> NoReturn:
        raise AssertionError("the entire image is read")

    monkeypatch.setattr(Image.Image, "crop", recording_crop)
    monkeypatch.setattr(large, "tobytes", refuse)
    monkeypatch.setattr(large, "convert", refuse)
    crop = align(large, landmarks)
    monkeypatch.undo()
    assert 0 < sum(sizes) < photo("astronaut").width * photo("astronaut").height
    assert np.array_equal(crop, align(np.asarray(large), landmarks))


@pytest.mark.parametrize("of_pillow", [True, False])
def test_face_that_fills_a_large_photo_needs_little_memory(of_pillow: bool) -> None:
    """The entire window in float32 would take 0.6 GB for 50 megapixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (7000, 7000, 3), np.uint8)
    image = Image.fromarray(pixels) if of_pillow else pixels
    tracemalloc.start()
    try:
        crop = align(image, moved(TEMPLATE, scale=62))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 * 2**20
    assert abs(crop.astype(float) - 127.5).max() < 10  # means of 62 x 62 pixels


@pytest.mark.parametrize("scale", [0.6, 1.0, 1.7, 4.0, 23.0])
@pytest.mark.parametrize("degrees", [0, 23])
def test_crops_are_those_of_products_of_matrices(scale: float, degrees: float) -> None:
    """Collections hold vectors of faces that were reduced by products of float32 matrices.

    BLAS libraries add in different orders, and a value within a rounding error of the middle between two grey levels
    may be rounded either way.
    """
    pixels = np.random.default_rng(0).integers(0, 256, (3000, 3000, 3), np.uint8)
    landmarks = moved(TEMPLATE, scale, degrees, dx=150.5)
    difference = np.abs(align(pixels, landmarks).astype(int) - aligned_by_products(pixels, landmarks))
    assert difference.max() <= 1
    assert np.count_nonzero(difference) <= 3  # of 37,632


def aligned_by_products(pixels: Pixels, landmarks: tuple[Point, ...]) -> Pixels:
    """`align` as first implemented: each mean is the product of pixels with a row of a matrix of shares."""
    matrix = similarity(landmarks)
    turn = matrix[:, :2]
    scale = math.sqrt(np.linalg.det(turn))
    grid = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE)), axis=-1)
    photo_size = np.array(pixels.shape[1::-1])
    smaller = np.maximum(1, np.rint(photo_size * min(scale, 1.0)))
    ratio = photo_size / smaller
    places = (((grid - matrix[:, 2]) @ np.linalg.inv(turn).T) + 0.5) / ratio - 0.5
    corners = np.floor(places.reshape(-1, 2))
    first = np.clip(corners.min(axis=0), 0, smaller - 1)
    last = np.clip(corners.max(axis=0) + 2, first + 1, smaller)
    across, along = (np.arange(low, high + 1) * step for low, high, step in zip(first, last, ratio, strict=True))
    left, top = int(across[0]), int(along[0])
    part = pixels[top : math.ceil(along[-1]), left : math.ceil(across[-1])].astype(np.float32)

    def shares(edges: npt.NDArray[np.float64], start: int, count: int) -> npt.NDArray[np.float32]:
        old = np.arange(start, start + count)
        covered = np.minimum(edges[1:, None], old + 1) - np.maximum(edges[:-1, None], old)
        return np.asarray(covered.clip(min=0) / np.diff(edges)[:, None], np.float32)

    part = np.tensordot(shares(along, top, part.shape[0]), part, axes=1)
    part = np.moveaxis(np.tensordot(shares(across, left, part.shape[1]), part, axes=(1, 1)), 0, 1)
    limits = np.array([part.shape[1], part.shape[0]]) - 1
    places = (places - first).clip(0, limits)
    low = np.floor(places).astype(int)
    high = np.minimum(low + 1, limits)
    right, down = np.moveaxis((places - low).astype(np.float32), -1, 0)[..., None]
    upper = part[low[..., 1], low[..., 0]] * (1 - right) + part[low[..., 1], high[..., 0]] * right
    lower = part[high[..., 1], low[..., 0]] * (1 - right) + part[high[..., 1], high[..., 0]] * right
    face: Pixels = np.rint(upper * (1 - down) + lower * down).astype(np.uint8)
    return face


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
@pytest.mark.parametrize("shift", [(0, 0), (-200, -60), (300, 400)])
def test_other_modes_are_aligned_as_rgb(mode: str, shift: tuple[int, int]) -> None:
    """Also if the face lies partly beyond the image's edge."""
    image = photo("astronaut").convert(mode)
    landmarks = [(x + shift[0], y + shift[1]) for x, y in ASTRONAUT]
    assert np.array_equal(align(image, landmarks), align(np.asarray(image.convert("RGB")), landmarks))


def blurred(crop: Pixels, sigma: float) -> Pixels:
    return np.asarray(Image.fromarray(crop).filter(ImageFilter.GaussianBlur(sigma)))


def test_blur_lowers_sharpness_and_contrast_does_not() -> None:
    crop = align(photo("astronaut"), ASTRONAUT)
    measured = [quality(blurred(crop, sigma)).sharpness for sigma in (0.5, 1, 2, 4)]
    assert measured == sorted(measured, reverse=True)
    assert reasons(quality(blurred(crop, 4))) == ("LOW_SHARPNESS",)
    pale = (crop.astype(float) / 2 + 64).round().astype(np.uint8)
    assert quality(pale).sharpness == pytest.approx(quality(crop).sharpness, rel=0.05)


def test_measures_of_a_good_and_of_a_dark_face() -> None:
    good, crop = quality(), align(photo("astronaut"), ASTRONAUT)
    assert reasons(good) == ()
    assert good.side == pytest.approx(269.9 - 181.5)
    assert good.confidence == 0.93
    dark = quality((crop // 6).astype(np.uint8))
    assert dark.brightness == pytest.approx(good.brightness / 6, abs=1)
    assert reasons(dark) == ("LOW_BRIGHTNESS",)
    assert quality(np.zeros_like(crop)).sharpness == 0.0


def with_nose(x: float, y: float) -> Face:
    landmarks = list(TEMPLATE)
    landmarks[2] = (x, y)
    return replace(FACE, landmarks=tuple(landmarks))


@pytest.mark.parametrize(
    ("nose", "expected"),
    [
        ((56.0, 71.7), ()),
        ((85.0, 71.7), ("EXTREME_POSE",)),
        ((56.0, 52.0), ("EXTREME_POSE",)),
        ((56.0, 90.0), ("EXTREME_POSE",)),
    ],
)
def test_pose(nose: Point, expected: tuple[Reason, ...]) -> None:
    face = with_nose(*nose)
    assert reasons(quality(face=face)) == expected
    straight = quality(face=face)
    for degrees in (30, 180, -90):  # rotation in the image plane has no effect
        turned = quality(face=replace(face, landmarks=moved(face.landmarks, 3.0, degrees, dx=50)))
        assert (turned.yaw, turned.pitch) == pytest.approx((straight.yaw, straight.pitch), abs=1e-9)


def test_yaw_has_a_sign() -> None:
    right, left = quality(face=with_nose(66, 71.7)).yaw, quality(face=with_nose(46, 71.7)).yaw
    assert right == pytest.approx(10 / 40.7, abs=0.01)
    assert left == pytest.approx(-10 / 40.7, abs=0.01)
    flat = replace(FACE, landmarks=((0.0, 0.0), (2.0, 0.0), (1.0, 0.0), (0.0, 0.0), (2.0, 0.0)))
    assert "EXTREME_POSE" in reasons(quality(face=flat))


def test_all_reasons_and_other_thresholds() -> None:
    worst = Quality(side=8, sharpness=0, yaw=2, pitch=0.5, brightness=3, confidence=0.2)
    assert reasons(worst) == (
        "SMALL_BOUNDING_BOX",
        "LOW_SHARPNESS",
        "EXTREME_POSE",
        "LOW_BRIGHTNESS",
        "LOW_CONFIDENCE",
    )
    assert reasons(worst, QualityThresholds(side=0, sharpness=0, yaw=9, brightness=0, confidence=0)) == ()
