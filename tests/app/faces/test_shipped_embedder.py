"""The shipped face embedder on photos of two people, unchanged and altered."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from fastapi.testclient import TestClient
from PIL import Image, ImageEnhance

from app.settings import PROJECT, Settings
from models import checkpoint
from tests.app.face_pictures import grace_hopper
from tests.conftest import encode, photo


def jpeg(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=40)
    return Image.open(buffer).convert("RGB")


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "smaller": lambda image: image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.6),
    "grey": lambda image: image.convert("L").convert("RGB"),
    "tilted": lambda image: image.rotate(15, Image.Resampling.BICUBIC),
    "compressed": jpeg,
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
}


def verify(client: TestClient, source: Image.Image, target: Image.Image, fmr: float) -> dict[str, float]:
    parts = {"source": encode(source), "target": encode(target)}
    response = client.post(f"/verify?fmr={fmr}", files=parts)
    assert response.status_code == 200, response.text
    body: dict[str, float] = response.json()
    return body


@pytest.mark.parametrize("change", CHANGES)
def test_altered_photos_of_the_same_person_match(client: TestClient, change: str) -> None:
    collins, hopper = photo("astronaut"), grace_hopper()
    for person, other in ((collins, hopper), (hopper, collins)):
        same = verify(client, person, CHANGES[change](person), 0.001)
        different = verify(client, person, CHANGES[change](other), 0.1)
        assert same["verified"]
        assert not different["verified"]
        assert same["probability"] > 0.9
        assert different["probability"] < 0.3


@pytest.mark.parametrize(
    ("name", "architecture", "data", "loss"),
    [
        ("mobilefacenet-triplet", "mobilefacenet", "MS-Celeb-1M", "triplet"),
        ("mobilefacenet", "mobilefacenet", "MS-Celeb-1M", None),
        ("face-embedder", "embedder", "dlib", "triplet"),
    ],
)
def test_card_has_training_data_and_licence(name: str, architecture: str, data: str, loss: str | None) -> None:
    folder = PROJECT / "weights" / name
    network, card = checkpoint.load(folder)
    assert (card.task, card.architecture, card.tta) == ("embed", architecture, "flip")
    assert "non-commercial" in card.license
    assert data in card.data
    assert (card.training.recipe["loss"]["kind"] if card.training else None) == loss
    assert card.matching is not None
    fmrs = [point.fmr for point in card.matching.points]
    assert {0.1, 0.01, 0.001} <= set(fmrs)
    assert (folder / "model.safetensors").stat().st_size <= 16 * 2**20
    assert sum(parameter.numel() for parameter in network.parameters()) < 4e6


def test_default_embedder_is_the_best_and_the_old_one_is_marked_as_deprecated() -> None:
    default = Settings().default_embedder
    assert default == "mobilefacenet-triplet"
    old, new = (checkpoint.read_card(PROJECT / "weights" / name) for name in ("face-embedder", default))
    assert old.version == "67c16412c036"  # existing collections have its vectors
    assert f"new collections use {default}" in old.description
    rates = [
        [metric.value for metric in card.metrics if metric.name == "tar@fmr=0.001" and "calibrate" in metric.data]
        for card in (old, checkpoint.read_card(PROJECT / "weights/mobilefacenet"), new)
    ]
    assert rates == sorted(rates)
