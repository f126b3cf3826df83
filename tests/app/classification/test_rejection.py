"""POST /classify?reject= end to end: against the network's energies, and with a shipped classifier."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image
from sklearn.datasets import load_digits

from app.settings import PROJECT
from models import checkpoint
from models.rejection import fit_rejection
from tests.app.conftest import started
from tests.app.tiny_model import tiny_model
from tests.conftest import encode, photo

PNG = {"content-type": "image/png"}


def noise(count: int) -> list[Image.Image]:
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 256, (16, 16)).astype(np.uint8)) for _ in range(count)]


def handwritten_digit(row: int) -> Image.Image:
    """One of scikit-learn's digits, in the middle of 28 x 28 pixels as in MNIST."""
    tile = Image.fromarray((load_digits().images[row] * (255 / 16)).astype(np.uint8))
    canvas = Image.new("L", (28, 28))
    canvas.paste(tile.resize((20, 20), Image.Resampling.BICUBIC), (4, 4))
    return canvas


def test_images_above_the_threshold_are_rejected(tmp_path: Path) -> None:
    tiny_model(tmp_path)
    module, card = checkpoint.load(tmp_path / "tiny")
    (tmp_path / "lenet5-mnist").symlink_to(PROJECT / "weights" / "lenet5-mnist")
    with torch.inference_mode():
        logits = module(torch.stack([card.preprocess(image) for image in noise(1000)]))
    checkpoint.write_card(tmp_path / "tiny", card.model_copy(update={"rejection": fit_rejection(logits.numpy(), "x")}))
    expected = -logits[:64].logsumexp(dim=1)
    files = [("file", (f"{i}.png", encode(image))) for i, image in enumerate(noise(64))]
    with started(tmp_path, runtime="torch") as client:
        data = client.post("/classify?model=tiny&reject=0.3", files=files).json()["data"]
    threshold = fit_rejection(logits.numpy(), "x").threshold(0.3)
    assert [item["rejected"] for item in data] == (expected > threshold).tolist()
    assert 0 < sum(item["rejected"] for item in data) < 64
    assert all(len(item["predictions"]) == 5 for item in data)


def test_a_shipped_classifier_rejects_a_photo_and_accepts_a_digit(client: TestClient) -> None:
    digit = encode(handwritten_digit(22))
    url = "/classify?model=lenet5-mnist&reject=0.05"
    for data, rejected in ((digit, False), (encode(photo("coffee")), True)):
        (item,) = client.post(url, content=data, headers=PNG).json()["data"]
        assert item["rejected"] is rejected
    plain = client.post("/classify?model=lenet5-mnist", content=digit, headers=PNG).json()
    assert "rejected" not in plain["data"][0]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("model=efficientnet-lite0&reject=0.05", "python -m training.calibrate weights/efficientnet-lite0 --data"),
        ("model=lenet5-mnist&reject=0.6", "less than or equal to 0.5"),
        ("model=lenet5-mnist&reject=0", "greater than or equal to 0.001"),
        ("model=lenet5-mnist&reject=0.05&sequence=true", "without `reject`"),
    ],
)
def test_what_cannot_be_rejected_is_an_error(client: TestClient, query: str, message: str) -> None:
    response = client.post(f"/classify?{query}", content=encode(photo("coffee")), headers=PNG)
    assert response.status_code == 422
    assert message in response.text
