"""Single photos: decoding, detection, quality, crop."""

from __future__ import annotations

import io
import os
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models import checkpoint
from models.align import QualityThresholds
from models.detection_scale import CenterFaceDetector
from models.detector import Face
from tests.conftest import encode, photo
from tests.models.centerface import opencv_crop
from tests.training.conftest import head, save_photo
from training.prepare import face_photos
from training.prepare.face_layouts import Photo, read_collection
from training.prepare.face_photos import PhotoExaminer, PhotoOptions, choose

WEIGHTS = Path(__file__).parents[3] / "weights/centerface"
OPTIONS = PhotoOptions(detector=WEIGHTS)


@cache
def examiner() -> PhotoExaminer:
    return PhotoExaminer(OPTIONS)


def test_damaged_exif_is_ignored(tmp_path: Path) -> None:
    save_photo(Image.new("RGB", (8, 4)), tmp_path / "a.jpg", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff\x01")
    assert not np.asarray(face_photos.read_photo(tmp_path / "a.jpg")).any()


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.jpg", b"", "supported are JPEG"),
        ("a.png", b"%PDF-1.7", "this is PDF; supported are JPEG"),
        ("a.tif", encode(Image.new("RGB", (8, 8)), "TIFF"), "this is TIFF; supported are JPEG"),
        ("a.jpg", encode(photo("coffee"), "JPEG")[:5000], "damaged: OSError"),
        ("a.ppm", b"P6 10000 10000 255\n", "too many pixels"),
    ],
)
@pytest.mark.parametrize("limit", [Image.MAX_IMAGE_PIXELS, None])
def test_unreadable_photos_state_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes, why: str, limit: int | None
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    (tmp_path / name).write_bytes(content)
    answer = face_photos.read_photo(tmp_path / name)
    assert isinstance(answer, str)
    assert answer.startswith(why)
    assert str(tmp_path) not in answer


def test_pipes_and_broken_links_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "link.jpg").symlink_to("nowhere")
    assert face_photos.read_photo(tmp_path / "link.jpg") == "a broken link"
    for name in ("pipe.jpg", "folder"):
        assert face_photos.read_photo(tmp_path / name) == "not a file"


def test_the_largest_or_the_most_central_face() -> None:
    large = Face((0.0, 0.0, 50.0, 60.0), 0.7, ())
    central = Face((90.0, 40.0, 110.0, 60.0), 0.6, ())
    sure = Face((150.0, 0.0, 170.0, 20.0), 0.9, ())
    assert choose([sure, central, large], (200, 100), "largest") is large
    assert choose([sure, central, large], (200, 100), "centre") is central


def test_crops_agree_with_opencv(tmp_path: Path) -> None:
    both = Image.new("RGB", (400, 300), "grey")
    both.paste(head("hopper"), (0, 0))
    both.paste(head("astronaut").resize((128, 128)), (210, 90))
    save_photo(both, tmp_path / "a/1.png")
    network, card = checkpoint.load(WEIGHTS)
    faces = sorted(CenterFaceDetector(network, card.preprocess)(both), key=lambda face: face.area)
    assert len(faces) == 2
    for choice, face in (("largest", faces[1]), ("centre", faces[0])):
        created = PhotoExaminer(replace(OPTIONS, choose=choice))  # type: ignore[arg-type]
        (item,) = created(tmp_path, [Photo("a", "a/1.png")])
        assert item.outcome == "kept"
        crop = np.asarray(Image.open(io.BytesIO(item.crop)).convert("RGB"), int)
        assert crop.shape == (112, 112, 3)
        assert np.abs(crop - opencv_crop(both, face.landmarks)).mean() < 4  # WebP's and the two warps' share


def test_outcomes_of_single_photos(album: Path) -> None:
    photos = read_collection(album).photos
    judged = examiner()(album, photos)
    assert [(item.identity, item.path) for item in judged] == list(photos)
    assert {item.path: (item.outcome, item.reasons) for item in judged if item.outcome != "kept"} == {
        "astronaut/broken.jpg": ("unreadable", "supported are JPEG, PNG, WEBP, BMP, GIF, PPM"),
        "astronaut/night.png": ("low-quality", "LOW_BRIGHTNESS"),
        "once/cup.png": ("no-face", ""),
    }
    assert all(bool(item.crop) == bool(item.digest) == (item.outcome == "kept") for item in judged)


def test_limits_decide_what_is_good_enough(album: Path) -> None:
    photos = [Photo("a", "astronaut/0.png"), Photo("a", "astronaut/night.png")]
    for limits, expected in (
        (QualityThresholds(side=150), ["SMALL_BOUNDING_BOX", "SMALL_BOUNDING_BOX LOW_BRIGHTNESS"]),
        (QualityThresholds(brightness=1), ["", ""]),
    ):
        judged = PhotoExaminer(replace(OPTIONS, limits=limits))(album, photos)
        assert [item.reasons for item in judged] == expected


def test_images_of_one_shape_are_batched(album: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = read_collection(album).photos
    singly = examiner()(album, photos)
    shapes: list[torch.Size] = []
    combined = PhotoExaminer(OPTIONS)
    run = combined._detect

    def watched(batch: torch.Tensor) -> torch.Tensor:
        shapes.append(batch.shape)
        return run(batch)

    monkeypatch.setattr(combined, "_at_once", 4)
    monkeypatch.setattr(combined, "_detect", watched)
    outcomes = [(item.path, item.outcome) for item in combined(album, photos)]
    assert outcomes == [(item.path, item.outcome) for item in singly]
    assert sorted(shape[0] for shape in shapes) == [1, 1, 4, 4]  # nine heads, one cup


def test_small_faces_of_large_photos_are_detected(tmp_path: Path) -> None:
    """At the detector's size, where the face has 11 pixels, it is not found: the rule of older data sets."""
    picture = Image.new("RGB", (3000, 480), (90, 110, 120))
    picture.paste(photo("astronaut").crop((165, 45, 285, 165)).resize((74, 74), Image.Resampling.LANCZOS), (1400, 200))
    save_photo(picture, tmp_path / "ann/1.png")
    photos = [Photo("ann", "ann/1.png")]
    (item,) = examiner()(tmp_path, photos)
    assert item.outcome in {"kept", "low-quality"}
    (item,) = PhotoExaminer(replace(OPTIONS, scales="whole"))(tmp_path, photos)
    assert item.outcome == "no-face"


@pytest.mark.parametrize("size", [(192, 192), (1500, 1100), (2400, 1800)])
def test_rule_of_older_data_sets_agrees_to_the_bit(size: tuple[int, int]) -> None:
    picture = photo("astronaut").resize(size)
    network, card = checkpoint.load(WEIGHTS)
    expected = CenterFaceDetector(network.eval(), card.preprocess)(picture)
    assert expected
    assert PhotoExaminer(replace(OPTIONS, scales="whole"))._detect_all([picture]) == [expected]
    if max(size) <= 1600:
        assert examiner()._detect_all([picture]) == [expected]


def test_landmarks_without_an_alignment_are_no_face(album: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    created = PhotoExaminer(OPTIONS)
    face = Face((0.0, 0.0, 100.0, 100.0), 0.9, ((5.0, 5.0),) * 5)
    monkeypatch.setattr(created, "_detect_all", lambda pictures: [[face] for _ in pictures])
    (item,) = created(album, [Photo("a", "astronaut/0.png")])
    assert item.outcome == "no-face"
    assert "all equal" in item.reasons
