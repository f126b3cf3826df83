"""The shipped face embedder, on two people whose pictures packages ship: who is who, whatever is done to the photo."""

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


def jpeg(picture: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=40)
    return Image.open(buffer).convert("RGB")


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "smaller": lambda picture: picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.LANCZOS),
    "darker": lambda picture: ImageEnhance.Brightness(picture).enhance(0.6),
    "grey": lambda picture: picture.convert("L").convert("RGB"),
    "tilted": lambda picture: picture.rotate(15, Image.Resampling.BICUBIC),
    "compressed": jpeg,
    "mirrored": lambda picture: picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
}


def ask(client: TestClient, source: Image.Image, target: Image.Image, fmr: float) -> dict[str, float]:
    parts = {"source": encode(source), "target": encode(target)}
    response = client.post(f"/verify?fmr={fmr}", files=parts)
    assert response.status_code == 200, response.text
    body: dict[str, float] = response.json()
    return body


@pytest.mark.parametrize("change", CHANGES)
def test_one_person_is_verified_after_a_change_and_two_are_not(client: TestClient, change: str) -> None:
    collins, hopper = photo("astronaut"), grace_hopper()
    for person, other in ((collins, hopper), (hopper, collins)):
        same = ask(client, person, CHANGES[change](person), 0.001)
        different = ask(client, person, CHANGES[change](other), 0.1)
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
def test_the_card_says_how_it_was_trained_and_what_it_may_be_used_for(
    name: str, architecture: str, data: str, loss: str | None
) -> None:
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


def test_new_collections_get_the_better_embedder_and_the_old_one_is_marked() -> None:
    default = Settings().default_embedder
    assert default == "mobilefacenet-triplet"
    old, new = (checkpoint.read_card(PROJECT / "weights" / name) for name in ("face-embedder", default))
    assert old.version == "67c16412c036"  # collections hold its vectors
    assert f"new collections use {default}" in old.description
    rates = [
        [metric.value for metric in card.metrics if metric.name == "tar@fmr=0.001" and "calibrate" in metric.data]
        for card in (old, checkpoint.read_card(PROJECT / "weights/mobilefacenet"), new)
    ]
    assert rates == sorted(rates)
