"""The embedder: on the sphere, with any backbone, saved and loaded; shared weights are shared."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from models import checkpoint
from models.embedder import Embedder, FaceResNetConfig, GlobalDepthwise, SiameseNetwork, TripletNetwork
from models.preprocess import Preprocess
from models.registry import build, configure
from tests.models.helpers import run

SMALL = {"image_size": 32, "backbone_config": {"widths": [8, 16], "depths": [1, 1]}, "dimensions": 12}


def small(**changes: object) -> nn.Module:
    torch.manual_seed(0)
    return build("embedder", SMALL | changes)


def save(folder: Path, module: nn.Module, **changes: object) -> None:
    fields: dict[str, object] = {
        "name": "small",
        "description": "untrained",
        "task": "embed",
        "architecture": "embedder",
        "config": asdict(configure("embedder", SMALL)),
        "preprocess": Preprocess(size=(32, 32), mean=(0.0,) * 3, std=(1.0,) * 3),
        "data": "none",
        "source": "this test",
        "license": "Apache-2.0",
    }
    checkpoint.save(folder, module, **(fields | changes))


def test_forward_backward_save_load(tmp_path: Path) -> None:
    module = small()
    images = torch.randn(6, 3, 32, 32)
    embeddings = run(module, images, 12)
    assert torch.allclose(embeddings.norm(dim=1), torch.ones(6), atol=1e-6)
    (embeddings[:3] * embeddings[3:]).sum().backward()  # type: ignore[no-untyped-call]
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, f"{name} is not used"
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), f"{name} has no gradient"
    save(tmp_path, module)
    loaded, card = checkpoint.load(tmp_path)
    assert (card.task, card.classes, loaded.training) == ("embed", (), False)
    with torch.inference_mode():
        assert torch.equal(loaded(images), module.eval()(images))
        features = module.get_submodule("features")(images)
        assert torch.equal(module.get_submodule("head")(features), module(images))


def test_the_face_embedder_fits_its_file() -> None:
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
        ("inception-v1", 64, 3, {}),  # its auxiliary heads, which would ask for larger pictures, are not built
        ("densenet121", 32, 1, {}),
    ],
)
def test_any_backbone(backbone: str, image_size: int, channels: int, config: dict[str, object]) -> None:
    settings = {"backbone": backbone, "image_size": image_size, "in_channels": channels, "backbone_config": config}
    module = build("embedder", settings)
    assert not [name for name, _ in module.named_parameters() if not name.startswith(("features.", "head."))]
    with torch.inference_mode():
        embeddings = run(module, torch.randn(3, channels, image_size, image_size), 128)
    assert torch.allclose(embeddings.norm(dim=1), torch.ones(3), atol=1e-6)
    # The card's config is the whole of it.
    assert configure("embedder", json.loads(json.dumps(asdict(configure("embedder", settings)))))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backbone": "resnet"}, "unknown architecture 'resnet'"),
        ({"backbone": "embedder"}, "is a classifier, not embedder"),
        ({"backbone_config": {"width": 8}}, "face-resnet has no setting width"),
        ({"backbone_config": {"image_size": 64}}, "image_size of the backbone are the embedder's own"),
        ({"backbone_config": {"depths": [1]}}, r"depths \(1,\) and widths"),
    ],
)
def test_a_backbone_that_cannot_be(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build("embedder", settings)


@pytest.mark.parametrize("shape", [(3, 3, 31, 32), (3, 3, 64, 64), (3, 1, 32, 32), (3, 32, 32)])
def test_wrong_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected images of shape \[N, 3, 32, 32\], got") as caught:
        small().eval()(torch.zeros(shape))
    assert str(list(shape)) in str(caught.value)


def test_a_card_of_an_embedder_has_no_classes(tmp_path: Path) -> None:
    module = small()
    for changes, message in (
        ({"classes": ("a",)}, "1 class names for a network with 0 classes"),
        ({"temperature": 2.0}, "a classifier's, not that of a network to embed"),
        ({"task": "classify"}, "embedder is built to embed, not to classify"),
    ):
        with pytest.raises(ValidationError, match=message):
            save(tmp_path, module, **changes)


def test_global_depthwise_is_a_depthwise_convolution() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 7, 7)
    layer = GlobalDepthwise(5, 7)
    assert torch.allclose(layer(x), x.mean(dim=(2, 3)), atol=1e-6)
    nn.init.normal_(layer.weight)
    assert torch.allclose(layer(x), F.conv2d(x, layer.weight[:, None], groups=5)[:, :, 0, 0], atol=1e-5)


def test_every_stage_halves_a_face() -> None:
    module = build("face-resnet").eval()
    assert FaceResNetConfig().smallest == 112
    layers = module.get_submodule("features")
    assert isinstance(layers, nn.Sequential)
    with torch.inference_mode():
        x = torch.zeros(1, 3, 112, 112)
        shapes = []
        for layer in layers:
            x = layer(x)
            shapes.append(tuple(x.shape[1:]))
    assert shapes == [(32, 56, 56), (32, 56, 56), (64, 28, 28), (128, 14, 14), (256, 7, 7), (256,), (256,)]


def test_pictures_that_are_all_the_same_do_no_harm() -> None:
    """In train mode a batch norm makes zeros of them, and zero has no direction."""
    module = small()
    embeddings = module(torch.ones(4, 3, 32, 32))
    embeddings.sum().backward()
    assert embeddings.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


def test_half_precision_ends_on_the_sphere() -> None:
    module = small()
    with torch.autocast("cpu", torch.bfloat16):
        embeddings = module(torch.randn(4, 3, 32, 32))
    assert embeddings.dtype == torch.float32
    assert torch.allclose(embeddings.norm(dim=1), torch.ones(4), atol=1e-6)


# Shared weights. The network reads anything; here, rows of numbers.


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def gradients(module: nn.Module) -> list[Tensor]:
    return [p.grad for p in module.parameters() if p.grad is not None]


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("kind", [SiameseNetwork, TripletNetwork])
def test_shared_weights_get_the_sum_of_the_gradients(
    kind: type[SiameseNetwork] | type[TripletNetwork], together: bool
) -> None:
    count = 2 if kind is SiameseNetwork else 3
    inputs = [torch.randn(5, 4, dtype=torch.float64) for _ in range(count)]
    weights = [torch.randn(5, 3, dtype=torch.float64) for _ in range(count)]
    shared = kind(network(), together=together)
    outputs = shared(*inputs)
    torch.stack([(out * weight).sum() for out, weight in zip(outputs, weights, strict=True)]).sum().backward()  # type: ignore[no-untyped-call]
    expected = [torch.zeros_like(p) for p in shared.parameters()]
    for x, weight, out in zip(inputs, weights, outputs, strict=True):
        alone = network()
        answer = alone(x)
        assert torch.allclose(answer, out)
        (answer * weight).sum().backward()
        expected = [total + gradient for total, gradient in zip(expected, gradients(alone), strict=True)]
    assert len(expected) == len(list(network().parameters())) == len(gradients(shared))
    for gradient, total in zip(gradients(shared), expected, strict=True):
        torch.testing.assert_close(gradient, total)


@pytest.mark.parametrize("kind", [SiameseNetwork, TripletNetwork])
def test_the_state_has_every_weight_once(kind: type[SiameseNetwork] | type[TripletNetwork], tmp_path: Path) -> None:
    module = small()
    shared = kind(module)
    assert list(shared.state_dict()) == [f"network.{name}" for name in module.state_dict()]
    # safetensors refuses tensors that share memory.
    checkpoint.serialise(shared)
    save(tmp_path, shared.network)
    loaded, _ = checkpoint.load(tmp_path)
    assert isinstance(loaded, Embedder)
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        shared.eval()
        outputs = shared(*[images] * (2 if kind is SiameseNetwork else 3))
        for out in outputs:
            torch.testing.assert_close(out, loaded(images), rtol=0, atol=1e-6)


def test_batch_norm_sees_both_inputs_together() -> None:
    norm = nn.BatchNorm1d(3)
    first, second = torch.randn(6, 3), torch.randn(4, 3) + 5
    outputs = SiameseNetwork(norm)(first, second)
    assert [len(out) for out in outputs] == [6, 4]
    assert torch.cat(outputs).mean(dim=0).abs().max() < 1e-5
    assert outputs[0].mean() < -0.5 < 0.5 < outputs[1].mean()
    apart = SiameseNetwork(nn.BatchNorm1d(3), together=False)(first, second)
    assert all(out.mean(dim=0).abs().max() < 1e-5 for out in apart)


def test_inputs_of_different_shapes_go_one_after_the_other() -> None:
    words = SiameseNetwork(
        nn.Sequential(nn.Embedding(10, 4), nn.AdaptiveAvgPool2d((1, 4)), nn.Flatten()), together=False
    )
    one, two = words(torch.randint(10, (3, 7)), torch.randint(10, (3, 5)))
    assert one.shape == two.shape == (3, 4)
