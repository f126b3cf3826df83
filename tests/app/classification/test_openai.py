"""OpenAI's format, with the openai client."""

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


def data_uri(image: Image.Image) -> str:
    return f"data:image/png;base64,{base64.b64encode(encode(image)).decode()}"


def pixels(text: str | None) -> Pixels:
    assert text is not None
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


def generated(address: str, query: str) -> list[Pixels]:
    """The images of GET /generate."""
    body = httpx.get(f"{address}/generate?format=json&{query}").json()
    return [pixels(item["b64_json"]) for item in body["data"]]


@pytest.mark.parametrize("options", [{}, {"encoding_format": "float", "dimensions": 32}])
def test_embeddings_equal_those_of_embed(client: openai.OpenAI, address: str, options: dict[str, Any]) -> None:
    images = [grace_hopper(), photo("coffee"), photo("astronaut")]
    response = client.embeddings.create(
        model="mobilefacenet-triplet", input=[data_uri(image) for image in images], **options
    )
    assert (response.model, response.object, response.usage.total_tokens) == ("mobilefacenet-triplet", "list", 0)
    assert [item.index for item in response.data] == [0, 1, 2]
    files = [("file", ("a.png", encode(image))) for image in images]
    expected = httpx.post(f"{address}/embed", files=files, timeout=60).json()["data"]
    hopper, coffee, astronaut = response.data
    for item, own in ((hopper, expected[0]), (astronaut, expected[2])):
        assert len(item.embedding) == 32
        assert np.abs(np.array(item.embedding) - np.array(own["embedding"])).max() <= 1e-5
    assert np.abs(np.array(hopper.embedding) - np.array(astronaut.embedding)).max() > 1e-3
    assert coffee.embedding is None
    assert coffee.model_extra is not None
    assert coffee.model_extra["problem"]["status"] == 422
    single = client.embeddings.create(model="mobilefacenet-triplet", input=data_uri(photo("astronaut")), **options)
    assert np.linalg.norm(single.data[0].embedding) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("model", "prompt", "labels"),
    [("cvae-mnist", "7", "7777"), ("cvae-mnist", "2, 0,2,6", "2026"), ("wgan-faces", "", None)],
)
@pytest.mark.parametrize("response_format", ["b64_json", "url"])
def test_images_equal_those_of_generate(
    client: openai.OpenAI,
    address: str,
    weights: Path,
    model: str,
    prompt: str,
    labels: str | None,
    response_format: Any,
) -> None:
    response = client.images.generate(
        model=model, prompt=prompt, n=4, size="auto", response_format=response_format, extra_body={"seed": 5}
    )
    assert response.data is not None
    query = f"model={model}&n=4&seed=5" + (f"&label={','.join(labels)}" if labels else "")
    for item, expected in zip(response.data, generated(address, query), strict=True):
        assert (item.b64_json is None) != (item.url is None)
        text = item.b64_json if item.url is None else item.url.removeprefix("data:image/png;base64,")
        assert np.array_equal(pixels(text), expected)
    size = "28x28" if model == "cvae-mnist" else "32x32"
    assert (response.created, response.size, response.output_format) == (0, size, "png")
    if labels:
        assert [item.model_extra for item in response.data] == [{"label": label} for label in labels]
    assert response.model_extra is not None
    assert response.model_extra["version"] == checkpoint.read_card(weights / model).version


def test_images_without_a_seed_are_random_and_can_be_repeated(client: openai.OpenAI, address: str) -> None:
    first, second = (client.images.generate(prompt="3", model="gan-mnist") for _ in range(2))
    assert first.data is not None
    assert second.data is not None
    assert first.data[0].b64_json != second.data[0].b64_json
    assert first.created > 1e9
    assert first.model_extra is not None
    seed = first.model_extra["seed"]
    (repeated,) = generated(address, f"model=gan-mnist&n=1&label=3&seed={seed}")
    assert np.array_equal(pixels(first.data[0].b64_json), repeated)


@pytest.mark.parametrize(
    ("params", "error"),
    [
        ({"prompt": "a cat"}, "cvae-mnist has no label 'a cat'; it has: 0, 1, 2"),
        ({"prompt": "10"}, "has no label '10'"),
        ({"prompt": "1,2", "n": 3}, "2 labels for 3"),
        ({"prompt": "1,2"}, "2 labels for 1"),
        ({"prompt": ""}, "needs a label"),
        ({"prompt": " "}, "needs a label"),
        ({"prompt": "a face", "model": "wgan-faces"}, "wgan-faces has no labels"),
        ({"prompt": "1", "size": "1024x1024"}, "generates images of 28x28, not 1024x1024"),
        ({"prompt": "1", "n": "2"}, "n"),
        ({"prompt": "1", "model": "dall-e-3"}, "not a model for this task"),
        ({"prompt": "1", "model": "ae-mnist"}, "not a model for this task"),
    ],
)
def test_invalid_requests_for_images(client: openai.OpenAI, params: dict[str, Any], error: str) -> None:
    with pytest.raises(openai.UnprocessableEntityError, match="Error code: 422 - ") as caught:
        client.images.generate(**{"model": "cvae-mnist"} | params)
    assert error in str(caught.value)
    assert str(caught.value.type).startswith("urn:vestibule:problem:")
    assert caught.value.response.headers["content-type"] == "application/problem+json"


def test_invalid_requests_for_embeddings(client: openai.OpenAI, address: str) -> None:
    image = data_uri(photo("coffee"))
    for params, kind, message in (
        ({"model": "nobody", "input": image}, openai.UnprocessableEntityError, "'nobody' is not a model"),
        ({"model": "mobilefacenet-triplet", "input": image}, openai.UnprocessableEntityError, "no face was found"),
        ({"model": "mobilefacenet-triplet", "input": "a text"}, openai.BadRequestError, "not base64"),
        ({"model": "mobilefacenet-triplet", "input": [1, 2]}, openai.BadRequestError, "the body must be"),
    ):
        with pytest.raises(kind, match=message):
            client.embeddings.create(**params)
    assert "message" not in httpx.get(f"{address}/models/nobody").json()


def test_models(client: openai.OpenAI, address: str) -> None:
    listed = list(client.models.list())
    assert {model.id for model in listed} == {row["name"] for row in httpx.get(f"{address}/models").json()["data"]}
    assert {(model.object, model.owned_by, model.created) for model in listed} == {("model", "vestibule", 0)}
    assert client.models.retrieve("cvae-mnist").id == "cvae-mnist"
    with pytest.raises(openai.NotFoundError, match="no such model"):
        client.models.retrieve("nobody")


def test_unknown_fields_are_ignored(client: openai.OpenAI) -> None:
    extra: dict[str, Any] = {"seed": 5, "an_unknown_field": {"nested": [1]}}
    options: dict[str, Any] = {"quality": "hd", "background": "opaque", "moderation": "low", "output_format": "png"}
    plain = client.images.generate(model="cvae-mnist", prompt="7", extra_body={"seed": 5})
    full = client.images.generate(model="cvae-mnist", prompt="7", extra_body=extra, **options)
    assert plain.data is not None
    assert full.data is not None
    assert plain.data[0].b64_json == full.data[0].b64_json
    image = data_uri(photo("astronaut"))
    response = client.embeddings.create(model="mobilefacenet-triplet", input=image, extra_body={"input_type": "query"})
    assert len(response.data[0].embedding) == 32
