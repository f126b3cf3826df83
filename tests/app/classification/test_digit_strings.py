"""POST /classify?sequence=true end to end with the shipped weights."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image
from sklearn.datasets import load_digits

from app.main import create_app
from app.settings import PROJECT, Settings
from models import checkpoint, digit_segmentation, digit_string_decoder
from tests.app.bad_inputs import DIGITS
from tests.app.conftest import BASE_URL
from tests.app.tiny_model import tiny_model
from tests.conftest import encode

PNG = {"content-type": "image/png"}
Grey = npt.NDArray[np.uint8]


def tile(row: int) -> Grey:
    """One of scikit-learn's 8x8 handwritten digits, 24 pixels high, without empty columns."""
    image = load_digits().images[row] * (255 / 16)
    enlarged = np.asarray(Image.fromarray(image.astype(np.uint8)).resize((24, 24), Image.Resampling.BICUBIC))
    columns = np.flatnonzero((enlarged > 30).any(axis=0))
    return enlarged[:, columns[0] : columns[-1] + 1]


def string(*rows: int, gap: int = 4) -> tuple[Image.Image, str, list[tuple[int, int]]]:
    """An image of these digits on black, their text, and the first and last column of each digit."""
    tiles, columns, x = [tile(row) for row in rows], [], 8
    canvas = np.zeros((40, 16 + sum(t.shape[1] + gap for t in tiles)), np.uint8)
    for digit in tiles:
        window = canvas[8:32, x : x + digit.shape[1]]
        np.maximum(window, digit, out=window)
        columns.append((x, x + digit.shape[1]))
        x += digit.shape[1] + gap
    return Image.fromarray(canvas), "".join(str(load_digits().target[row]) for row in rows), columns


def read(client: TestClient, image: Image.Image, format: str = "PNG") -> dict[str, Any]:
    response = client.post(DIGITS, files={"file": ("string", encode(image, format))})
    assert response.status_code == 200, response.text
    item: dict[str, Any] = response.json()["data"][0]
    return item


ROWS = (10, 22, 32, 13, 30)  # digits that lenet5-mnist classifies correctly


def test_string_and_boxes(client: TestClient) -> None:
    image, text, columns = string(*ROWS)
    item = read(client, image)
    assert item.keys() == {"index", "sequence", "digits", "confidence"}
    assert (item["index"], item["sequence"]) == (0, text)
    assert 0.5 < item["confidence"] <= 1
    for digit, label, (left, right) in zip(item["digits"], text, columns, strict=True):
        assert (digit["class"], digit["class_id"]) == (label, int(label))
        assert 0 < digit["confidence"] <= 1
        x0, y0, x1, y1 = digit["box"]
        assert abs(x0 - left) <= 2
        assert abs(x1 - right) <= 2
        assert 0 <= y0 < y1 <= image.height
    inverted = Image.eval(image, lambda level: 235 - level * 3 // 4).convert("RGB")
    assert read(client, inverted, "JPEG")["sequence"] == text
    empty = read(client, Image.new("RGB", (90, 30), "white"))
    assert empty == {"index": 0, "sequence": "", "digits": [], "confidence": 1.0}


def test_result_equals_the_decoder_s(client: TestClient) -> None:
    image, _, _ = string(*ROWS, gap=-2)
    module, card = checkpoint.load(PROJECT / "weights" / "lenet5-mnist")
    candidates = digit_segmentation.build_lattice(np.asarray(image))
    with torch.inference_mode():
        logits = module(torch.stack([card.preprocess(Image.fromarray(crop)) for crop in candidates.crops]))
    expected = digit_string_decoder.read(candidates, logits, card.temperature)
    item = read(client, image)
    assert item["sequence"] == expected.text
    assert item["confidence"] == pytest.approx(expected.confidence, abs=1e-4)
    assert [tuple(digit["box"]) for digit in item["digits"]] == [digit.box for digit in expected.digits]
    assert [d["confidence"] for d in item["digits"]] == pytest.approx([d.confidence for d in expected.digits], abs=1e-4)


def test_candidates_do_not_overflow_the_queue() -> None:
    files = [("file", (f"{index}.png", encode(string(*ROWS)[0]))) for index in range(6)]
    settings = Settings(queue_size=3, max_batch=2, default_classifier="lenet5-mnist")
    with TestClient(create_app(settings), base_url=BASE_URL) as client, ThreadPoolExecutor(3) as threads:
        responses = list(threads.map(lambda _: client.post(DIGITS, files=files), range(3)))
    for response in responses:
        assert response.status_code == 200
        assert [item.get("sequence") for item in response.json()["data"]] == [string(*ROWS)[1]] * 6


@pytest.mark.parametrize(("classes", "status"), [("1234567890", 422), ("0123456789", 200)])
def test_any_grey_network_of_the_ten_digits_reads_strings(tmp_path: Path, classes: str, status: int) -> None:
    tiny_model(tmp_path)
    card = checkpoint.read_card(tmp_path / "tiny")
    checkpoint.write_card(tmp_path / "tiny", card.model_copy(update={"classes": tuple(classes)}))
    settings = Settings(weights=tmp_path, default_classifier="tiny")
    with TestClient(create_app(settings), base_url=BASE_URL) as client:
        response = client.post("/classify?sequence=true", content=encode(string(*ROWS)[0]), headers=PNG)
    assert response.status_code == status
    if status == 200:
        assert response.json()["data"][0]["sequence"].isdigit()  # an untrained network: any digits
    else:
        assert response.json()["type"] == "urn:vestibule:problem:unprocessable"
        assert "the classes 0 to 9" in response.json()["detail"]
