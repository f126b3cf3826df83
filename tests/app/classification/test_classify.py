"""POST /classify end to end, with the shipped weights and real images."""

from __future__ import annotations

import base64
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient

from app.settings import PROJECT
from models import checkpoint
from tests.conftest import encode, photo

PNG = {"content-type": "image/png"}


def classes(response_item: dict[str, list[dict[str, str]]]) -> list[str]:
    return [prediction["class"] for prediction in response_item["predictions"]]


def test_confidences_are_the_network_s_softmax(client: TestClient) -> None:
    module, card = checkpoint.load(PROJECT / "weights" / "efficientnet-lite0")
    with torch.inference_mode():
        logits = module(card.preprocess(photo("coffee"))[None])[0]
    expected = (logits / card.temperature).softmax(0)

    response = client.post("/classify?top_k=1000", content=encode(photo("coffee")), headers=PNG)
    predictions = response.json()["data"][0]["predictions"]
    returned = torch.zeros(1000)
    for prediction in predictions:
        returned[prediction["class_id"]] = prediction["confidence"]
        assert prediction["class"] == card.classes[prediction["class_id"]]
    assert len(predictions) == 1000
    assert torch.allclose(returned, expected, atol=1e-5)
    confidences = [prediction["confidence"] for prediction in predictions]
    assert confidences == sorted(confidences, reverse=True)


def test_all_kinds_of_bodies_give_the_same_result(client: TestClient) -> None:
    data = encode(photo("chelsea"))
    text = base64.b64encode(data).decode()
    bodies: list[dict[str, Any]] = [
        {"content": data, "headers": PNG},
        {"files": {"file": ("cat.png", data)}},
        {"json": {"input": text}},
        {"json": {"input": f"data:image/png;base64,{text}"}},
    ]
    first, *others = (client.post("/classify", **body).json() for body in bodies)
    assert others == [first] * 3


def test_an_invalid_image_does_not_affect_the_others(client: TestClient) -> None:
    good = base64.b64encode(encode(photo("coffee"), "JPEG")).decode()
    response = client.post("/classify?top_k=1", json={"input": [good, "not base64!", "aGVsbG8=", good]})
    assert response.status_code == 200
    data = response.json()["data"]
    assert [item["index"] for item in data] == [0, 1, 2, 3]
    assert classes(data[0]) == classes(data[3]) == ["espresso"]
    assert data[1]["problem"]["status"] == 400
    assert data[2]["problem"]["type"] == "urn:vestibule:problem:unsupported-image"


def test_a_list_of_64_files_keeps_its_order(client: TestClient) -> None:
    images = [encode(photo(name).resize((256, 256)), "JPEG") for name in ("coffee", "chelsea")]
    files = [("file", (f"{i}.jpg", images[i % 2])) for i in range(64)]
    results = [classes(item)[0] for item in client.post("/classify?top_k=1", files=files).json()["data"]]
    assert results[::2] == ["espresso"] * 32
    assert len(set(results[1::2])) == 1
    assert results[1] != "espresso"


def test_request_id_and_server_timing(client: TestClient) -> None:
    response = client.post("/classify", content=encode(photo("coffee")), headers={**PNG, "x-request-id": "abc-1"})
    assert response.headers["x-request-id"] == "abc-1"
    stages = [stage.split(";dur=") for stage in response.headers["server-timing"].split(", ")]
    assert [name for name, _ in stages] == ["receive", "decode", "queue", "infer", "app", "total"]
    times = {name: float(value) for name, value in stages}
    assert all(time >= 0 for time in times.values())
    assert times["decode"] > 0
    assert sum(times.values()) == pytest.approx(2 * times["total"], abs=0.04)  # each is rounded to 0.01 ms
    unsafe = client.get("/health/live", headers={"x-request-id": "a b\tc"})
    assert len(unsafe.headers["x-request-id"]) == 32
