"""POST /classify?sequence=true end to end: digit strings, with the shipped weights."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image
from sklearn.datasets import load_digits

from app.main import create_app
from app.settings import PROJECT, Settings
from models import checkpoint, digit_string_decoder
from tests.app.bad_inputs import DIGITS
from tests.app.conftest import BASE_URL
from tests.app.tiny_model import tiny_model
from tests.conftest import encode

PNG = {"content-type": "image/png"}
Grey = npt.NDArray[np.uint8]


def tile(row: int) -> Grey:
    """One of scikit-learn's 8x8 handwritten digits, 24 pixels high, without its empty columns."""
    picture = load_digits().images[row] * (255 / 16)
    enlarged = np.asarray(Image.fromarray(picture.astype(np.uint8)).resize((24, 24), Image.Resampling.BICUBIC))
    columns = np.flatnonzero((enlarged > 30).any(axis=0))
    return enlarged[:, columns[0] : columns[-1] + 1]


def string(*rows: int, gap: int = 4) -> tuple[Image.Image, str, list[tuple[int, int]]]:
    """A string of them on black, what it says, and from which column to which each digit goes."""
    tiles, columns, x = [tile(row) for row in rows], [], 8
    canvas = np.zeros((40, 16 + sum(t.shape[1] + gap for t in tiles)), np.uint8)
    for digit in tiles:
        window = canvas[8:32, x : x + digit.shape[1]]
        np.maximum(window, digit, out=window)
        columns.append((x, x + digit.shape[1]))
        x += digit.shape[1] + gap
    return Image.fromarray(canvas), "".join(str(load_digits().target[row]) for row in rows), columns


def read(client: TestClient, picture: Image.Image, format: str = "PNG") -> dict[str, Any]:
    response = client.post(DIGITS, files={"file": ("string", encode(picture, format))})
    assert response.status_code == 200, response.text
    item: dict[str, Any] = response.json()["data"][0]
    return item


ROWS = (10, 22, 32, 13, 30)  # which lenet5-mnist knows, though they are no MNIST digits


def test_a_string_is_read_with_its_boxes(client: TestClient) -> None:
    picture, text, columns = string(*ROWS)
    item = read(client, picture)
    assert item.keys() == {"index", "sequence", "digits", "confidence"}
    assert (item["index"], item["sequence"]) == (0, text)
    assert 0.5 < item["confidence"] <= 1
    for digit, label, (left, right) in zip(item["digits"], text, columns, strict=True):
        assert (digit["class"], digit["class_id"]) == (label, int(label))
        assert 0 < digit["confidence"] <= 1
        x0, y0, x1, y1 = digit["box"]
        assert abs(x0 - left) <= 2
        assert abs(x1 - right) <= 2
        assert 0 <= y0 < y1 <= picture.height


def test_it_is_what_lattice_network_and_viterbi_say(client: TestClient) -> None:
    picture, _, _ = string(*ROWS, gap=-2)
    module, card = checkpoint.load(PROJECT / "weights" / "lenet5-mnist")
    found = digit_string_decoder.lattice(np.asarray(picture))
    with torch.inference_mode():
        logits = module(torch.stack([card.preprocess(Image.fromarray(crop)) for crop in found.crops]))
    expected = digit_string_decoder.read(found, logits, card.temperature)
    item = read(client, picture)
    assert item["sequence"] == expected.text
    assert item["confidence"] == pytest.approx(expected.confidence, abs=1e-4)
    assert [tuple(digit["box"]) for digit in item["digits"]] == [digit.box for digit in expected.digits]
    assert [d["confidence"] for d in item["digits"]] == pytest.approx([d.confidence for d in expected.digits], abs=1e-4)


def test_dark_ink_on_light_paper_reads_the_same(client: TestClient) -> None:
    picture, text, _ = string(*ROWS)
    paper = Image.eval(picture, lambda level: 235 - level * 3 // 4).convert("RGB")
    assert read(client, paper, "JPEG")["sequence"] == text


def test_no_ink_is_an_empty_string(client: TestClient) -> None:
    item = read(client, Image.new("RGB", (90, 30), "white"))
    assert item == {"index": 0, "sequence": "", "digits": [], "confidence": 1.0}


def test_each_picture_of_a_list_answers_for_itself(client: TestClient) -> None:
    pictures = [string(*ROWS), string(*ROWS[::-1]), string(ROWS[0])]
    good = [base64.b64encode(encode(picture)).decode() for picture, _, _ in pictures]
    blank = base64.b64encode(encode(Image.new("L", (3000, 10)))).decode()
    wide = Image.new("L", (3000, 10))
    wide.paste(255, (4, 4, 2990, 6))
    inputs = [good[0], "not base64!", good[1], base64.b64encode(encode(wide)).decode(), blank, good[2]]
    data = client.post(DIGITS, json={"input": inputs}).json()["data"]
    assert [item["index"] for item in data] == list(range(6))
    assert [data[i]["sequence"] for i in (0, 2, 5)] == [text for _, text, _ in pictures]
    assert data[4]["sequence"] == ""
    assert [data[i]["problem"]["status"] for i in (1, 3)] == [400, 422]


def test_candidates_never_overflow_the_queue() -> None:
    pictures = [string(*ROWS)[0] for _ in range(6)]
    files = [("file", (f"{index}.png", encode(picture))) for index, picture in enumerate(pictures)]
    settings = Settings(queue_size=3, max_batch=2, default_classifier="lenet5-mnist")
    with TestClient(create_app(settings), base_url=BASE_URL) as client, ThreadPoolExecutor(3) as threads:
        answers = list(threads.map(lambda _: client.post(DIGITS, files=files), range(3)))
    for answer in answers:
        assert answer.status_code == 200
        assert [item.get("sequence") for item in answer.json()["data"]] == [string(*ROWS)[1]] * 6


def test_without_sequence_a_digit_is_classified_as_ever(client: TestClient) -> None:
    picture, _, _ = string(ROWS[0])
    for url in ("/classify?model=lenet5-mnist", "/classify?model=lenet5-mnist&sequence=false"):
        item = client.post(url, content=encode(picture), headers=PNG).json()["data"][0]
        assert item.keys() == {"index", "predictions"}
        assert len(item["predictions"]) == 5


@pytest.mark.parametrize("classes", ["abcdefghij", "1234567890"])
def test_a_model_of_anything_else_reads_no_strings(tmp_path: Path, classes: str) -> None:
    tiny_model(tmp_path)
    card = checkpoint.read_card(tmp_path / "tiny")
    checkpoint.write_card(tmp_path / "tiny", card.model_copy(update={"classes": tuple(classes)}))
    settings = Settings(weights=tmp_path, default_classifier="tiny")
    with TestClient(create_app(settings), base_url=BASE_URL) as client:
        response = client.post("/classify?sequence=true", content=encode(string(ROWS[0])[0]), headers=PNG)
    assert response.status_code == 422
    assert response.json()["type"] == "urn:vestibule:problem:unprocessable"
    assert "the classes 0 to 9" in response.json()["detail"]


def test_any_grey_network_of_the_ten_digits_reads_strings(tmp_path: Path) -> None:
    tiny_model(tmp_path)
    card = checkpoint.read_card(tmp_path / "tiny")
    checkpoint.write_card(tmp_path / "tiny", card.model_copy(update={"classes": tuple("0123456789")}))
    settings = Settings(weights=tmp_path, default_classifier="tiny")
    with TestClient(create_app(settings), base_url=BASE_URL) as client:
        response = client.post("/classify?sequence=true", content=encode(string(*ROWS)[0]), headers=PNG)
    assert response.status_code == 200
    assert response.json()["data"][0]["sequence"].isdigit()  # untrained, and 16 x 16: it answers, no more


def test_the_document_tells_of_strings(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    kinds = {
        option["$ref"].rsplit("/", 1)[1]
        for option in schemas["ClassifyResponse"]["properties"]["data"]["items"]["anyOf"]
    }
    assert kinds == {"Classified", "DigitString", "Failed"}
    assert schemas["Digit"]["properties"]["box"] == {
        "type": "array",
        "prefixItems": [{"type": "integer"}] * 4,
        "minItems": 4,
        "maxItems": 4,
        "title": "Box",
    }
    parameters = document["paths"]["/classify"]["post"]["parameters"]
    assert next(p for p in parameters if p["name"] == "sequence")["schema"]["default"] is False


@pytest.mark.data
def test_a_string_of_mnists_training_digits(client: TestClient, datasets: Callable[[str], Path]) -> None:
    table = pyarrow.parquet.ParquetFile(min(datasets("mnist").glob("train*.parquet")))
    rows = next(table.iter_batches(40, columns=["image", "label"])).to_pylist()
    digits = [np.asarray(Image.open(io.BytesIO(row["image"]["bytes"]))) for row in rows]
    labels = [row["label"] for row in rows]
    right = 0
    for first in range(0, 40, 4):  # whole pictures side by side: their margins keep the digits apart
        picture = Image.fromarray(np.hstack(digits[first : first + 4]))
        right += read(client, picture)["sequence"] == "".join(map(str, labels[first : first + 4]))
    assert right >= 9
