"""CenterFace against the published file run by onnxruntime, its decoding against plain loops."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import box_iou, nms

from models import checkpoint
from models.detection_scale import CenterFaceDetector
from models.detector import (
    CHANNELS,
    NMS_OVERLAP,
    PROMINENCE_SPREAD,
    VARIANTS,
    CenterFace,
    Detector,
    Face,
    decode,
    overlap,
    prepare,
    prominence,
    strongest,
)
from models.importers import import_weights
from models.preprocess import Preprocess
from models.registry import build
from tests.app.face_pictures import grace_hopper
from tests.conftest import photo
from tests.models.centerface import PublishedCenterFace, loop, suppressed
from tests.models.helpers import assert_all_gradients

MAPS = [1, 2, 2, 10]  # channels of the published file's outputs: heatmap, scale, offset, landmarks
WITHIN_64 = Preprocess(size=(64, 64), fit="within", mean=(0.0,) * 3, std=(1.0,) * 3)


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
def published() -> PublishedCenterFace:
    return PublishedCenterFace()


@pytest.mark.parametrize("size", [(32, 32), (64, 96), (224, 224), (320, 192)])
@torch.inference_mode()
def test_maps_are_the_published_files(
    size: tuple[int, int], network: CenterFace, published: PublishedCenterFace
) -> None:
    images = [np.asarray(image.resize(size)) for image in (photo("astronaut"), grace_hopper())]
    batch = np.stack(images).transpose(0, 3, 1, 2).astype(np.float32)
    ours = torch.split(network(torch.from_numpy(batch)), MAPS, dim=1)
    for actual, expected in zip(ours, published.maps(batch), strict=True):
        assert actual.shape == expected.shape == (2, actual.shape[1], size[1] // 4, size[0] // 4)
        assert expected.std() > 0.001
        assert np.abs(actual.numpy() - expected).max() <= 1e-4


def test_gradients_and_features() -> None:
    torch.manual_seed(0)
    module = build("centerface")
    images = torch.randint(0, 256, (2, 3, 64, 96)).float()
    module(images).square().sum().backward()
    assert_all_gradients(module)
    module.eval()
    features, head = module.get_submodule("features"), module.get_submodule("head")
    with torch.inference_mode():
        assert features(images).shape == (2, 24, 16, 24)
        assert torch.equal(head(features(images)), module(images))


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
    """Random maps, in which neighbouring cells differ and most cells are not maxima."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(count, CHANNELS, height, width, generator=generator)
    maps[:, :1].sigmoid_()
    return maps


def peaks_only(maps: Tensor) -> Tensor:
    """The maps with the heatmap set to 0 wherever a neighbour is larger, by a plain loop."""
    peaks = maps.clone()
    _, height, width = maps[:1].shape
    for i in range(height):
        for j in range(width):
            around = maps[0, max(0, i - 1) : i + 2, max(0, j - 1) : j + 2]
            if maps[0, i, j] < around.max():
                peaks[0, i, j] = 0
    return peaks


@pytest.mark.parametrize(("height", "width"), [(1, 1), (9, 14), (20, 3)])
@pytest.mark.parametrize("threshold", [0.5, 0.9, 1.0])
def test_decoding_is_a_plain_loop(height: int, width: int, threshold: float) -> None:
    batch = random_maps(height, 3, height, width)
    decoded = decode(batch, threshold)
    assert len(decoded) == 3
    for maps, faces in zip(batch, decoded, strict=True):
        heatmap, scale, offset, landmarks = (values.numpy() for values in torch.split(peaks_only(maps), MAPS))
        expected = suppressed(loop(heatmap, scale, offset, landmarks, threshold))
        assert len(faces.scores) == len(expected)
        assert (len(expected) > 0) == bool((maps[0] > threshold).any())
        for box, score, points, face in zip(*faces, expected, strict=True):
            assert box.tolist() == pytest.approx(face.box, abs=1e-3)
            assert float(score) == pytest.approx(face.score)
            assert np.allclose(points.numpy(), face.landmarks, atol=1e-3)


@pytest.mark.parametrize("count", [0, 1, 2, 30, 500])
@pytest.mark.parametrize("side", [3.0, 30.0, 300.0])
def test_overlapping_boxes_are_removed_as_by_torchvision(count: int, side: float) -> None:
    numbers = torch.Generator().manual_seed(count)
    corners = 200 * torch.rand(count, 2, generator=numbers)
    boxes = torch.cat([corners, corners + side * torch.rand(count, 2, generator=numbers)], dim=1)
    scores = torch.rand(count, generator=numbers)
    expected = nms(boxes, scores, NMS_OVERLAP)
    assert torch.equal(strongest(boxes, scores, 1000), expected)
    assert torch.equal(strongest(boxes, scores, 5), expected[:5])
    torch.testing.assert_close(overlap(boxes[:, None], boxes), box_iou(boxes, boxes))


def test_of_equal_boxes_the_most_confident_is_kept() -> None:
    box = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    assert strongest(box.expand(3, 4), torch.tensor([0.2, 0.9, 0.5]), 10).tolist() == [1]
    assert strongest(torch.zeros(2, 4), torch.tensor([0.2, 0.9]), 10).tolist() == [
        1,
        0,
    ]  # nothing of empty boxes overlaps


def test_limit_keeps_the_most_confident() -> None:
    (everything,) = decode(random_maps(0, 1, 32, 32), 0.1)
    (few,) = decode(random_maps(0, 1, 32, 32), 0.1, limit=3)
    assert len(few.scores) == 3
    assert torch.equal(few.scores, everything.scores[:3])
    assert torch.equal(everything.scores, everything.scores.sort(descending=True).values)


@pytest.mark.parametrize("image", [photo("astronaut"), grace_hopper()], ids=["astronaut", "grace_hopper"])
def test_face_is_detected(image: Image.Image, detector: CenterFaceDetector, published: PublishedCenterFace) -> None:
    (face,) = detector(image)
    assert face.score > 0.8
    (theirs,) = published.faces(image)
    assert face.box == pytest.approx(theirs.box, abs=0.01)
    assert np.allclose(face.landmarks, theirs.landmarks, atol=0.01)
    left_eye, right_eye, nose, *_ = face.landmarks
    assert left_eye[0] < nose[0] < right_eye[0]


@pytest.mark.parametrize("name", ["coffee", "chelsea"])
def test_image_without_faces(name: str, detector: CenterFaceDetector) -> None:
    assert detector(photo(name)) == []


def test_two_faces_in_an_image(detector: CenterFaceDetector) -> None:
    left, right = photo("astronaut").resize((256, 256)), grace_hopper().resize((256, 300)).crop((0, 0, 256, 256))
    both = np.hstack([np.asarray(left), np.asarray(right)])
    faces = sorted(detector(both), key=lambda face: face.box[0])
    assert len(faces) == 2
    for face, (single,), dx in zip(faces, (detector(left), detector(right)), (0, 256), strict=True):
        assert dx <= face.box[0] < face.box[2] <= dx + 256
        assert np.allclose(np.subtract(face.landmarks, (dx, 0)), single.landmarks, atol=2)


@pytest.mark.parametrize(("size", "seen"), [((256, 128), (64, 32)), ((64, 640), (6, 64)), ((1, 640), (1, 64))])
def test_faces_are_in_pixels_of_the_original_image(size: tuple[int, int], seen: tuple[int, int]) -> None:
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


def test_input_is_padded_at_the_right_and_bottom(detector: CenterFaceDetector) -> None:
    image = photo("astronaut").crop((0, 0, 50, 70))
    prepared = prepare(image, detector._preprocess)
    assert prepared.shape == (3, 96, 64)
    assert np.array_equal(prepared[:, :70, :50].numpy(), np.asarray(image, np.float32).transpose(2, 0, 1))
    assert not prepared[:, 70:].any()
    assert not prepared[:, :, 50:].any()


def test_modes_and_arrays(detector: CenterFaceDetector) -> None:
    image = photo("astronaut").crop((128, 0, 352, 224))
    (face,) = detector(image)
    assert detector(np.asarray(image)) == [face]
    assert detector(image.convert("RGBA")) == [face]
    (grey,) = detector(image.convert("L"))
    assert np.allclose(grey.landmarks, face.landmarks, atol=3)


def test_boxes_are_clipped_and_landmarks_are_not() -> None:
    maps = torch.zeros(1, CHANNELS, 8, 8)
    maps[0, 0, 0, 0] = maps[0, 0, 7, 7] = 1.0
    maps[0, 1:3, 0, 0] = math.log(4)  # 16 pixels high and wide, around (2, 2)
    detect: Detector = CenterFaceDetector(lambda batch: maps, WITHIN_64)
    (face,) = detect(Image.new("RGB", (20, 20)))  # the other face is in the padding, beyond pixel 26
    assert face.box == (0, 0, 10, 10)
    assert face.area == 100
    assert face.landmarks == ((-6, -6),) * 5


def square(x: float, y: float, side: float) -> Face:
    """A face around (x, y)."""
    return Face((x - side / 2, y - side / 2, x + side / 2, y + side / 2), 0.9, ())


def test_prominence_is_area_weighted_by_the_distance_from_the_centre() -> None:
    size = (800, 600)
    assert prominence(square(400, 300, 100), size) == pytest.approx(10_000)
    corner = prominence(square(800, 600, 100), size)
    assert corner == pytest.approx(10_000 * math.exp(-((1 / PROMINENCE_SPREAD) ** 2)))
    assert prominence(square(400, 300, 80), size) > prominence(square(700, 150, 160), size)
    assert prominence(square(420, 310, 80), size) < prominence(square(300, 300, 160), size)
    assert prominence(square(100, 300, 50), size) == pytest.approx(prominence(square(700, 300, 50), size))
    twice = prominence(square(1400, 300, 100), (1600, 1200))
    assert twice == pytest.approx(4 * prominence(square(700, 150, 50), size))


def test_cropping_preprocessing_is_refused(network: CenterFace) -> None:
    with pytest.raises(ValueError, match="uncropped images"):
        CenterFaceDetector(network, Preprocess(size=(64, 64), mean=(0.0,) * 3, std=(1.0,) * 3))
