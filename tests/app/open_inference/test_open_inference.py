"""The Open Inference Protocol: tritonclient as the client, and malformed messages."""

from __future__ import annotations

import base64
import gzip
import json
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
from app.open_inference.messages import (
    JSON_LENGTH_HEADER,
    JSON_LIMITS,
    Message,
    ParsedRequest,
    RequestedOutput,
    encode_response,
    parse,
)
from app.open_inference.schemas import MAX_NUMBERS
from app.open_inference.tensors import TensorType
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
    with serving_here(settings) as url:
        yield url


@pytest.fixture
def client(address: str) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(address.removeprefix("http://")) as connected:
        yield connected


def tensor_input(name: str, array: Array, binary: bool = True) -> triton.InferInput:
    tensor = triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    return tensor.set_data_from_numpy(array, binary_data=binary)


def output(name: str, binary: bool = True, classes: int = 0) -> triton.InferRequestedOutput:
    return triton.InferRequestedOutput(name, binary_data=binary, class_count=classes)


def noise(*shape: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def network_output(weights: Path, name: str, batch: Array) -> Array:
    network, _ = checkpoint.load(weights / name)
    with torch.inference_mode():
        array: Array = network(torch.from_numpy(batch)).numpy()
    return array


def decoder_output(weights: Path, name: str, latents: Array, classes: list[int] | None = None) -> Array:
    network, _ = checkpoint.load(weights / name)
    assert isinstance(network, SupportsDecode)
    labels = torch.zeros(len(latents), 0) if classes is None else F.one_hot(torch.tensor(classes), 10).float()
    with torch.inference_mode():
        return network.decode(torch.from_numpy(latents), labels).numpy()


def status_and_message(call: Any, *args: Any, **options: Any) -> tuple[str, str]:
    with pytest.raises(InferenceServerException) as caught:
        call(*args, **options)
    return caught.value.status(), caught.value.message()


def test_server_metadata_and_model_index(client: triton.InferenceServerClient, weights: Path) -> None:
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
        (CLASSIFIER, {"pictures": [1, 32, 32]}, {"logits": [10], "probabilities": [10]}),
        (EMBEDDER, {"pictures": [3, 112, 112]}, {"embeddings": [32]}),
        (GENERATOR, {"latents": [6], "labels": []}, {"pictures": [1, 28, 28]}),
        ("wgan-faces", {"latents": [12]}, {"pictures": [3, 32, 32]}),
        ("ae-mnist", {"pictures": [1, 28, 28]}, {"pictures": [1, 28, 28]}),
        ("denoiser-photo", {"pictures": [3, -1, -1]}, {"pictures": [3, -1, -1]}),
    ],
)
def test_model_metadata(
    client: triton.InferenceServerClient, weights: Path, model: str, inputs: dict[str, Any], outputs: dict[str, Any]
) -> None:
    version = checkpoint.read_card(weights / model).version
    metadata = client.get_model_metadata(model)
    assert metadata == client.get_model_metadata(model, version)
    assert (metadata["name"], metadata["versions"], metadata["platform"]) == (model, [version], "pytorch_safetensors")
    for side, shapes in (("inputs", inputs), ("outputs", outputs)):
        assert {tensor["name"]: tensor["shape"] for tensor in metadata[side]} == {
            name: [-1, *shape] for name, shape in shapes.items()
        }
        assert {tensor["datatype"] for tensor in metadata[side] if tensor["name"] != "labels"} == {"FP32"}
    if model == CLASSIFIER:
        parameters = {"mode": "L", "mean": "[33.3]", "std": "[78.6]", "also": "UINT8 [-1, -1, -1, 1]; BYTES [-1]"}
        assert metadata["inputs"][0]["parameters"] == parameters
    for call, arguments in ((client.get_model_metadata, ()), (client.infer, ([tensor_input("pictures", noise(1))],))):
        status, message = status_and_message(call, model, *arguments, model_version="1")
        assert (status, message) == ("404", f"There is nothing here: the only version of {model} is {version}")


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("rows", [1, 7, 64])
def test_classifier_outputs_equal_the_network_s(
    client: triton.InferenceServerClient, weights: Path, binary: bool, rows: int
) -> None:
    batch = noise(rows, 1, 32, 32)
    outputs = [output("probabilities", binary), output("logits", binary)]
    inputs = [tensor_input("pictures", batch, binary)]
    result = client.infer(CLASSIFIER, inputs, outputs=outputs, request_id="some id")
    expected = network_output(weights, CLASSIFIER, batch)
    card = checkpoint.read_card(weights / CLASSIFIER)
    assert np.abs(result.as_numpy("logits") - expected).max() <= 1e-5
    probabilities = torch.from_numpy(expected).div(card.temperature).softmax(1).numpy()
    assert np.abs(result.as_numpy("probabilities") - probabilities).max() <= 1e-5
    response = result.get_response()
    assert (response["id"], response["model_name"], response["model_version"]) == ("some id", CLASSIFIER, card.version)
    assert [tensor["name"] for tensor in response["outputs"]] == ["probabilities", "logits"]
    assert all(("data" in tensor) != binary for tensor in response["outputs"])


def test_only_requested_outputs_are_returned_by_default_all(client: triton.InferenceServerClient) -> None:
    inputs = [tensor_input("pictures", noise(2, 1, 32, 32))]
    everything = client.infer(CLASSIFIER, inputs)
    assert {tensor["name"] for tensor in everything.get_response()["outputs"]} == {"logits", "probabilities"}
    assert "id" not in everything.get_response()
    some = client.infer(CLASSIFIER, inputs, outputs=[output("logits")])
    assert [tensor["name"] for tensor in some.get_response()["outputs"]] == ["logits"]
    mixed = client.infer(CLASSIFIER, inputs, outputs=[output("logits", False), output("probabilities")])
    for name in ("logits", "probabilities"):
        assert np.array_equal(mixed.as_numpy(name), everything.as_numpy(name))


@pytest.mark.parametrize("label_shape", [(3,), (3, 1)])
@pytest.mark.parametrize("binary", [(True, True), (True, False), (False, True)])
def test_generator_outputs_equal_the_network_s(
    client: triton.InferenceServerClient, weights: Path, label_shape: tuple[int, ...], binary: tuple[bool, bool]
) -> None:
    latents, labels = noise(3, 6), np.array([7, 0, 9])
    arrays = {"latents": latents, "labels": labels.reshape(label_shape)}
    inputs = [tensor_input(name, array, flag) for (name, array), flag in zip(arrays.items(), binary, strict=True)]
    expected = decoder_output(weights, GENERATOR, latents, labels.tolist())
    for order in (inputs, inputs[::-1]):
        assert np.abs(client.infer(GENERATOR, order).as_numpy("pictures") - expected).max() <= 1e-5


@pytest.mark.parametrize("binary", [True, False])
def test_other_outputs_equal_the_network_s(client: triton.InferenceServerClient, weights: Path, binary: bool) -> None:
    def infer(model: str, name: str, array: Array) -> Array:
        version = checkpoint.read_card(weights / model).version
        result = client.infer(model, [tensor_input(name, array, binary)], version)
        values: Array = result.as_numpy("embeddings" if model == EMBEDDER else "pictures")
        return values

    faces, photos, digits, latents = noise(2, 3, 112, 112), noise(2, 3, 24, 40), noise(3, 1, 28, 28), noise(20, 12)
    network, _ = checkpoint.load(weights / "ae-mnist")
    assert isinstance(network, SupportsEncode)
    with torch.inference_mode():
        codes = network.embed(torch.from_numpy(digits), torch.zeros(3, 0)).numpy()
    for values, expected in (
        (infer(EMBEDDER, "pictures", faces), network_output(weights, EMBEDDER, faces)),
        (infer("denoiser-photo", "pictures", photos), network_output(weights, "denoiser-photo", photos)),
        (infer("ae-mnist", "pictures", digits), decoder_output(weights, "ae-mnist", codes)),
        (infer("wgan-faces", "latents", latents), decoder_output(weights, "wgan-faces", latents)),
    ):
        assert np.abs(values - expected).max() <= 1e-5


def test_encoded_images_and_pixels_are_preprocessed_as_by_classify(
    client: triton.InferenceServerClient, address: str, weights: Path
) -> None:
    card = checkpoint.read_card(weights / EMBEDDER)
    images = [photo("astronaut"), photo("coffee").resize((512, 512))]
    expected = network_output(weights, EMBEDDER, torch.stack([card.preprocess(image) for image in images]).numpy())
    files = np.array([encode(image) for image in images], object)
    for array in (files, np.stack([np.asarray(image) for image in images])):
        result = client.infer(EMBEDDER, [tensor_input("pictures", array)])
        assert np.abs(result.as_numpy("embeddings") - expected).max() <= 1e-5
    digit = np.asarray(photo("coffee").convert("L"))
    result = client.infer(CLASSIFIER, [tensor_input("pictures", digit[None, :, :, None])])
    body = httpx.post(f"{address}/classify?top_k=10", files={"file": encode(Image.fromarray(digit))}).json()
    assert {item["class_id"]: item["confidence"] for item in body["data"][0]["predictions"]} == pytest.approx(
        dict(enumerate(result.as_numpy("probabilities")[0].tolist())), abs=1e-5
    )


def test_images_in_json_are_base64(client: triton.InferenceServerClient, address: str) -> None:
    file = encode(photo("coffee"))
    text = base64.b64encode(file).decode()
    tensor = {"name": "pictures", "shape": [2], "datatype": "BYTES", "data": [text, f"data:image/png;base64,{text}"]}
    body = httpx.post(f"{address}/v2/models/{CLASSIFIER}/infer", json={"inputs": [tensor]}).json()
    logits = next(tensor["data"] for tensor in body["outputs"] if tensor["name"] == "logits")
    expected = client.infer(CLASSIFIER, [tensor_input("pictures", np.array([file, file], object))]).as_numpy("logits")
    assert np.abs(np.reshape(logits, (2, 10)) - expected).max() <= 1e-5


@pytest.mark.parametrize("binary", [True, False])
def test_classification_extension(client: triton.InferenceServerClient, weights: Path, binary: bool) -> None:
    batch = noise(2, 1, 32, 32)
    outputs = [output("logits", binary, 3), output("probabilities", binary, 99)]
    result = client.infer(CLASSIFIER, [tensor_input("pictures", batch)], outputs=outputs)
    top, everything = result.as_numpy("logits"), result.as_numpy("probabilities")
    assert (top.shape, everything.shape) == ((2, 3), (2, 10))
    for row, texts in zip(network_output(weights, CLASSIFIER, batch), top, strict=True):
        for index, text in zip(np.argsort(-row), texts, strict=False):
            value, class_id, name = (text.decode() if isinstance(text, bytes) else text).split(":")
            assert (int(class_id), name) == (index, str(index))
            assert float(value) == pytest.approx(float(row[index]), abs=1e-5)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests_and_unknown_parameters(client: triton.InferenceServerClient, algorithm: str) -> None:
    compression = {"request_compression_algorithm": algorithm, "response_compression_algorithm": algorithm}
    unknown = {"priority": 1, "timeout": 1_000_000, "parameters": {"mine": "x", "other": 2.5}}
    for binary in (True, False):
        inputs = [tensor_input("pictures", noise(2, 1, 32, 32), binary)]
        compressed = client.infer(CLASSIFIER, inputs, **compression, **unknown)
        assert np.array_equal(compressed.as_numpy("logits"), client.infer(CLASSIFIER, inputs).as_numpy("logits"))


FEW = examples(max_examples=50, deadline=None)

INF = noise(1, 1, 32, 32)
INF[0, 0, 3, 3] = np.inf


@pytest.mark.parametrize(
    ("model", "inputs", "status", "message"),
    [
        (CLASSIFIER, {"pictures": noise(1, 1, 28, 28)}, "400", "FP32 [-1, 1, 32, 32]"),
        (CLASSIFIER, {"pictures": noise(1, 32, 32)}, "400", "got FP32 [1, 32, 32]"),
        (CLASSIFIER, {"pictures": noise(1, 1, 32, 32).astype(np.float64)}, "400", "got FP64"),
        (CLASSIFIER, {"pictures": noise(0, 1, 32, 32)}, "400", "is empty"),
        (CLASSIFIER, {"pictures": noise(65, 1, 32, 32)}, "413", "a request may have 64"),
        (CLASSIFIER, {"image": noise(1, 1, 32, 32)}, "400", "expected the inputs pictures"),
        (CLASSIFIER, {"pictures": noise(1, 1, 32, 32), "labels": np.array([1])}, "400", "expected the inputs pictures"),
        (CLASSIFIER, {"pictures": INF}, "400", "not finite"),
        (CLASSIFIER, {"pictures": np.full((1, 1, 32, 32), 3e38, np.float32)}, "422", "are not finite"),
        (CLASSIFIER, {"pictures": np.zeros((1, 9, 9, 3), np.uint8)}, "400", "UINT8 [-1, -1, -1, 1]"),
        (CLASSIFIER, {"pictures": np.array([encode(photo("coffee")), b"no picture"], object)}, "415", "pictures[1]"),
        (CLASSIFIER, {"pictures": np.array([b""], object)}, "415", "pictures[0]"),
        (GENERATOR, {"latents": noise(2, 6)}, "400", "expected the inputs latents, labels"),
        (GENERATOR, {"latents": noise(2, 7), "labels": np.array([1, 2])}, "400", "FP32 [-1, 6]"),
        (GENERATOR, {"latents": noise(2, 6), "labels": np.array([1])}, "400", "differ in their number of rows"),
        (GENERATOR, {"latents": noise(1, 6), "labels": np.array([10])}, "400", "0 to 9"),
        (GENERATOR, {"latents": noise(1, 6), "labels": np.array([1], np.int32)}, "400", "INT64"),
        ("denoiser-photo", {"pictures": noise(1, 3, 24, 25)}, "400", "multiples of 8"),
        ("denoiser-photo", {"pictures": noise(1, 3, 264, 8)}, "413", "at most 256"),
        ("centerface", {"pictures": noise(1, 3, 32, 32)}, "404", "no such model"),
        ("nobody", {"pictures": noise(1, 3, 32, 32)}, "404", "no such model"),
        ("../classify", {"pictures": noise(1, 3, 32, 32)}, "404", "Not Found"),
    ],
)
def test_invalid_inputs_are_refused(
    client: triton.InferenceServerClient, model: str, inputs: dict[str, Array], status: str, message: str
) -> None:
    refusal = status_and_message(client.infer, model, [tensor_input(name, array) for name, array in inputs.items()])
    assert refusal[0] == status
    assert message in refusal[1]


def in_shared_memory(tensor: Any) -> Any:
    tensor.set_shared_memory("region", 4096)
    return tensor


@pytest.mark.parametrize(
    ("model", "outputs", "message"),
    [
        (CLASSIFIER, [output("scores")], "the outputs are logits, probabilities"),
        (CLASSIFIER, [output("logits"), output("logits")], "each at most once"),
        (CLASSIFIER, [output("logits", classes=-1)], "a number of classes"),
        (CLASSIFIER, [in_shared_memory(output("logits"))], "shared memory"),
        ("ae-mnist", [output("pictures", classes=1)], "has no classes"),
    ],
)
def test_invalid_requested_outputs_are_refused(
    client: triton.InferenceServerClient, model: str, outputs: list[triton.InferRequestedOutput], message: str
) -> None:
    side = 32 if model == CLASSIFIER else 28
    refusal = status_and_message(
        client.infer, model, [tensor_input("pictures", noise(1, 1, side, side))], outputs=outputs
    )
    assert refusal[0] == "400"
    assert message in refusal[1]


def message(**changes: Any) -> bytes:
    tensor = {"name": "latents", "shape": [1, 12], "datatype": "FP32", "data": [0.5] * 12}
    return json.dumps({"inputs": [tensor | changes]}).encode()


def binary_message(size: Any, length: int = 48) -> tuple[bytes, dict[str, str]]:
    """A message with a `binary_data_size` of `size` and in fact `length` bytes of binary data."""
    head = message(parameters={"binary_data_size": size}).replace(b', "data": ' + json.dumps([0.5] * 12).encode(), b"")
    return head + bytes(length), {JSON_LENGTH_HEADER: str(len(head))}


@pytest.mark.parametrize(
    ("body", "headers", "status", "error"),
    [
        (message(), {}, 200, ""),
        (message(data=[[0.5] * 12]), {}, 200, ""),
        (message(model_name="wgan-faces"), {}, 200, ""),
        (*binary_message(48), 200, ""),
        (gzip.compress(message()), {"content-encoding": "gzip"}, 200, ""),
        (b"", {}, 400, "not a valid inference request"),
        (b"{}", {}, 400, "inputs: Field required"),
        (b'{"inputs": []}', {}, 400, "inputs"),
        (b"[" * 1000, {}, 400, "not a valid inference request"),
        (b"[" * 100_000, {}, 413, "65536 objects and arrays; send tensors as binary data"),
        (message(shape=[1, -12]), {}, 400, "inputs.0.shape.1"),
        (message(shape=[True, 12]), {}, 400, "inputs.0.shape.0"),
        (message(shape=[1] * 9), {}, 400, "inputs.0.shape"),
        (message(shape=[2**60, 12]), {}, 413, "a request may have 64"),
        (message(shape=[2**63, 12]), {}, 400, "inputs.0.shape.0"),
        (message().replace(b"[1, 12]", b"[1" + b"0" * 5000 + b", 12]"), {}, 400, "request: Invalid JSON: number out"),
        (message(shape=[64, 12]), {}, 400, "has the shape [12], not [64, 12]"),
        (message(data=[[0.5] * 6, [0.5] * 5]), {}, 400, "rows of different lengths"),
        (message(data=[[0.5] * 11, 1]), {}, 400, "has the shape [2]"),
        (message(data=[]), {}, 400, "has the shape [0]"),
        (message(data=["0.5"] * 12), {}, 400, "must be numbers"),
        (message(data=[True] * 12), {}, 400, "must be numbers"),
        (message(data=[float("nan")] * 12), {}, 400, "not finite"),
        (message(data=[1e39] * 12), {}, 400, "not finite"),
        (message(data=[10**400] * 12), {}, 400, "exceeds the range of FP32"),
        (message(data="text"), {}, 400, "inputs.0.data"),
        (message(data=None), {}, 400, "either data or a binary_data_size"),
        (message(parameters={"binary_data_size": 48}), {}, 400, "either data or a binary_data_size"),
        (message(parameters={"shared_memory_region": "x"}), {}, 400, "shared memory"),
        (message()[:-1] + b', "parameters": {"binary_data_output": 1}}', {}, 400, "true or false"),
        (message() + bytes(4), {JSON_LENGTH_HEADER: str(len(message()))}, 400, "4 bytes follow"),
        (*binary_message(48, 47), 400, "at most the remaining 47"),
        (*binary_message(48, 49), 400, "1 bytes follow"),
        (*binary_message(44, 44), 400, "has 44 bytes of binary data; its shape needs 48"),
        (*binary_message(10**30), 400, "binary_data_size"),
        (*binary_message("48"), 400, "binary_data_size"),
        (message(), {JSON_LENGTH_HEADER: str(len(message()) + 1)}, 400, JSON_LENGTH_HEADER),
        (message(), {JSON_LENGTH_HEADER: "9" * 5000}, 400, JSON_LENGTH_HEADER),
        (message(), {JSON_LENGTH_HEADER: "-1"}, 400, JSON_LENGTH_HEADER),
        (message(), {JSON_LENGTH_HEADER: str(len(message()) - 1)}, 400, "not a valid inference request"),
    ],
)
def test_valid_and_malformed_messages(
    address: str, body: bytes, headers: dict[str, str], status: int, error: str
) -> None:
    response = httpx.post(f"{address}/v2/models/wgan-faces/infer", content=body, headers=headers)
    assert response.status_code == status, response.text
    if status != 200:
        assert response.headers["content-type"] == "application/json"
        assert list(response.json()) == ["error"]
        assert error in response.json()["error"]
        assert len(response.text) < 1000
    else:
        stages = [part.partition(";")[0] for part in response.headers["server-timing"].split(", ")]
        assert stages == ["receive", "decode", "queue", "infer", "app", "total"]


@pytest.mark.parametrize(
    ("elements", "error"),
    [
        (b"\x02\0\0\0x", "truncated"),
        (b"\x01\0\0\0x\0", "1 bytes follow"),
        (b"\0\0\0", "truncated"),
        (b"", "truncated"),
        (b"\xff\xff\xff\xffx", "truncated"),
    ],
)
def test_malformed_elements_of_bytes(address: str, elements: bytes, error: str) -> None:
    tensor = {"name": "pictures", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(elements)}}
    head = json.dumps({"inputs": [tensor]}).encode()
    response = httpx.post(
        f"{address}/v2/models/{CLASSIFIER}/infer", content=head + elements, headers={JSON_LENGTH_HEADER: str(len(head))}
    )
    assert response.status_code == 400
    assert error in response.json()["error"]


def test_the_error_format_is_used_below_v2_only(address: str) -> None:
    for path, status in (("/v2/models/nobody", 404), ("/v2/nothing", 404), ("/v2/models/nobody/infer", 405)):
        response = httpx.get(address + path)
        assert (response.status_code, list(response.json())) == (status, ["error"])
    foreign = httpx.get(f"{address}/v2", headers={"host": "example.org"})
    assert (foreign.status_code, list(foreign.json())) == (403, ["error"])
    for path in ("/v2beta", "/models/nobody"):
        assert httpx.get(address + path).headers["content-type"] == "application/problem+json"


def parsed_request(binary: bool) -> ParsedRequest:
    return ParsedRequest("", {}, [RequestedOutput("values", binary=binary, classes=0)])


def test_limits_of_json() -> None:
    array = np.zeros((2, MAX_NUMBERS // 2 + 1), np.float32)
    encode_response("m", "1", parsed_request(binary=True), [array])
    with pytest.raises(BadRequest, match="as binary data"):
        encode_response("m", "1", parsed_request(binary=False), [array])
    with pytest.raises(BodyTooLarge, match="send tensors as binary data"):
        parse(Message(bytes(JSON_LIMITS.bytes + 1), None), {}, {}, 64)


def test_service_errors_have_the_protocol_s_format(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    url = "/v2/models/wgan-faces/infer"
    app = create_app(settings)
    with TestClient(app, base_url=BASE_URL, raise_server_exceptions=False) as client:

        def fail(*_: object) -> None:
            raise RuntimeError("an internal detail")

        def skip_traceback(*_: object, **__: object) -> None: ...

        monkeypatch.setattr(app.state.open_inference, "_find", fail)
        monkeypatch.setattr(request_log.log, "exception", skip_traceback)  # formatting it is slow
        unexpected = client.post(url, content=message())
        assert (unexpected.status_code, list(unexpected.json())) == (500, ["error"])
        assert "an internal detail" not in unexpected.text
    with TestClient(create_app(settings.model_copy(update={"deadline_s": 1e-9})), base_url=BASE_URL) as client:
        late = client.post(url, content=message())
    assert (late.status_code, list(late.json())) == (504, ["error"])


def test_not_ready_before_startup(settings: Settings) -> None:
    client = TestClient(create_app(settings), base_url=BASE_URL)  # without `with`: the lifespan does not run
    (error,) = client.get("/v2/health/ready").json().values()
    assert error.startswith(f"The service is not ready: not loaded: {CLASSIFIER}")
    assert client.get("/v2/health/live").status_code == 200


@st.composite
def tensors(draw: st.DrawFn) -> Array:
    """Arrays of 1 to 3 dimensions and of each supported datatype."""
    shape = draw(array_shapes(min_dims=1, max_dims=3, max_side=4))
    dtype = draw(st.sampled_from([np.float32, np.uint8, np.int64, object]))
    if dtype is object:
        return draw(arrays(object, shape, elements=st.binary(max_size=9)))
    limits = {"allow_nan": False, "allow_infinity": False} if dtype is np.float32 else {}
    return draw(arrays(dtype, shape, elements=limits or None))


@FEW
@given(st.lists(tensors(), min_size=1, max_size=4), st.booleans(), st.data())
def test_parse_tritonclient_s_requests(candidates: list[Array], binary: bool, data: st.DataObject) -> None:
    rows = len(candidates[0])
    inputs = {f"tensor {index}": array for index, array in enumerate(candidates) if len(array) == rows}
    as_bytes = {name: binary or array.dtype == object or data.draw(st.booleans()) for name, array in inputs.items()}
    body, head = triton.InferenceServerClient.generate_request_body(
        [tensor_input(name, array, as_bytes[name]) for name, array in inputs.items()], request_id="id"
    )
    types = {name: [TensorType(np_to_triton_dtype(array.dtype), array.shape)] for name, array in inputs.items()}
    request = parse(Message(body, head), types, {"values": TensorType("FP32", (-1, 2))}, 64)
    assert (request.id, request.outputs) == ("id", [RequestedOutput("values", binary=True, classes=0)])
    assert request.inputs.keys() == inputs.keys()
    for name, array in inputs.items():
        parsed = request.inputs[name]
        assert (parsed.dtype, parsed.shape) == (array.dtype, array.shape)
        assert np.array_equal(parsed, array)


@FEW
@given(tensors(), st.booleans())
def test_tritonclient_parses_encoded_responses(array: Array, binary: bool) -> None:
    if array.dtype == object:
        array = np.array([b"text" for _ in array.flat], object).reshape(array.shape)
    file = encode_response("model", "1", parsed_request(binary), [array])
    head = file.headers.get(JSON_LENGTH_HEADER)
    result = triton.InferenceServerClient.parse_response_body(file.content, header_length=head and int(head))
    values = result.as_numpy("values")
    assert values.shape == array.shape
    if array.dtype == object and not binary:
        assert set(values.flat) == {"text"}
    else:
        assert np.array_equal(values, array)


@FEW
@given(st.data())
def test_corrupted_requests_are_parsed_or_refused(data: st.DataObject) -> None:
    body, head = triton.InferenceServerClient.generate_request_body(
        [
            tensor_input("a", noise(2, 3)),
            tensor_input("b", np.array([b"x", b"yz"], object)),
            tensor_input("c", np.array([1, 2]), False),
        ]
    )
    mutable = bytearray(body)
    for _ in range(data.draw(st.integers(0, 4))):
        start = data.draw(st.integers(0, len(mutable) - 1))
        mutable[start : start + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    length = data.draw(st.one_of(st.just(head), st.none(), st.integers(0, len(mutable) + 9)))
    types = {
        name: [TensorType(datatype, shape)]
        for name, datatype, shape in (("a", "FP32", (-1, 3)), ("b", "BYTES", (-1,)), ("c", "INT64", (-1,)))
    }
    with suppress(VestibuleError):
        request = parse(Message(bytes(mutable), length), types, {"d": TensorType("FP32", (-1, 2))}, 64)
        assert request.inputs.keys() == types.keys()
        assert len({len(array) for array in request.inputs.values()}) == 1
