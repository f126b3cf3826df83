"""POST /classify end to end, with the shipped weights and real pictures."""

from __future__ import annotations

import base64
import io

import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image, ImageDraw

from app.settings import PROJECT
from models import checkpoint
from tests.conftest import encode, photo


def classes(response_item: dict[str, list[dict[str, str]]]) -> list[str]:
    return [prediction["class"] for prediction in response_item["predictions"]]


def test_coffee_is_espresso(client: TestClient) -> None:
    response = client.post("/classify", files={"file": ("coffee.jpg", encode(photo("coffee"), "JPEG"))})
    assert response.status_code == 200
    body = response.json()
    assert body["model"] == "efficientnet-lite0"
    assert classes(body["data"][0])[0] == "espresso"


def test_chelsea_is_a_cat(client: TestClient) -> None:
    response = client.post("/classify?top_k=3", files={"file": ("cat.png", encode(photo("chelsea")))})
    assert {"tabby", "tiger cat", "Egyptian cat"} & set(classes(response.json()["data"][0]))


def test_rocket_is_something_that_flies(client: TestClient) -> None:
    response = client.post("/classify", files={"file": ("rocket.jpg", encode(photo("rocket"), "JPEG"))})
    assert {"missile", "projectile", "space shuttle"} & set(classes(response.json()["data"][0]))


def test_confidences_are_the_networks_softmax(client: TestClient) -> None:
    module, card = checkpoint.load(PROJECT / "weights" / "efficientnet-lite0")
    with torch.inference_mode():
        logits = module(card.preprocess(photo("coffee"))[None])[0]
    expected = (logits / card.temperature).softmax(0)

    response = client.post(
        "/classify?top_k=1000", content=encode(photo("coffee")), headers={"content-type": "image/png"}
    )
    predictions = response.json()["data"][0]["predictions"]
    answered = torch.zeros(1000)
    for prediction in predictions:
        answered[prediction["class_id"]] = prediction["confidence"]
        assert prediction["class"] == card.classes[prediction["class_id"]]
    assert len(predictions) == 1000
    assert torch.allclose(answered, expected, atol=1e-5)
    confidences = [prediction["confidence"] for prediction in predictions]
    assert confidences == sorted(confidences, reverse=True)


@pytest.mark.parametrize("kind", ["multipart", "raw", "json", "data uri"])
def test_every_kind_of_body_gets_the_same_answer(client: TestClient, kind: str) -> None:
    data = encode(photo("chelsea"))
    text = base64.b64encode(data).decode()
    response = {
        "multipart": lambda: client.post("/classify", files={"file": ("cat.png", data)}),
        "raw": lambda: client.post("/classify", content=data, headers={"content-type": "image/png"}),
        "json": lambda: client.post("/classify", json={"input": text}),
        "data uri": lambda: client.post("/classify", json={"input": f"data:image/png;base64,{text}"}),
    }[kind]()
    reference = client.post("/classify", content=data, headers={"content-type": "image/png"}).json()
    assert response.status_code == 200
    assert classes(response.json()["data"][0]) == classes(reference["data"][0])


def test_one_bad_picture_of_a_list_costs_no_neighbour(client: TestClient) -> None:
    good = base64.b64encode(encode(photo("coffee"), "JPEG")).decode()
    response = client.post("/classify?top_k=1", json={"input": [good, "not base64!", "aGVsbG8=", good]})
    assert response.status_code == 200
    data = response.json()["data"]
    assert [item["index"] for item in data] == [0, 1, 2, 3]
    assert classes(data[0]) == classes(data[3]) == ["espresso"]
    assert data[1]["problem"]["status"] == 400
    assert data[2]["problem"]["type"] == "urn:vestibule:problem:unsupported-image"


def test_a_list_of_64_files_comes_back_in_order(client: TestClient) -> None:
    pictures = [encode(photo(name).resize((256, 256)), "JPEG") for name in ("coffee", "chelsea")]
    files = [("file", (f"{i}.jpg", pictures[i % 2])) for i in range(64)]
    response = client.post("/classify?top_k=1", files=files)
    answers = [classes(item)[0] for item in response.json()["data"]]
    assert answers[::2] == ["espresso"] * 32
    assert len(set(answers[1::2])) == 1
    assert answers[1] != "espresso"


def test_exif_orientation_is_applied(client: TestClient) -> None:
    upright = photo("coffee")
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate me by 90 degrees clockwise"
    buffer = io.BytesIO()
    upright.rotate(90, expand=True).save(buffer, "PNG", exif=exif)
    turned = client.post("/classify?top_k=1", content=buffer.getvalue(), headers={"content-type": "image/png"}).json()
    plain = client.post("/classify?top_k=1", content=encode(upright), headers={"content-type": "image/png"}).json()
    assert turned["data"] == plain["data"]


def test_lenet_reads_a_drawn_seven(client: TestClient) -> None:
    canvas = Image.new("L", (280, 280))
    ImageDraw.Draw(canvas).line([(80, 75), (200, 75), (130, 215)], fill=255, width=24, joint="curve")
    response = client.post(
        "/classify?model=lenet5-mnist&top_k=1", content=encode(canvas), headers={"content-type": "image/png"}
    )
    assert response.json()["model"] == "lenet5-mnist"
    assert response.json()["data"][0]["predictions"][0]["class_id"] == 7


def test_an_answer_carries_its_id_and_its_times(client: TestClient) -> None:
    response = client.post(
        "/classify",
        content=encode(photo("coffee"), "JPEG"),
        headers={"content-type": "image/jpeg", "x-request-id": "abc-1"},
    )
    assert response.headers["x-request-id"] == "abc-1"
    stages = [stage.split(";dur=") for stage in response.headers["server-timing"].split(", ")]
    assert [name for name, _ in stages] == ["receive", "decode", "queue", "infer", "app", "total"]
    times = {name: float(value) for name, value in stages}
    assert all(time >= 0 for time in times.values())
    assert times["decode"] > 0
    assert sum(times.values()) == pytest.approx(2 * times["total"], abs=0.04)  # each is rounded to 0.01 ms


def test_an_unsafe_request_id_is_replaced(client: TestClient) -> None:
    response = client.get("/health/live", headers={"x-request-id": "a b\tc"})
    assert len(response.headers["x-request-id"]) == 32
