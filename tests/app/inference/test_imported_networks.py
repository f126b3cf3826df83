"""Imported networks over HTTP: probabilities and features are those of the torch network, and OpenVINO runs them."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from torch import nn
from torch.nn import functional as F
from typer.testing import CliRunner

from app.cli.main import cli
from app.settings import PROJECT
from models import checkpoint
from models.card import ModelCard
from tests.app.conftest import started
from tests.conftest import encode, photo
from tests.models.onnx_files import small_network, write_onnx

PNG = {"content-type": "image/png"}
CLASSES = "abcdefghij"


def import_file(weights: Path, *options: str, status: int = 0) -> str:
    """Run `vestibule import` with these options and return its output."""
    result = CliRunner(env={"VESTIBULE_WEIGHTS": str(weights)}).invoke(cli, ["import", *options])
    assert result.exit_code == status, result.output
    return result.output


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    for name in ("lenet5-mnist", "vgg-cifar10"):
        (folder / name).symlink_to(PROJECT / "weights" / name)
    files = tmp_path_factory.mktemp("files")
    (files / "labels.txt").write_text("\n".join(CLASSES))
    file = write_onnx(small_network(), files / "small.onnx")
    output = import_file(folder, f"onnx:{file}", "--task", "classify", "--labels", str(files / "labels.txt"))
    assert "from onnxruntime's by at most" in output
    assert f"is in {folder / 'small'}" in output
    products = write_onnx(nn.Sequential(small_network(), nn.Softplus()), files / "positive.onnx")
    import_file(folder, f"onnx:{products}", "--task", "classify", "--labels", str(files / "labels.txt"))
    return folder


@pytest.fixture(scope="module")
def service(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with started(weights, state=tmp_path_factory.mktemp("state")) as client:
        yield client


def post(service: TestClient, path: str, **params: object) -> dict[str, Any]:
    response = service.post(path, params=params, content=encode(photo("astronaut")), headers=PNG)  # type: ignore[arg-type]
    assert response.status_code == 200, response.text
    return dict(response.json())


def astronaut(card: ModelCard) -> torch.Tensor:
    return card.preprocess(photo("astronaut").convert("RGB"))[None]


def test_probabilities_are_those_of_the_torch_network(service: TestClient, weights: Path) -> None:
    (result,) = post(service, "/classify", model="small", top_k=10)["data"]
    with torch.inference_mode():
        expected = small_network()(astronaut(checkpoint.read_card(weights / "small"))).softmax(dim=1)[0]
    actual = {row["class"]: row["confidence"] for row in result["predictions"]}
    assert [actual[label] for label in CLASSES] == pytest.approx(expected.tolist(), abs=1e-3)
    detail = service.get("/models/small").json()
    assert (detail["runtime"], detail["choosing"]) == ("openvino-cpu-f32", False)
    assert detail["card"]["architecture"] == "imported-classifier"


def test_features_of_an_imported_classifier(service: TestClient, weights: Path) -> None:
    (result,) = post(service, "/embed", model="small")["data"]
    with torch.inference_mode():
        expected = F.normalize(small_network()[:-1](astronaut(checkpoint.read_card(weights / "small"))))[0]
    assert result["embedding"] == pytest.approx(expected.tolist(), abs=1e-3)
    assert result["face"] is None


def test_features_of_a_classifier_of_the_zoo(service: TestClient, weights: Path) -> None:
    module, card = checkpoint.load(weights / "vgg-cifar10")
    answer = post(service, "/embed", model="vgg-cifar10")
    with torch.inference_mode():
        features = module.get_submodule("features")
        views = [features(view) for view in (astronaut(card), astronaut(card).flip(-1))]
    assert card.tta == "flip"
    expected = F.normalize(sum(views, torch.zeros_like(views[0])))[0]
    assert answer["data"][0]["embedding"] == pytest.approx(expected.tolist(), abs=1e-3)
    # OpenAI's format, with the number of dimensions.
    image = f"data:image/png;base64,{base64.b64encode(encode(photo('astronaut'))).decode()}"
    body = {"input": image, "model": "vgg-cifar10", "dimensions": len(expected)}
    same = service.post("/v1/embeddings", json=body)
    assert same.json()["data"][0]["embedding"] == pytest.approx(expected.tolist(), abs=1e-3)
    refused = service.post("/v1/embeddings", json=body | {"dimensions": 3})
    assert refused.status_code == 422
    assert f"only supports {len(expected)} dimensions" in refused.json()["detail"]


def test_classifier_whose_last_layer_is_not_linear_has_no_features(service: TestClient) -> None:
    response = service.post("/embed", params={"model": "positive"}, content=encode(photo("astronaut")), headers=PNG)
    assert response.status_code == 422
    assert "positive has no features: its last layer is not a linear layer" in response.json()["detail"]


def test_open_inference_protocol(service: TestClient) -> None:
    images = np.random.default_rng(0).standard_normal((3, 3, 32, 32)).astype(np.float32)
    tensor = {"name": "pictures", "datatype": "FP32", "shape": [3, 3, 32, 32], "data": images.ravel().tolist()}
    response = service.post("/v2/models/small/infer", json={"inputs": [tensor], "outputs": [{"name": "logits"}]})
    with torch.inference_mode():
        expected = small_network()(torch.from_numpy(images))
    assert response.json()["outputs"][0]["data"] == pytest.approx(expected.ravel().tolist(), abs=1e-3)


def test_damaged_graph_is_refused_at_a_reload(service: TestClient, weights: Path) -> None:
    file = weights / "small" / checkpoint.WEIGHTS_FILE
    data = file.read_bytes()
    try:
        file.write_bytes(data[:-100])
        response = service.post("/models/small/reload")
        assert response.status_code == 422, response.text
        assert "sha256" in response.json()["detail"]
    finally:
        file.write_bytes(data)
    assert service.post("/models/small/reload").json()["change"] == "unchanged"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["onnx:small.onnx"], "pass --task classify or --task embed"),
        (
            ["package:centerface", "--task", "embed"],
            "options beside --from are for onnx:, openvino:",
        ),
        (["onnx:small.onnx", "--task", "embed", "--size", "0x3"], "--size 0x3: expected a number of pixels"),
        (["onnx:small.onnx", "--task", "embed", "--mean", "1;2"], "--mean 1;2: expected numbers separated by commas"),
        (["onnx:a", "--task", "embed", "--from", "b"], "onnx: is followed by the file's path"),
        (["timm:resnet18"], "timm's networks are read from a file: pass it with --from"),
        (["timm:resnet18", "--from", "a", "--crop-fraction", "0.9"], "networks: --crop-fraction is not used"),
        (["timm:resnet18", "--from", "nothing"], "nothing: No such file"),
        (["onnx:nothing", "--task", "embed"], "nothing: No such file"),
        (["caffe:nothing"], "unknown source 'caffe:nothing'; expected one of"),
    ],
)
def test_errors_of_the_command(options: list[str], message: str, tmp_path: Path) -> None:
    assert message in import_file(tmp_path, *options, status=1)
