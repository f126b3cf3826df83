"""The Open Inference Protocol, spoken by the real tritonclient to a service of its own."""

from __future__ import annotations

import base64
import gzip
import json
import socket
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pytest
import torch
import tritonclient.http as triton
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image
from torch.nn import functional as F
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from app.errors import BadRequest, BodyTooLarge, VestibuleError
from app.main import create_app
from app.middleware import request_log
from app.open_inference.messages import HEAD, JSON_LIMITS, Asked, Message, Wanted, document, parse
from app.open_inference.schemas import MOST_NUMBERS
from app.open_inference.tensors import Form
from app.settings import Settings
from models import checkpoint
from models.generative import SupportsDecode, SupportsEncode
from tests.app.all_models import random_models
from tests.app.conftest import BASE_URL
from tests.app.threaded import serving_here
from tests.conftest import encode, photo

Array = npt.NDArray[Any]

CLASSIFIER, EMBEDDER, GENERATOR = "lenet5-mnist", "mobilefacenet-triplet", "cvae-mnist"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_models(tmp_path_factory)


@pytest.fixture(scope="module")
def settings(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(weights=weights, state=tmp_path_factory.mktemp("state"), default_classifier=CLASSIFIER)


@pytest.fixture(scope="module")
def address(settings: Settings) -> Iterator[str]:
    with serving_here(settings.model_copy(update={"max_body_bytes": 4_000_000})) as url:
        yield url


@pytest.fixture
def client(address: str) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(address.removeprefix("http://")) as connected:
        yield connected


def sent(name: str, array: Array, binary: bool = True) -> triton.InferInput:
    tensor = triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    return tensor.set_data_from_numpy(array, binary_data=binary)


def wanted(name: str, binary: bool = True, classes: int = 0) -> triton.InferRequestedOutput:
    return triton.InferRequestedOutput(name, binary_data=binary, class_count=classes)


def noise(*shape: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def own(weights: Path, name: str, batch: Array) -> Array:
    """What the network itself answers."""
    network, _ = checkpoint.load(weights / name)
    with torch.inference_mode():
        answer: Array = network(torch.from_numpy(batch)).numpy()
    return answer


def drawn(weights: Path, name: str, latents: Array, classes: list[int] | None = None) -> Array:
    """What the decoder itself draws."""
    network, _ = checkpoint.load(weights / name)
    assert isinstance(network, SupportsDecode)
    given = torch.zeros(len(latents), 0) if classes is None else F.one_hot(torch.tensor(classes), 10).float()
    with torch.inference_mode():
        return network.decode(torch.from_numpy(latents), given).numpy()


def refused(call: Any, *args: Any, **options: Any) -> tuple[str, str]:
    with pytest.raises(InferenceServerException) as caught:
        call(*args, **options)
    return caught.value.status(), caught.value.message()


def test_the_server_says_what_it_is(client: triton.InferenceServerClient, weights: Path) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data", "classification"]
    index = {row["name"]: row for row in client.get_model_repository_index()}
    assert {CLASSIFIER, EMBEDDER, GENERATOR, "denoiser-photo"} <= index.keys()
    assert "centerface" not in index
    version = checkpoint.read_card(weights / EMBEDDER).version
    assert (index[EMBEDDER]["version"], index[EMBEDDER]["state"]) == (version, "READY")
    assert client.is_model_ready(EMBEDDER)
    assert client.is_model_ready(EMBEDDER, version)
    assert not client.is_model_ready(EMBEDDER, "1")
    assert not client.is_model_ready("centerface")
    assert not client.is_model_ready("nobody")


@pytest.mark.parametrize(
    ("model", "inputs", "outputs"),
    [
        (
            CLASSIFIER,
            {"pictures": ("FP32", [-1, 1, 32, 32])},
            {"logits": ("FP32", [-1, 10]), "probabilities": ("FP32", [-1, 10])},
        ),
        (EMBEDDER, {"pictures": ("FP32", [-1, 3, 112, 112])}, {"embeddings": ("FP32", [-1, 32])}),
        (
            GENERATOR,
            {"latents": ("FP32", [-1, 6]), "labels": ("INT64", [-1])},
            {"pictures": ("FP32", [-1, 1, 28, 28])},
        ),
        ("wgan-faces", {"latents": ("FP32", [-1, 12])}, {"pictures": ("FP32", [-1, 3, 32, 32])}),
        ("ae-mnist", {"pictures": ("FP32", [-1, 1, 28, 28])}, {"pictures": ("FP32", [-1, 1, 28, 28])}),
        ("denoiser-photo", {"pictures": ("FP32", [-1, 3, -1, -1])}, {"pictures": ("FP32", [-1, 3, -1, -1])}),
    ],
)
def test_metadata_says_how_a_model_is_asked(
    client: triton.InferenceServerClient, weights: Path, model: str, inputs: dict[str, Any], outputs: dict[str, Any]
) -> None:
    version = checkpoint.read_card(weights / model).version
    found = client.get_model_metadata(model)
    assert found == client.get_model_metadata(model, version)
    assert (found["name"], found["versions"], found["platform"]) == (model, [version], "pytorch_safetensors")
    for side, expected in (("inputs", inputs), ("outputs", outputs)):
        assert {tensor["name"]: (tensor["datatype"], tensor["shape"]) for tensor in found[side]} == expected
    assert refused(client.get_model_metadata, model, "1")[0] == "404"


def test_other_forms_and_the_scale_are_in_the_metadata(client: triton.InferenceServerClient) -> None:
    (pictures,) = client.get_model_metadata(CLASSIFIER)["inputs"]
    assert pictures["parameters"] == {
        "mode": "L",
        "mean": "[33.3]",
        "std": "[78.6]",
        "also": "UINT8 [-1, -1, -1, 1]; BYTES [-1]",
    }


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("rows", [1, 7, 64])
def test_a_classifier_answers_as_the_network_does(
    client: triton.InferenceServerClient, weights: Path, binary: bool, rows: int
) -> None:
    batch = noise(rows, 1, 32, 32)
    outputs = [wanted("probabilities", binary), wanted("logits", binary)]
    result = client.infer(CLASSIFIER, [sent("pictures", batch, binary)], outputs=outputs, request_id="a request's id")
    expected = own(weights, CLASSIFIER, batch)
    card = checkpoint.read_card(weights / CLASSIFIER)
    assert np.abs(result.as_numpy("logits") - expected).max() <= 1e-5
    probabilities = torch.from_numpy(expected).div(card.temperature).softmax(1).numpy()
    assert np.abs(result.as_numpy("probabilities") - probabilities).max() <= 1e-5
    response = result.get_response()
    assert (response["id"], response["model_name"], response["model_version"]) == (
        "a request's id",
        CLASSIFIER,
        card.version,
    )
    assert [output["name"] for output in response["outputs"]] == ["probabilities", "logits"]
    assert all(("data" in output) != binary for output in response["outputs"])


def test_all_outputs_are_answered_where_none_is_named_else_only_those(client: triton.InferenceServerClient) -> None:
    inputs = [sent("pictures", noise(2, 1, 32, 32))]
    everything = client.infer(CLASSIFIER, inputs)
    assert {output["name"] for output in everything.get_response()["outputs"]} == {"logits", "probabilities"}
    assert "id" not in everything.get_response()
    some = client.infer(CLASSIFIER, inputs, outputs=[wanted("logits")])
    assert [output["name"] for output in some.get_response()["outputs"]] == ["logits"]
    assert some.as_numpy("probabilities") is None
    assert np.array_equal(some.as_numpy("logits"), everything.as_numpy("logits"))
    mixed = client.infer(CLASSIFIER, inputs, outputs=[wanted("logits", False), wanted("probabilities")])
    for name in ("logits", "probabilities"):
        assert np.array_equal(mixed.as_numpy(name), everything.as_numpy(name))


@pytest.mark.parametrize("binary", [True, False])
def test_an_embedder_answers_as_the_network_does(
    client: triton.InferenceServerClient, weights: Path, binary: bool
) -> None:
    batch = noise(2, 3, 112, 112)
    version = checkpoint.read_card(weights / EMBEDDER).version
    result = client.infer(EMBEDDER, [sent("pictures", batch, binary)], version, outputs=[wanted("embeddings", binary)])
    found = result.as_numpy("embeddings")
    assert np.abs(found - own(weights, EMBEDDER, batch)).max() <= 1e-5
    assert np.linalg.norm(found, axis=1) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("label_shape", [(3,), (3, 1)])
@pytest.mark.parametrize(("latents_binary", "labels_binary"), [(True, True), (True, False), (False, True)])
def test_a_generator_draws_as_the_network_does(
    client: triton.InferenceServerClient,
    weights: Path,
    label_shape: tuple[int, ...],
    latents_binary: bool,
    labels_binary: bool,
) -> None:
    latents, labels = noise(3, 6), np.array([7, 0, 9])
    inputs = [sent("labels", labels.reshape(label_shape), labels_binary), sent("latents", latents, latents_binary)]
    for order in (inputs, inputs[::-1]):
        found = client.infer(GENERATOR, order).as_numpy("pictures")
        assert np.abs(found - drawn(weights, GENERATOR, latents, labels.tolist())).max() <= 1e-5


def test_a_generator_without_labels_takes_latents_alone(client: triton.InferenceServerClient, weights: Path) -> None:
    latents = noise(20, 12)
    found = client.infer("wgan-faces", [sent("latents", latents)]).as_numpy("pictures")
    assert np.abs(found - drawn(weights, "wgan-faces", latents)).max() <= 1e-5


def test_pictures_go_through_denoisers_and_autoencoders(client: triton.InferenceServerClient, weights: Path) -> None:
    pictures = noise(2, 3, 24, 40)
    found = client.infer("denoiser-photo", [sent("pictures", pictures)]).as_numpy("pictures")
    assert np.abs(found - own(weights, "denoiser-photo", pictures)).max() <= 1e-5
    pictures = noise(3, 1, 28, 28)
    found = client.infer("ae-mnist", [sent("pictures", pictures)]).as_numpy("pictures")
    network, _ = checkpoint.load(weights / "ae-mnist")
    assert isinstance(network, SupportsEncode)
    with torch.inference_mode():
        latents = network.embed(torch.from_numpy(pictures), torch.zeros(3, 0)).numpy()
    assert np.abs(found - drawn(weights, "ae-mnist", latents)).max() <= 1e-5


def test_files_and_pixels_are_prepared_as_for_classify(
    client: triton.InferenceServerClient, address: str, weights: Path
) -> None:
    card = checkpoint.read_card(weights / EMBEDDER)
    pictures = [photo("astronaut"), photo("coffee").resize((512, 512))]
    expected = own(weights, EMBEDDER, torch.stack([card.preprocess(picture) for picture in pictures]).numpy())
    files = np.array([encode(picture) for picture in pictures], object)
    assert np.abs(client.infer(EMBEDDER, [sent("pictures", files)]).as_numpy("embeddings") - expected).max() <= 1e-5
    pixels = np.stack([np.asarray(picture) for picture in pictures])
    assert np.abs(client.infer(EMBEDDER, [sent("pictures", pixels)]).as_numpy("embeddings") - expected).max() <= 1e-5
    digit = np.asarray(photo("coffee").convert("L"))
    probabilities = client.infer(CLASSIFIER, [sent("pictures", digit[None, :, :, None])]).as_numpy("probabilities")
    body = httpx.post(f"{address}/classify?top_k=10", files={"file": encode(Image.fromarray(digit))}).json()
    assert {item["class_id"]: item["confidence"] for item in body["data"][0]["predictions"]} == pytest.approx(
        dict(enumerate(probabilities[0].tolist())), abs=1e-5
    )


def test_a_file_in_json_is_base64(client: triton.InferenceServerClient, address: str) -> None:
    file = encode(photo("coffee"))
    text = base64.b64encode(file).decode()
    tensor = {"name": "pictures", "shape": [2], "datatype": "BYTES", "data": [text, f"data:image/png;base64,{text}"]}
    body = httpx.post(f"{address}/v2/models/{CLASSIFIER}/infer", json={"inputs": [tensor]}).json()
    logits = next(output["data"] for output in body["outputs"] if output["name"] == "logits")
    expected = client.infer(CLASSIFIER, [sent("pictures", np.array([file, file], object))]).as_numpy("logits")
    assert np.abs(np.reshape(logits, (2, 10)) - expected).max() <= 1e-5


@pytest.mark.parametrize("binary", [True, False])
def test_classes_are_named_as_triton_does(client: triton.InferenceServerClient, weights: Path, binary: bool) -> None:
    batch = noise(2, 1, 32, 32)
    outputs = [wanted("logits", binary, 3), wanted("probabilities", binary, 99)]
    result = client.infer(CLASSIFIER, [sent("pictures", batch)], outputs=outputs)
    found, everything = result.as_numpy("logits"), result.as_numpy("probabilities")
    assert (found.shape, everything.shape) == ((2, 3), (2, 10))
    logits = own(weights, CLASSIFIER, batch)
    for row, texts in zip(logits, found, strict=True):
        for index, text in zip(np.argsort(-row), texts, strict=False):
            value, place, name = (text.decode() if isinstance(text, bytes) else text).split(":")
            assert (int(place), name) == (index, str(index))
            assert float(value) == pytest.approx(float(row[index]), abs=1e-5)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_packed_requests_are_unpacked(client: triton.InferenceServerClient, algorithm: str) -> None:
    for binary in (True, False):
        inputs = [sent("pictures", noise(2, 1, 32, 32), binary)]
        packed = client.infer(
            CLASSIFIER, inputs, request_compression_algorithm=algorithm, response_compression_algorithm=algorithm
        )
        assert np.array_equal(packed.as_numpy("logits"), client.infer(CLASSIFIER, inputs).as_numpy("logits"))


def test_parameters_of_others_are_taken_and_mean_nothing(client: triton.InferenceServerClient) -> None:
    inputs = [sent("pictures", noise(1, 1, 32, 32))]
    result = client.infer(CLASSIFIER, inputs, priority=1, timeout=1_000_000, parameters={"mine": "x", "other": 2.5})
    assert result.as_numpy("logits").shape == (1, 10)


def test_many_requests_at_once(client: triton.InferenceServerClient, address: str, weights: Path) -> None:
    batches = [noise(5, 1, 32, 32) * scale for scale in range(1, 9)]
    with triton.InferenceServerClient(address.removeprefix("http://"), concurrency=8) as crowd:
        requests = [crowd.async_infer(CLASSIFIER, [sent("pictures", batch)]) for batch in batches]
        for batch, request in zip(batches, requests, strict=True):
            found = request.get_result().as_numpy("logits")
            assert np.abs(found - own(weights, CLASSIFIER, batch)).max() <= 1e-4


FEW = examples(max_examples=50, deadline=None)

NAN, INF = noise(1, 1, 32, 32), noise(1, 1, 32, 32)
NAN[0, 0, 3, 3], INF[0, 0, 3, 3] = np.nan, np.inf


@pytest.mark.parametrize(
    ("model", "inputs", "status", "message"),
    [
        (CLASSIFIER, {"pictures": noise(1, 1, 28, 28)}, "400", "FP32 [-1, 1, 32, 32]"),
        (CLASSIFIER, {"pictures": noise(1, 32, 32)}, "400", "got FP32 [1, 32, 32]"),
        (CLASSIFIER, {"pictures": noise(1, 3, 32, 32)}, "400", "got FP32 [1, 3, 32, 32]"),
        (CLASSIFIER, {"pictures": noise(1, 1, 32, 32).astype(np.float64)}, "400", "got FP64"),
        (CLASSIFIER, {"pictures": noise(1, 1, 32, 32).astype(np.float16)}, "400", "got FP16"),
        (CLASSIFIER, {"pictures": noise(0, 1, 32, 32)}, "400", "is empty"),
        (CLASSIFIER, {"pictures": noise(65, 1, 32, 32)}, "413", "a request may have 64"),
        (CLASSIFIER, {"image": noise(1, 1, 32, 32)}, "400", "expected the inputs pictures"),
        (CLASSIFIER, {"pictures": noise(1, 1, 32, 32), "labels": np.array([1])}, "400", "expected the inputs pictures"),
        (CLASSIFIER, {"pictures": NAN}, "400", "not finite"),
        (CLASSIFIER, {"pictures": INF}, "400", "not finite"),
        (CLASSIFIER, {"pictures": np.full((1, 1, 32, 32), 3e38, np.float32)}, "422", "no finite numbers"),
        (CLASSIFIER, {"pictures": np.zeros((1, 9, 9, 3), np.uint8)}, "400", "UINT8 [-1, -1, -1, 1]"),
        (CLASSIFIER, {"pictures": np.array([encode(photo("coffee")), b"no picture"], object)}, "415", "pictures[1]"),
        (CLASSIFIER, {"pictures": np.array([b""], object)}, "415", "pictures[0]"),
        (EMBEDDER, {"pictures": noise(1, 3, 80, 80)}, "400", "FP32 [-1, 3, 112, 112]"),
        (GENERATOR, {"latents": noise(2, 6)}, "400", "expected the inputs latents, labels"),
        (GENERATOR, {"latents": noise(2, 7), "labels": np.array([1, 2])}, "400", "FP32 [-1, 6]"),
        (GENERATOR, {"latents": noise(2, 6), "labels": np.array([1])}, "400", "differ in how many rows"),
        (GENERATOR, {"latents": noise(1, 6), "labels": np.array([10])}, "400", "0 to 9"),
        (GENERATOR, {"latents": noise(1, 6), "labels": np.array([-1])}, "400", "0 to 9"),
        (GENERATOR, {"latents": noise(1, 6), "labels": np.array([1], np.int32)}, "400", "INT64"),
        ("denoiser-photo", {"pictures": noise(1, 3, 24, 25)}, "400", "multiples of 8"),
        ("denoiser-photo", {"pictures": noise(1, 3, 264, 8)}, "413", "at most 256"),
        ("centerface", {"pictures": noise(1, 3, 32, 32)}, "404", "no model of that name"),
        ("nobody", {"pictures": noise(1, 3, 32, 32)}, "404", "no model of that name"),
        ("../classify", {"pictures": noise(1, 3, 32, 32)}, "404", "Not Found"),
    ],
)
def test_what_a_model_does_not_take_is_refused(
    client: triton.InferenceServerClient, model: str, inputs: dict[str, Array], status: str, message: str
) -> None:
    found = refused(client.infer, model, [sent(name, array) for name, array in inputs.items()])
    assert found[0] == status
    assert message in found[1]


def test_another_version_is_not_there(client: triton.InferenceServerClient, weights: Path) -> None:
    inputs, version = [sent("pictures", noise(1, 1, 32, 32))], checkpoint.read_card(weights / CLASSIFIER).version
    assert client.infer(CLASSIFIER, inputs, version).get_response()["model_version"] == version
    for call in (client.infer, client.get_model_metadata):
        status, told = refused(
            call, *([CLASSIFIER, inputs] if call == client.infer else [CLASSIFIER]), model_version="1"
        )
        assert (status, told) == ("404", f"There is nothing here: {CLASSIFIER} has the version {version}, no others")


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ([wanted("scores")], "the outputs are logits, probabilities"),
        ([wanted("logits"), wanted("logits")], "each once at most"),
        ([wanted("logits", classes=-1)], "a number of classes"),
    ],
)
def test_what_a_model_does_not_answer_is_refused(
    client: triton.InferenceServerClient, outputs: list[triton.InferRequestedOutput], message: str
) -> None:
    status, told = refused(client.infer, CLASSIFIER, [sent("pictures", noise(1, 1, 32, 32))], outputs=outputs)
    assert status == "400"
    assert message in told


def test_pictures_have_no_classes_and_memory_is_not_shared(client: triton.InferenceServerClient) -> None:
    inputs = [sent("pictures", noise(1, 1, 28, 28))]
    assert refused(client.infer, "ae-mnist", inputs, outputs=[wanted("pictures", classes=1)])[0] == "400"
    output, tensor = wanted("logits"), triton.InferInput("pictures", [1, 1, 32, 32], "FP32")
    output.set_shared_memory("region", 40)
    tensor.set_shared_memory("region", 4096)
    inputs = [sent("pictures", noise(1, 1, 32, 32))]
    for call in ((CLASSIFIER, [tensor]), (CLASSIFIER, inputs, "", [output])):
        status, told = refused(client.infer, *call)
        assert (status, "shared memory" in told) == ("400", True)


def message(**changes: Any) -> bytes:
    tensor = {"name": "latents", "shape": [1, 12], "datatype": "FP32", "data": [0.5] * 12}
    return json.dumps({"inputs": [tensor | changes]}).encode()


def binary_message(size: Any, follows: int = 48) -> tuple[bytes, dict[str, str]]:
    head = message(parameters={"binary_data_size": size}).replace(b', "data": ' + json.dumps([0.5] * 12).encode(), b"")
    return head + bytes(follows), {HEAD: str(len(head))}


BOMB = gzip.compress(bytes(50_000_000), 9)


@pytest.mark.parametrize(
    ("body", "headers", "status", "told"),
    [
        (message(), {}, 200, ""),
        (message(data=[[0.5] * 12]), {}, 200, ""),
        (message(model_name="wgan-faces"), {}, 200, ""),
        (*binary_message(48), 200, ""),
        (gzip.compress(message()), {"content-encoding": "gzip"}, 200, ""),
        (b"", {}, 400, "no inference request"),
        (b"no JSON", {}, 400, "no inference request"),
        (b"[]", {}, 400, "no inference request"),
        (b"{}", {}, 400, "inputs: Field required"),
        (b'{"inputs": []}', {}, 400, "inputs"),
        (b"[" * 1000, {}, 400, "no inference request"),
        (b"[" * 100_000, {}, 413, "65536 objects and arrays; send tensors as binary data"),
        (message(shape=[1, -12]), {}, 400, "inputs.0.shape.1"),
        (message(shape=[True, 12]), {}, 400, "inputs.0.shape.0"),
        (message(shape=[1] * 9), {}, 400, "inputs.0.shape"),
        (message(shape=[2**60, 12]), {}, 413, "a request may have 64"),
        (message(shape=[2**63, 12]), {}, 400, "inputs.0.shape.0"),
        (message().replace(b"[1, 12]", b"[1" + b"0" * 5000 + b", 12]"), {}, 400, "request: Invalid JSON: number out"),
        (message(shape=[64, 12]), {}, 400, "has the shape [12], not [64, 12]"),
        (message(data=[0.5] * 11), {}, 400, "has the shape [11]"),
        (message(data=[[0.5] * 6, [0.5] * 6]), {}, 400, "has the shape [2, 6]"),
        (message(data=[[0.5] * 6, [0.5] * 5]), {}, 400, "rows of different lengths"),
        (message(data=[[0.5] * 11, 1]), {}, 400, "has the shape [2]"),
        (message(data=[]), {}, 400, "has the shape [0]"),
        (message(data=["0.5"] * 12), {}, 400, "is numbers"),
        (message(data=[True] * 12), {}, 400, "is numbers"),
        (message(data=[None] * 12), {}, 400, "is numbers"),
        (message(data=[float("nan")] * 12), {}, 400, "not finite"),
        (message(data=[1e39] * 12), {}, 400, "not finite"),
        (message(data=[10**400] * 12), {}, 400, "beyond FP32"),
        (message(data="text"), {}, 400, "inputs.0.data"),
        (message(data=None), {}, 400, "either data or a binary_data_size"),
        (message(parameters={"binary_data_size": 48}), {}, 400, "either data or a binary_data_size"),
        (message(parameters={"shared_memory_region": "x"}), {}, 400, "shared memory"),
        (message()[:-1] + b', "parameters": {"binary_data_output": 1}}', {}, 400, "true or false"),
        (message() + bytes(4), {HEAD: str(len(message()))}, 400, "4 bytes follow"),
        (*binary_message(48, 47), 400, "of which 47 are left"),
        (*binary_message(48, 49), 400, "1 bytes follow"),
        (*binary_message(44), 400, "has 44 bytes of binary data; its shape has 48"),
        (*binary_message(44, 44), 400, "has 44 bytes of binary data; its shape has 48"),
        (*binary_message(-1), 400, "binary_data_size"),
        (*binary_message(10**30), 400, "binary_data_size"),
        (*binary_message(48.0), 400, "binary_data_size"),
        (*binary_message("48"), 400, "binary_data_size"),
        (message(), {HEAD: str(len(message()) + 1)}, 400, HEAD),
        (message(), {HEAD: "9" * 5000}, 400, HEAD),
        (message(), {HEAD: "-1"}, 400, HEAD),
        (message(), {HEAD: "1e2"}, 400, HEAD),
        (message(), {HEAD: "0"}, 400, "no inference request"),
        (message(), {HEAD: str(len(message()) - 1)}, 400, "no inference request"),
        (message(), {"content-encoding": "br"}, 415, "'br' is not supported; send gzip, deflate"),
        (message(), {"content-encoding": "gzip"}, 400, "not gzip"),
        (gzip.compress(message())[:-9], {"content-encoding": "gzip"}, 400, "one whole gzip"),
        (gzip.compress(message()) + b"x", {"content-encoding": "gzip"}, 400, "one whole gzip"),
        (gzip.compress(message()), {"content-encoding": "deflate"}, 400, "not deflate"),
        (b"", {"content-encoding": "gzip"}, 400, "no inference request"),
        (BOMB, {"content-encoding": "gzip"}, 413, "more when it is unpacked"),
        (zlib.compress(bytes(50_000_000)), {"content-encoding": "deflate"}, 413, "more when it is unpacked"),
        (bytes(4_000_001), {}, 413, "4000000 bytes"),
    ],
)
def test_messages_that_go_wrong(address: str, body: bytes, headers: dict[str, str], status: int, told: str) -> None:
    response = httpx.post(f"{address}/v2/models/wgan-faces/infer", content=body, headers=headers)
    assert response.status_code == status, response.text
    if status != 200:
        assert response.headers["content-type"] == "application/json"
        assert list(response.json()) == ["error"]
        assert told in response.json()["error"]
        assert len(response.text) < 1000
    else:
        stages = [part.partition(";")[0] for part in response.headers["server-timing"].split(", ")]
        assert stages == ["receive", "decode", "queue", "infer", "app", "total"]


@pytest.mark.parametrize(
    ("elements", "told"),
    [
        (b"\x02\0\0\0x", "cut short"),
        (b"\x01\0\0\0x\0", "1 bytes follow"),
        (b"\0\0\0", "cut short"),
        (b"", "cut short"),
        (b"\xff\xff\xff\xffx", "cut short"),
    ],
)
def test_elements_of_bytes_that_go_wrong(address: str, elements: bytes, told: str) -> None:
    tensor = {"name": "pictures", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(elements)}}
    head = json.dumps({"inputs": [tensor]}).encode()
    response = httpx.post(
        f"{address}/v2/models/{CLASSIFIER}/infer", content=head + elements, headers={HEAD: str(len(head))}
    )
    assert response.status_code == 400
    assert told in response.json()["error"]


def test_a_body_shorter_than_its_content_length_harms_nobody(
    client: triton.InferenceServerClient, address: str
) -> None:
    host, _, port = address.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(
            f"POST /v2/models/wgan-faces/infer HTTP/1.1\r\nHost: {host}\r\nContent-Length: 1000\r\n\r\n".encode()
        )
        connection.sendall(message())
    assert client.infer("wgan-faces", [sent("latents", noise(1, 12))]).as_numpy("pictures").shape == (1, 3, 32, 32)


def test_only_this_protocol_has_its_errors(address: str) -> None:
    for path, status in (("/v2/models/nobody", 404), ("/v2/nothing", 404), ("/v2/models/nobody/infer", 405)):
        response = httpx.get(address + path)
        assert (response.status_code, list(response.json())) == (status, ["error"])
    foreign = httpx.get(f"{address}/v2", headers={"host": "example.org"})
    assert (foreign.status_code, list(foreign.json())) == (403, ["error"])
    for path in ("/v2beta", "/models/nobody"):
        assert httpx.get(address + path).headers["content-type"] == "application/problem+json"


def test_numbers_beyond_a_million_are_answered_as_binary_data_only() -> None:
    answer = np.zeros((2, MOST_NUMBERS // 2 + 1), np.float32)
    document("m", "1", Asked("", {}, [Wanted("answer", binary=True, classes=0)]), [answer])
    with pytest.raises(BadRequest, match="as binary data"):
        document("m", "1", Asked("", {}, [Wanted("answer", binary=False, classes=0)]), [answer])


def test_json_beyond_its_limit_is_not_read() -> None:
    with pytest.raises(BodyTooLarge, match="send tensors as binary data"):
        parse(Message(bytes(JSON_LIMITS.bytes + 1), None), {}, {}, 64)


def test_too_much_is_told_of_in_its_form(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    url = "/v2/models/wgan-faces/infer"
    app = create_app(settings.model_copy(update={"max_requests": 1}))
    with TestClient(app, base_url=BASE_URL, raise_server_exceptions=False) as client:
        app.state.capacity.acquire()
        refused = client.post(url, content=message())
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert refused.json() == {"error": "The service is busy: the limit of requests in progress is reached"}
        app.state.capacity.release()
        assert client.post(url, content=message()).status_code == 200

        def broken(*_: object) -> None:
            raise RuntimeError("a secret of the inside")

        def broken_off(*_: object, **__: object) -> None: ...

        monkeypatch.setattr(app.state.open_inference, "_model", broken)
        monkeypatch.setattr(request_log.log, "exception", broken_off)  # which takes its time over a traceback
        unexpected = client.post(url, content=message())
        assert (unexpected.status_code, unexpected.json()) == (500, {"error": "Something went wrong on our side"})


def test_a_deadline_holds(settings: Settings) -> None:
    app = create_app(settings.model_copy(update={"deadline_s": 1e-9}))
    with TestClient(app, base_url=BASE_URL) as client:
        late = client.post("/v2/models/wgan-faces/infer", content=message())
    assert (late.status_code, list(late.json())) == (504, ["error"])


def test_it_is_not_ready_before_it_is(settings: Settings) -> None:
    client = TestClient(create_app(settings), base_url=BASE_URL)  # without `with`: the lifespan does not run
    (told,) = client.get("/v2/health/ready").json().values()
    assert told.startswith(f"The service is not ready: not loaded: {CLASSIFIER}")
    assert client.get("/v2/health/live").status_code == 200


@st.composite
def tensors(draw: st.DrawFn) -> Array:
    """Of every datatype that is read here, 1 to 3 dimensions."""
    shape = draw(array_shapes(min_dims=1, max_dims=3, max_side=4))
    dtype = draw(st.sampled_from([np.float32, np.uint8, np.int64, object]))
    if dtype is object:
        return draw(arrays(object, shape, elements=st.binary(max_size=9)))
    limits = {"allow_nan": False, "allow_infinity": False} if dtype is np.float32 else {}
    return draw(arrays(dtype, shape, elements=limits or None))


def of(array: Array) -> Form:
    return Form(np_to_triton_dtype(array.dtype), array.shape)


@FEW
@given(st.lists(tensors(), min_size=1, max_size=4), st.booleans(), st.data())
def test_what_tritonclient_writes_is_read(given_: list[Array], binary: bool, data: st.DataObject) -> None:
    rows = given_[0].shape[0]
    inputs = {f"tensor {place}": array for place, array in enumerate(given_) if array.shape[0] == rows}
    as_bytes = {name: binary or array.dtype == object or data.draw(st.booleans()) for name, array in inputs.items()}
    body, head = triton.InferenceServerClient.generate_request_body(
        [sent(name, array, as_bytes[name]) for name, array in inputs.items()], request_id="id"
    )
    asked = parse(
        Message(body, head),
        {name: [of(array)] for name, array in inputs.items()},
        {"answer": Form("FP32", (-1, 2))},
        64,
    )
    assert (asked.id, asked.outputs) == ("id", [Wanted("answer", binary=True, classes=0)])
    assert asked.inputs.keys() == inputs.keys()
    for name, array in inputs.items():
        found = asked.inputs[name]
        assert (found.dtype, found.shape) == (array.dtype, array.shape)
        assert np.array_equal(found, array)


@FEW
@given(tensors(), st.booleans())
def test_what_is_written_tritonclient_reads(array: Array, binary: bool) -> None:
    if array.dtype == object:
        array = np.array([b"text" for _ in array.flat], object).reshape(array.shape)
    file = document("model", "1", Asked("", {}, [Wanted("answer", binary=binary, classes=0)]), [array])
    head = file.headers.get(HEAD)
    result = triton.InferenceServerClient.parse_response_body(file.content, header_length=head and int(head))
    found = result.as_numpy("answer")
    assert found.shape == array.shape
    if array.dtype == object and not binary:
        assert set(found.flat) == {"text"}
    else:
        assert np.array_equal(found, array)


@FEW
@given(st.data())
def test_whatever_is_sent_is_read_or_refused(data: st.DataObject) -> None:
    body, head = triton.InferenceServerClient.generate_request_body(
        [sent("a", noise(2, 3)), sent("b", np.array([b"x", b"yz"], object)), sent("c", np.array([1, 2]), False)]
    )
    mutable = bytearray(body)
    for _ in range(data.draw(st.integers(0, 4))):
        place = data.draw(st.integers(0, len(mutable) - 1))
        mutable[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    lie = data.draw(st.one_of(st.just(head), st.none(), st.integers(0, len(mutable) + 9)))
    forms = {"a": [Form("FP32", (-1, 3))], "b": [Form("BYTES", (-1,))], "c": [Form("INT64", (-1,))]}
    with suppress(VestibuleError):
        asked = parse(Message(bytes(mutable), lie), forms, {"d": Form("FP32", (-1, 2))}, 64)
        assert asked.inputs.keys() == forms.keys()
        assert len({len(array) for array in asked.inputs.values()}) == 1
