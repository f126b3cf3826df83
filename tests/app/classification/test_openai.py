"""OpenAI's form, as the real openai client asks for it and reads it."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import openai
import pytest
from PIL import Image

from app.settings import Settings
from models import checkpoint
from tests.app.all_models import random_models
from tests.app.face_pictures import grace_hopper
from tests.app.threaded import serving_here
from tests.conftest import encode, photo

Pixels = npt.NDArray[np.uint8]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_models(tmp_path_factory)


@pytest.fixture(scope="module")
def address(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    state = tmp_path_factory.mktemp("state")
    with serving_here(Settings(weights=weights, state=state, default_classifier="lenet5-mnist")) as url:
        yield url


@pytest.fixture
def client(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none is needed") as connected:
        yield connected


def data_uri(picture: Image.Image) -> str:
    return f"data:image/png;base64,{base64.b64encode(encode(picture)).decode()}"


def pixels(text: str | None) -> Pixels:
    assert text is not None
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


def drawn(address: str, query: str) -> list[Pixels]:
    """What GET /generate draws."""
    body = httpx.get(f"{address}/generate?format=json&{query}").json()
    return [pixels(item["b64_json"]) for item in body["data"]]


@pytest.mark.parametrize("form", [{}, {"encoding_format": "float"}])
def test_two_faces_are_embedded(client: openai.OpenAI, address: str, form: dict[str, Any]) -> None:
    people = [grace_hopper(), photo("astronaut")]
    pictures = [data_uri(person) for person in people]
    answer = client.embeddings.create(model="mobilefacenet-triplet", input=pictures, **form)
    assert (answer.model, answer.object, answer.usage.total_tokens) == ("mobilefacenet-triplet", "list", 0)
    assert [item.index for item in answer.data] == [0, 1]
    files = [("file", ("a.png", encode(person))) for person in people]
    expected = [item["embedding"] for item in httpx.post(f"{address}/embed", files=files).json()["data"]]
    found = np.array([item.embedding for item in answer.data])
    assert found.shape == (2, 32)
    assert np.abs(found - np.array(expected)).max() <= 1e-5
    assert np.abs(found[0] - found[1]).max() > 1e-3


def test_one_face_is_embedded(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model="mobilefacenet-triplet", input=data_uri(photo("astronaut")), dimensions=32)
    assert np.linalg.norm(answer.data[0].embedding) == pytest.approx(1, abs=1e-5)


def test_a_picture_without_a_face_costs_its_neighbour_nothing(client: openai.OpenAI) -> None:
    pictures = [data_uri(photo("coffee")), data_uri(photo("astronaut"))]
    coffee, astronaut = client.embeddings.create(model="mobilefacenet-triplet", input=pictures).data
    assert coffee.embedding is None
    assert coffee.model_extra is not None
    assert coffee.model_extra["problem"]["status"] == 422
    assert len(astronaut.embedding) == 32


def test_four_digits_are_drawn(client: openai.OpenAI, address: str) -> None:
    answer = client.images.generate(model="cvae-mnist", prompt="7", n=4, extra_body={"seed": 5})
    assert answer.data is not None
    found = [pixels(item.b64_json) for item in answer.data]
    assert len(found) == 4
    assert all(
        np.array_equal(one, other) for one, other in zip(found, drawn(address, "n=4&seed=5&label=7"), strict=True)
    )
    assert (answer.created, answer.size, answer.output_format) == (0, "28x28", "png")
    assert all(item.url is None for item in answer.data)


def test_a_digit_for_each_picture(client: openai.OpenAI, address: str) -> None:
    answer = client.images.generate(
        model="cvae-mnist", prompt="2, 0,2,6", n=4, size="28x28", response_format="url", extra_body={"seed": 1}
    )
    assert answer.data is not None
    for item, expected in zip(answer.data, drawn(address, "n=4&seed=1&label=2,0,2,6"), strict=True):
        assert item.b64_json is None
        assert item.url is not None
        assert np.array_equal(pixels(item.url.removeprefix("data:image/png;base64,")), expected)
    assert [item.model_extra for item in answer.data] == [{"label": digit} for digit in "2026"]


def test_without_a_seed_the_pictures_are_others_each_time_and_can_be_had_again(
    client: openai.OpenAI, address: str
) -> None:
    first, second = (client.images.generate(prompt="3", model="gan-mnist") for _ in range(2))
    assert first.data is not None
    assert second.data is not None
    assert first.data[0].b64_json != second.data[0].b64_json
    assert first.created > 1e9
    assert first.model_extra is not None
    seed = first.model_extra["seed"]
    (again,) = drawn(address, f"model=gan-mnist&n=1&label=3&seed={seed}")
    assert np.array_equal(pixels(first.data[0].b64_json), again)


def test_what_knows_no_labels_takes_an_empty_prompt(client: openai.OpenAI, address: str, weights: Path) -> None:
    answer = client.images.generate(model="wgan-faces", prompt="", n=2, size="auto", extra_body={"seed": 3})
    assert answer.data is not None
    for item, expected in zip(answer.data, drawn(address, "model=wgan-faces&n=2&seed=3"), strict=True):
        assert np.array_equal(pixels(item.b64_json), expected)
    assert answer.size == "32x32"
    assert answer.model_extra is not None
    assert answer.model_extra["version"] == checkpoint.read_card(weights / "wgan-faces").version


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"prompt": "a cat"}, "cvae-mnist has no label 'a cat'; it has: 0, 1, 2"),
        ({"prompt": "10"}, "has no label '10'"),
        ({"prompt": "1,2", "n": 3}, "2 labels for 3"),
        ({"prompt": "1,2"}, "2 labels for 1"),
        ({"prompt": ""}, "needs a label"),
        ({"prompt": " "}, "needs a label"),
        ({"prompt": "a face", "model": "wgan-faces"}, "wgan-faces has no labels"),
        ({"prompt": "1", "size": "1024x1024"}, "draws pictures of 28x28, not of 1024x1024"),
        ({"prompt": "1", "size": "large"}, "size"),
        ({"prompt": "1", "n": 0}, "n"),
        ({"prompt": "1", "n": 65}, "n"),
        ({"prompt": "1", "n": "2"}, "n"),
        ({"prompt": "1", "model": "dall-e-3"}, "not a model for this task"),
        ({"prompt": "1", "model": "ae-mnist"}, "not a model for this task"),
        ({"prompt": "1", "response_format": "png"}, "response_format"),
        ({"prompt": "1", "extra_body": {"seed": -1}}, "seed"),
        ({"prompt": "1" * 2000}, "prompt"),
    ],
)
def test_what_cannot_be_drawn_is_a_clear_422(client: openai.OpenAI, asked: dict[str, Any], told: str) -> None:
    with pytest.raises(openai.UnprocessableEntityError, match="Error code: 422 - ") as caught:
        client.images.generate(**{"model": "cvae-mnist"} | asked)
    assert told in str(caught.value)
    assert str(caught.value.type).startswith("urn:vestibule:problem:")
    assert caught.value.response.headers["content-type"] == "application/problem+json"


def test_errors_of_embeddings_say_what_is_wrong(client: openai.OpenAI, address: str) -> None:
    picture = data_uri(photo("coffee"))
    for asked, kind, told in (
        ({"model": "nobody", "input": picture}, openai.UnprocessableEntityError, "'nobody' is not a model"),
        ({"model": "mobilefacenet-triplet", "input": picture}, openai.UnprocessableEntityError, "no face was found"),
        ({"model": "mobilefacenet-triplet", "input": "a text"}, openai.BadRequestError, "not base64"),
        ({"model": "mobilefacenet-triplet", "input": [1, 2]}, openai.BadRequestError, "the body must be"),
    ):
        with pytest.raises(kind, match=told):
            client.embeddings.create(**asked)
    assert "message" not in httpx.get(f"{address}/models/nobody").json()


def test_models_are_listed(client: openai.OpenAI, address: str) -> None:
    listed = list(client.models.list())
    assert {model.id for model in listed} == {row["name"] for row in httpx.get(f"{address}/models").json()["data"]}
    assert {(model.object, model.owned_by, model.created) for model in listed} == {("model", "vestibule", 0)}
    assert client.models.retrieve("cvae-mnist").id == "cvae-mnist"
    with pytest.raises(openai.NotFoundError, match="no model of that name"):
        client.models.retrieve("nobody")


def test_fields_that_are_not_known_are_ignored(client: openai.OpenAI) -> None:
    extra: dict[str, Any] = {"seed": 5, "a_field_of_tomorrow": {"deep": [1]}}
    known: dict[str, Any] = {"quality": "hd", "background": "opaque", "moderation": "low", "output_format": "png"}
    bare = client.images.generate(model="cvae-mnist", prompt="7", extra_body={"seed": 5})
    full = client.images.generate(model="cvae-mnist", prompt="7", extra_body=extra, **known)
    assert bare.data is not None
    assert full.data is not None
    assert bare.data[0].b64_json == full.data[0].b64_json
    picture = data_uri(photo("astronaut"))
    answer = client.embeddings.create(model="mobilefacenet-triplet", input=picture, extra_body={"input_type": "query"})
    assert len(answer.data[0].embedding) == 32
