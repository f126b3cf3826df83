"""Networks of timm with random weights, against onnxruntime with timm's own network and against torch."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from app.settings import PROJECT
from models import imported_runtime
from models.network_import import IMAGENET_MEAN, IMAGENET_STD, NetworkOptions
from models.onnx_export import export_onnx
from models.preprocess import Preprocess
from models.runtime_selection import sample_inputs
from models.timm_import import import_timm
from models.weight_files import ImportWeightsError
from tests.models.helpers import enliven
from tests.models.onnx_files import run_file

# One of each of ten families.
FAMILIES = (
    "resnet18",
    "mobilenetv3_small_050",
    "efficientnet_b0",
    "densenet121",
    "regnety_002",
    "ghostnet_050",
    "repvgg_a0",
    "convnext_atto",
    "vit_tiny_patch16_224",
    "mixer_s32_224",
)
OPTIONS = NetworkOptions("classify", "imported")
PHOTOS = Preprocess(size=(224, 224), mean=IMAGENET_MEAN, std=IMAGENET_STD)


def random_network(name: str, **options: Any) -> nn.Module:
    """A network with random weights, also in a last layer of zeros.

    Batch norms have the statistics of photos, without which all images have equal logits, or large and inexact ones.
    """
    torch.manual_seed(0)
    module: Any = timm.create_model(name, pretrained=False, **options)
    enliven(module, torch.stack(sample_inputs(PROJECT / "examples", PHOTOS)[::4]))
    nn.init.normal_(module.get_classifier().weight, std=0.02)
    network: nn.Module = module.eval()
    return network


def saved(module: nn.Module, folder: Path) -> Path:
    safetensors.torch.save_file(module.state_dict(), folder / "model.safetensors")
    return folder / "model.safetensors"


def check_logits(name: str, folder: Path) -> None:
    """Compare the imported network's logits with those of onnxruntime on photos, and the preprocessing with timm's."""
    module = random_network(name)
    card = import_timm(name, saved(module, folder), folder / "weights", OPTIONS, lambda _: None)
    runtime, _ = imported_runtime.load(folder / "weights/imported")
    images = torch.stack(sample_inputs(PROJECT / "examples", card.preprocess)[:8])
    (folder / "net.onnx").write_bytes(export_onnx(module, card.preprocess.shape, "logits"))
    expected = run_file(folder / "net.onnx", images)
    assert expected.std() > 1e-3
    torch.testing.assert_close(runtime(images), expected, rtol=0, atol=1e-3)
    assert len(card.classes) == 1000


def test_small_network(tmp_path: Path) -> None:
    check_logits("mobilenetv3_small_050", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_ten_families(name: str, tmp_path: Path) -> None:
    check_logits(name, tmp_path)


def test_card_has_the_configuration_of_timm(tmp_path: Path) -> None:
    module = random_network("resnet10t")
    card = import_timm("resnet10t", saved(module, tmp_path), tmp_path / "weights", OPTIONS, lambda _: None)
    assert (card.preprocess.size, card.preprocess.crop_fraction) == ((176, 176), 0.875)
    assert (card.preprocess.interpolation, card.preprocess.mode) == ("bicubic", "RGB")
    assert card.classes[0] == "tench, Tinca tinca"
    assert card.license == "apache-2.0 (weights, according to timm)"
    assert card.source.startswith("timm:resnet10t, weights model.safetensors (sha256 ")
    # timm's own preprocessing rounds the window to whole pixels.
    data: Any = timm.data  # its functions have no types
    transform = data.create_transform(**data.resolve_model_data_config(module))
    with Image.open(PROJECT / "examples/coffee.jpg") as image:
        difference = (transform(image.convert("RGB")) - card.preprocess(image)).abs()
    assert difference.mean() < 0.15


def test_embedder_has_no_last_layer(tmp_path: Path) -> None:
    module = random_network("lcnet_035")
    options = replace(OPTIONS, task="embed")
    card = import_timm("lcnet_035", saved(module, tmp_path), tmp_path / "weights", options, lambda _: None)
    runtime, _ = imported_runtime.load(tmp_path / "weights/imported")
    images = torch.randn(2, *card.preprocess.shape)
    module.reset_classifier(0)  # type: ignore[operator]
    with torch.inference_mode():
        expected = F.normalize(module(images))
    torch.testing.assert_close(runtime(images), expected, rtol=0, atol=1e-4)
    assert (card.task, card.config["dimensions"], card.classes) == ("embed", expected.shape[1], ())


def test_other_number_of_classes(tmp_path: Path) -> None:
    file = saved(random_network("lcnet_035", num_classes=3), tmp_path)
    with pytest.raises(ImportWeightsError, match="the network has 3 outputs: pass their class names with --labels"):
        import_timm("lcnet_035", file, tmp_path / "weights", OPTIONS, lambda _: None)
    options = replace(OPTIONS, classes=("a", "b", "c"))
    assert import_timm("lcnet_035", file, tmp_path / "weights", options, lambda _: None).classes == ("a", "b", "c")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("resnet19", b"", "has no network 'resnet19'"),
        ("hf-hub:timm/resnet18", b"", "has no network 'hf-hub:timm/resnet18'"),
        ("resnet18", None, "No such file"),
        ("resnet18", b"not weights", "does not hold the weights of resnet18"),
        ("resnet18", safetensors.torch.save({"fc.weight": torch.zeros(2, 2)}), "Missing key"),
    ],
)
def test_other_networks_and_files_are_refused(name: str, content: bytes | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ImportWeightsError, match=message):
        import_timm(name, file, tmp_path / "weights", OPTIONS, lambda _: None)
    assert not (tmp_path / "weights").exists()


def test_missing_timm_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportWeightsError, match=r"pip install 'vestibule\[timm\]'"):
        import_timm("resnet18", tmp_path, tmp_path, OPTIONS, lambda _: None)
