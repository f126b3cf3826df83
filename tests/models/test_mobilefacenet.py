"""MobileFaceNet against the paper's table, plain arithmetic, and the published file run by OpenVINO."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import openvino
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import checkpoint
from models.importers import SOURCES, ImportWeightsError, import_weights
from models.mobilefacenet import MobileFaceNetConfig
from models.registry import build
from models.weight_files import read_mobilefacenet
from tests.models.aligned_faces import first_faces

ROOT = Path(__file__).parents[2]
SOURCE = "tflite:mobilefacenet"


def network(**config: object) -> nn.Module:
    torch.manual_seed(0)
    return build("mobilefacenet", config)


def test_table_1_of_the_paper() -> None:
    """The shapes after each row of the table: channels and side."""
    module = network().eval()
    shapes: list[tuple[int, int]] = []
    for block in module.get_submodule("features").children():
        block.register_forward_hook(lambda _, __, output: shapes.append((output.shape[1], output.shape[2])))
    with torch.inference_mode():
        module(torch.zeros(1, 3, 112, 112))
    stem = [(64, 56)] * 3
    bottlenecks = [(64, 28)] * 5 + [(128, 14)] * 7 + [(128, 7)] * 3
    assert shapes == [*stem, *bottlenecks, (512, 7)]


def test_embedding_is_a_weighted_sum_then_two_linear_layers() -> None:
    head = network(norm=False, dimensions=5).get_submodule("head").double()
    state = {name: torch.randn_like(value) for name, value in head.state_dict().items()}
    head.load_state_dict(state)
    maps = torch.randn(3, 512, 7, 7, dtype=torch.float64)
    place, bias, first, first_bias, second, second_bias = state.values()
    pooled = torch.stack([(image * place).sum(dim=(1, 2)) for image in maps]) + bias
    expected = (pooled @ first.T + first_bias) @ second.T + second_bias
    actual: Tensor = head(maps)
    torch.testing.assert_close(actual, F.normalize(expected), rtol=1e-6, atol=1e-6)


def test_shipped_weights_load() -> None:
    module, card = checkpoint.load(ROOT / "weights/mobilefacenet")
    assert card.config == asdict(MobileFaceNetConfig(norm=False))
    assert (card.task, card.preprocess.shape) == ("embed", (3, 112, 112))
    assert "MS-Celeb-1M" in card.data
    assert "withdrew" in card.data
    assert card.matching is not None
    assert sum(parameter.numel() for parameter in module.parameters()) == card.parameters == 1_292_992


def published_output(file: Path, pixels: Tensor) -> Tensor:
    """The original file's output for normalised faces [N, 112, 112, 3], N even: [N, 192], not normalised."""
    compiled = openvino.Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    # The file's graph has a batch of two; the next pair overwrites the output.
    return torch.cat([torch.from_numpy(compiled(pair.numpy())[0].copy()) for pair in torch.split(pixels, 2)])


@pytest.mark.data
def test_embeddings_of_500_faces_are_the_original_files(datasets: Callable[[str], Path]) -> None:
    file = datasets("mobilefacenet") / "mobilefacenet.tflite"
    faces = torch.from_numpy(first_faces(datasets("faces"), 500))
    module, card = checkpoint.load(ROOT / "weights/mobilefacenet")
    module = module.to(memory_format=torch.channels_last)
    images = card.preprocess.normalise(faces)
    with torch.inference_mode():
        ours = torch.cat([module(part) for part in torch.split(images, 50)])
    theirs = F.normalize(published_output(file, images.movedim(1, -1).contiguous()))
    assert float((ours - theirs).abs().max() / theirs.abs().max()) <= 1e-4
    # The vectors published with it are sums over the face and its mirror image, in float16.
    published = torch.from_numpy(np.load(datasets("mobilefacenet") / "faces-vectors.npy", mmap_mode="r")[:100].copy())
    with torch.inference_mode():
        mirrored = torch.cat([module(part) for part in torch.split(images[:100].flip(-1), 50)])
    torch.testing.assert_close(F.normalize(ours[:100] + mirrored), published.float(), rtol=0, atol=2e-3)


@pytest.mark.data
def test_import_reproduces_the_shipped_weights(datasets: Callable[[str], Path], tmp_path: Path) -> None:
    file = datasets("mobilefacenet") / "mobilefacenet.tflite"
    card = import_weights(SOURCE, tmp_path, file)
    assert card.sha256 == checkpoint.read_card(ROOT / "weights/mobilefacenet").sha256
    assert SOURCES[SOURCE].sha256 in card.source


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (None, r"pass the path of mobilefacenet\.tflite with --from"),
        ("nothing.tflite", r"nothing\.tflite: No such file"),
        ("other.tflite", "sha256 is"),
    ],
)
def test_other_files_are_refused(name: str | None, message: str, tmp_path: Path) -> None:
    (tmp_path / "other.tflite").write_bytes(b"another network")
    with pytest.raises(ImportWeightsError, match=message):
        import_weights(SOURCE, tmp_path, tmp_path / name if name else None)
    assert not (tmp_path / "mobilefacenet").exists()
    with pytest.raises(ImportWeightsError, match="not a TFLite graph"):
        read_mobilefacenet(b"another network")
