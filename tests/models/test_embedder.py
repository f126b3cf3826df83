"""The embedder on every kind of backbone, and the networks that share its weights."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import checkpoint
from models.embedder import Embedder, GlobalDepthwise, SiameseNetwork
from models.registry import build, configure
from tests.models.helpers import run, save_untrained

SMALL = {"image_size": 32, "backbone_config": {"widths": [8, 16], "depths": [1, 1]}, "dimensions": 12}


def small(**changes: object) -> nn.Module:
    torch.manual_seed(0)
    return build("embedder", SMALL | changes)


def test_face_embedder_is_within_its_file_size() -> None:
    module = build("embedder").eval()
    parameters = sum(parameter.numel() for parameter in module.parameters())
    assert parameters < 4_000_000
    data, _ = checkpoint.serialise(module)
    assert len(data) <= 16_000_000
    with torch.inference_mode():
        assert run(module, torch.randn(1, 3, 112, 112), 128).norm() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("backbone", "image_size", "channels", "config"),
    [
        ("face-resnet", 64, 3, {"widths": [8, 8], "depths": [1, 1]}),
        ("resnet20", 32, 3, {}),
        ("lenet5", 32, 1, {}),
        ("efficientnet-lite0", 64, 3, {}),
        ("inception-v1", 64, 3, {}),  # without auxiliary heads, which need larger images
        ("densenet121", 32, 1, {}),
    ],
)
def test_every_kind_of_backbone(backbone: str, image_size: int, channels: int, config: dict[str, object]) -> None:
    settings = {"backbone": backbone, "image_size": image_size, "in_channels": channels, "backbone_config": config}
    module = build("embedder", settings)
    assert not [name for name, _ in module.named_parameters() if not name.startswith(("features.", "head."))]
    with torch.inference_mode():
        embeddings = run(module, torch.randn(3, channels, image_size, image_size), 128)
    assert torch.allclose(embeddings.norm(dim=1), torch.ones(3), atol=1e-6)
    # The config survives JSON, as it must in a card.
    assert configure("embedder", json.loads(json.dumps(asdict(configure("embedder", settings)))))


def test_global_depthwise_is_a_depthwise_convolution() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 7, 7)
    layer = GlobalDepthwise(5, 7)
    assert torch.allclose(layer(x), x.mean(dim=(2, 3)), atol=1e-6)
    nn.init.normal_(layer.weight)
    assert torch.allclose(layer(x), F.conv2d(x, layer.weight[:, None], groups=5)[:, :, 0, 0], atol=1e-5)


def test_equal_images_have_finite_gradients() -> None:
    """In train mode batch norm maps them to zero, which has no direction."""
    module = small()
    embeddings = module(torch.ones(4, 3, 32, 32))
    embeddings.sum().backward()
    assert embeddings.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


def test_embeddings_are_float32_under_autocast() -> None:
    module = small()
    with torch.autocast("cpu", torch.bfloat16):
        embeddings = module(torch.randn(4, 3, 32, 32))
    assert embeddings.dtype == torch.float32
    assert torch.allclose(embeddings.norm(dim=1), torch.ones(4), atol=1e-6)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def gradients(module: nn.Module) -> list[Tensor]:
    return [p.grad for p in module.parameters() if p.grad is not None]


@pytest.mark.parametrize("single_batch", [True, False])
@pytest.mark.parametrize("count", [2, 3])
def test_shared_weights_get_the_sum_of_the_gradients(count: int, single_batch: bool) -> None:
    inputs = [torch.randn(5, 4, dtype=torch.float64) for _ in range(count)]
    weights = [torch.randn(5, 3, dtype=torch.float64) for _ in range(count)]
    shared = SiameseNetwork(network(), single_batch=single_batch)
    outputs = shared(*inputs)
    torch.stack([(out * weight).sum() for out, weight in zip(outputs, weights, strict=True)]).sum().backward()  # type: ignore[no-untyped-call]
    expected = [torch.zeros_like(p) for p in shared.parameters()]
    for x, weight, out in zip(inputs, weights, outputs, strict=True):
        separate = network()
        embeddings = separate(x)
        assert torch.allclose(embeddings, out)
        (embeddings * weight).sum().backward()
        expected = [total + gradient for total, gradient in zip(expected, gradients(separate), strict=True)]
    assert len(expected) == len(list(network().parameters())) == len(gradients(shared))
    for gradient, total in zip(gradients(shared), expected, strict=True):
        torch.testing.assert_close(gradient, total)


def test_state_has_every_weight_once(tmp_path: Path) -> None:
    module = small()
    shared = SiameseNetwork(module)
    assert list(shared.state_dict()) == [f"network.{name}" for name in module.state_dict()]
    # safetensors refuses tensors that share memory.
    checkpoint.serialise(shared)
    save_untrained(tmp_path, shared.network, "embedder", SMALL)
    loaded, _ = checkpoint.load(tmp_path)
    assert isinstance(loaded, Embedder)
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        for out in shared.eval()(images, images):
            torch.testing.assert_close(out, loaded(images), rtol=0, atol=1e-6)


def test_batch_norm_normalises_over_both_inputs() -> None:
    norm = nn.BatchNorm1d(3)
    first, second = torch.randn(6, 3), torch.randn(4, 3) + 5
    outputs = SiameseNetwork(norm)(first, second)
    assert [len(out) for out in outputs] == [6, 4]
    assert torch.cat(outputs).mean(dim=0).abs().max() < 1e-5
    assert outputs[0].mean() < -0.5 < 0.5 < outputs[1].mean()
    separate = SiameseNetwork(nn.BatchNorm1d(3), single_batch=False)(first, second)
    assert all(out.mean(dim=0).abs().max() < 1e-5 for out in separate)


def test_inputs_of_different_shapes_run_one_after_the_other() -> None:
    words = SiameseNetwork(
        nn.Sequential(nn.Embedding(10, 4), nn.AdaptiveAvgPool2d((1, 4)), nn.Flatten()), single_batch=False
    )
    first, second = words(torch.randint(10, (3, 7)), torch.randint(10, (3, 5)))
    assert first.shape == second.shape == (3, 4)
