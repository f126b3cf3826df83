"""Every classifier and embedder of the registry: gradients, saving, shapes, sizes, refusals. New rows are included."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import checkpoint, densenet, resnet, vgg
from models.embedder import GlobalDepthwise
from models.imported_network import no_module
from models.inception import TABLE_1, InceptionNetwork
from models.lenet import TableConv2d
from models.registry import REGISTRY, build, configure
from tests.models.helpers import SMALL_INCEPTION, assert_all_gradients, run, save_untrained

# A network with more parameters takes seconds.
FAST = 5_500_000
# Settings that make a network random in train mode.
RANDOM = {"dropout", "drop_connect", "drop_rate"}
BATCH = 4

# Settings for small images, and a smaller form of networks that have one.
ALEXNET = {"channels": [8, 12, 16, 12, 8], "stem": [5, 1, 2], "hidden": [16], "pool_size": 3, "image_size": 32}
VGG = {"stages": [[8, 8], [8, 8], [16, 16], [16, 16]], "hidden": [], "pool_size": 1, "image_size": 32}
DENSENET = {"depths": [1, 1, 1, 1], "growth": 4}
EMBEDDER = {"image_size": 32, "backbone_config": {"widths": [8, 16], "depths": [1, 1]}, "dimensions": 12}
FACE = {"image_size": 32, "dimensions": 8}


def marks(name: str) -> list[pytest.MarkDecorator]:
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in build(name).parameters())
    return [pytest.mark.slow] if parameters > FAST else []


ZOO = [
    *(
        pytest.param(name, {}, marks=marks(name))
        for name, row in REGISTRY.items()
        if row.task == "classify" and row.build is not no_module  # imported graphs have no module
    ),
    ("embedder", EMBEDDER),
    ("mobilefacenet", FACE),
    ("mobilefacenet", FACE | {"norm": False}),
]


def smallest_images(config: Any) -> Tensor:
    return torch.randn(BATCH, config.in_channels, config.smallest, config.smallest)


def expected_zeros(module: nn.Module) -> dict[str, Tensor]:
    """Masks of the weights whose gradient must be zero because a connection table leaves them out."""
    return {
        f"{name}.weight": (layer.table == 0).expand_as(layer.weight)
        for name, layer in module.named_modules()
        if isinstance(layer, TableConv2d)
    }


@pytest.mark.parametrize(("name", "overrides"), ZOO)
def test_forward_backward_save_load(name: str, overrides: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    overrides = overrides | {field.name: 0.0 for field in fields(REGISTRY[name].config) if field.name in RANDOM}
    config = configure(name, overrides)
    module = build(name, overrides)
    images = smallest_images(config)

    outputs = module(images, auxiliary=True) if getattr(config, "auxiliary", False) else (module(images),)
    loss = torch.stack([F.cross_entropy(output, torch.arange(BATCH)) for output in outputs]).sum()
    assert loss.isfinite()
    loss.backward()  # type: ignore[no-untyped-call]
    assert_all_gradients(module, expected_zeros(module))

    saved = save_untrained(tmp_path, module, name, overrides, config.smallest)
    loaded, card = checkpoint.load(tmp_path)
    assert card == saved
    assert card.version == card.sha256[:12]
    assert card.parameters == sum(parameter.numel() for parameter in module.parameters())
    assert not loaded.training
    with torch.inference_mode():
        expected = module.eval()(images)
        width = config.num_classes if hasattr(config, "num_classes") else config.dimensions
        assert torch.equal(run(loaded, images, width), expected)
        assert torch.equal(module.get_submodule("head")(module.get_submodule("features")(images)), expected)
        if REGISTRY[name].task == "embed":
            torch.testing.assert_close(expected.norm(dim=1), torch.ones(BATCH))


@pytest.mark.parametrize(("name", "overrides"), ZOO)
def test_wrong_shapes_are_refused(name: str, overrides: dict[str, Any]) -> None:
    module = build(name, overrides).eval()
    good = smallest_images(configure(name, overrides))
    side = good.shape[-1]
    for images in (
        torch.cat([good, good[:, :1]], dim=1),  # one channel more
        good[:, :, : side - 1],
        good[:, :, :, : side - 1],
        good[0],
        good[None],
    ):
        with pytest.raises(ValueError, match="expected images of shape") as error:
            module(images)
        message = str(error.value)
        assert f"[N, {good.shape[1]}, " in message
        assert f"{side}]" in message
        assert str(list(images.shape)) in message
    if ">=" not in message:
        with pytest.raises(ValueError, match="expected images of shape"):
            module(F.pad(good, (0, 1)))


@pytest.mark.parametrize(
    ("name", "overrides", "smallest"),
    [
        ("alexnet2012", {"hidden": [8]}, 63),
        ("alexnet2012", {"hidden": [8], "overlapping_pooling": False}, 35),
        ("alexnet", ALEXNET, 15),
        ("alexnet2012", ALEXNET | {"overlapping_pooling": False}, 8),
        ("vgg11", VGG, 16),
        ("vgg11-bn", VGG | {"stem": [6, 3], "stages": [[4, 5], [7]], "halve": "first"}, 6),
        ("resnet20", {"in_channels": 1}, 8),
        ("resnet20", {"stem": "small-pool", "widths": [8, 16], "depths": [1, 1]}, 8),
        ("resnet18", {}, 32),
        ("densenet121", DENSENET, 32),
        ("densenet121", DENSENET | {"stem": "small", "in_channels": 1}, 8),
        ("densenet121", DENSENET | {"stem": "small-pool"}, 16),
        ("efficientnet-b0", {"stem_stride": 1, "strides": [1, 1, 2, 2, 1, 2, 1]}, 8),
        ("inception-v1", {"image_size": 32, "auxiliary": False, "auxiliary_after": []}, 31),
        ("inception-v1", {}, 79),
        ("googlenet", {"auxiliary": False}, 15),  # torchvision's documented minimum
        ("googlenet", {}, 15),
        ("inception-v3", {"auxiliary": False}, 75),  # torchvision's documented minimum
        ("inception-v3", {}, 299),
        ("inception-v1", SMALL_INCEPTION | {"auxiliary": False}, 4),
        ("inception-v1", SMALL_INCEPTION, 10),
        ("inception-v1", SMALL_INCEPTION | {"stem": "small-pool", "auxiliary": False}, 7),
        ("inception-v1", SMALL_INCEPTION | {"pools": [2, 2], "auxiliary_after": [[0, 0]]}, 5),
    ],
)
def test_smallest_image(name: str, overrides: dict[str, Any], smallest: int) -> None:
    config = configure(name, overrides)
    assert config.smallest == smallest
    with torch.device("meta"):
        module = build(name, overrides).eval()
        images = torch.zeros(2, config.in_channels, smallest, smallest)
    outputs = module(images, auxiliary=True) if getattr(config, "auxiliary", False) else (module(images),)
    assert {tuple(logits.shape) for logits in outputs} == {(2, config.num_classes)}
    with pytest.raises(ValueError, match=rf">={smallest}, >={smallest}\], got \[2, \d, {smallest}, {smallest - 1}\]"):
        module(images[..., 1:])
    if name.startswith(("alexnet", "inception", "googlenet")):
        # Without padding the limit is exact: one pixel less leaves a layer without input.
        with pytest.raises(RuntimeError, match=r"size|too small"):
            run_every_layer(module, images[:, :, 1:, 1:])


def run_every_layer(module: nn.Module, x: Tensor) -> list[int]:
    """Run the layers of `features` and the auxiliary heads, without the check of the images' shape; the maps' sides."""
    heads = dict(zip(module.taps, module.auxiliary, strict=True)) if isinstance(module, InceptionNetwork) else {}
    sides = []
    for index, layer in enumerate(module.get_submodule("features").children()):
        if isinstance(layer, nn.AdaptiveAvgPool2d | GlobalDepthwise):
            break
        x = layer(x)
        sides.append(x.shape[-1])
        if index in heads:
            heads[index](x)
    return sides


@pytest.mark.parametrize(
    ("name", "overrides", "sides"),
    [
        ("resnet20", {}, [32, 16, 8]),
        ("densenet40", {}, [28, 14, 7]),
        ("densenet-bc-100", {}, [32, 16, 8]),
        ("efficientnet-b0", {"stem_stride": 1, "strides": [1, 1, 2, 2, 1, 2, 1]}, [32, 16, 8, 4]),
        ("inception-v1", SMALL_INCEPTION, [32, 16, 8]),
        ("inception-v1", SMALL_INCEPTION | {"image_size": 28, "auxiliary": False}, [28, 14, 7]),
        ("face-resnet", {}, [56, 28, 14, 7]),
    ],
)
def test_sides_of_the_maps(name: str, overrides: dict[str, Any], sides: list[int]) -> None:
    """Networks for small images keep their resolution."""
    with torch.device("meta"):
        module = build(name, overrides).eval()
        images = torch.zeros(2, 3, *(2 * [112 if name == "face-resnet" else sides[0]]))
    assert list(dict.fromkeys(run_every_layer(module, images))) == sides


@pytest.mark.parametrize("name", [*vgg.VARIANTS, *resnet.VARIANTS, *densenet.VARIANTS])
def test_name_counts_the_layers(name: str) -> None:
    """Convolutions and the classifier. The paper of ResNet counts no projection in a shortcut."""
    with torch.device("meta"):
        layers = [
            key
            for key, layer in build(name).named_modules()
            if isinstance(layer, nn.Conv2d | nn.Linear) and "shortcut" not in key
        ]
    number = int("".join(filter(str.isdigit, name)))
    assert len(layers) == (265 if number == 264 else number)  # DenseNet-264's table has 265


SERVING = {"auxiliary": False}
# Millions of parameters. The papers give, rounded: AlexNet 60; VGG-11 to 19 133, 133, 138, 144 (table 2); Inception-v3
# less than 25; ResNet-20 to 110 0.27, 0.46, 0.85 and 1.7 (table 6); DenseNet-40 and -BC-100 1.0 and 0.8 (table 2).
PARAMETERS: list[tuple[str, dict[str, Any], str]] = [
    ("alexnet", {}, "61.100840"), ("alexnet2012", {}, "60.965224"),
    ("vgg11", {}, "132.863336"), ("vgg13", {}, "133.047848"), ("vgg16", {}, "138.357544"), ("vgg19", {}, "143.667240"),
    ("vgg11-bn", {}, "132.868840"), ("vgg13-bn", {}, "133.053736"),
    ("vgg16-bn", {}, "138.365992"), ("vgg19-bn", {}, "143.678248"),
    ("inception-v1", {}, "13.378280"), ("inception-v1", SERVING, "6.998552"),
    ("googlenet", {}, "13.004888"), ("googlenet", SERVING, "6.624904"),
    ("inception-v3", {}, "27.161264"), ("inception-v3", SERVING, "23.834568"),
    ("resnet18", {}, "11.689512"), ("resnet34", {}, "21.797672"), ("resnet50", {}, "25.557032"),
    ("resnet101", {}, "44.549160"), ("resnet152", {}, "60.192808"),
    ("resnet20", {}, "0.27"), ("resnet32", {}, "0.46"), ("resnet56", {}, "0.85"), ("resnet110", {}, "1.7"),
    ("densenet121", {}, "7.978856"), ("densenet169", {}, "14.149480"), ("densenet201", {}, "20.013928"),
    ("densenet264", {}, "33.337704"), ("densenet40", {}, "1.019722"), ("densenet-bc-100", {}, "0.769162"),
    ("efficientnet-b0", {}, "5.29"), ("efficientnet-b1", {}, "7.79"), ("efficientnet-b2", {}, "9.11"),
    ("efficientnet-b3", {}, "12.23"), ("efficientnet-b4", {}, "19.34"), ("efficientnet-b5", {}, "30.39"),
    ("efficientnet-b6", {}, "43.04"), ("efficientnet-b7", {}, "66.35"),
    ("efficientnet-lite0", {}, "4.65"), ("efficientnet-lite4", {}, "13.01"),
    ("mobilefacenet", {"norm": False}, "1.292992"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "overrides", "millions"), PARAMETERS)
def test_parameter_counts(name: str, overrides: dict[str, Any], millions: str) -> None:
    with torch.device("meta"):
        parameters = sum(p.numel() for p in build(name, overrides).parameters())
    assert f"{parameters / 1e6:.{len(millions.partition('.')[2])}f}" == millions


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("alexnet2012", {"channels": [95, 256, 384, 384, 256]}, "divisible by groups"),
        ("alexnet2012", {"stem": [0, 4, -1]}, "alexnet2012: .*stem.0.*stem.2"),
        ("alexnet2012", {"stem": [5, 1, 5]}, r"padding below the kernel, got \(5, 1, 5\)"),
        ("vgg16", {"stages": [[64], [], [64, 0]]}, r"vgg16: .*stages\.1.*stages\.2\.1"),
        ("vgg16", {"stem": [0, 3]}, r"stem needs a number of filters .* got \(0, 3\)"),
        ("vgg16", {"stem": [24, 0]}, r"stem needs a number of filters .* got \(24, 0\)"),
        ("vgg16", {"stages": [[4]], "hidden": [], "dropout": 1.5}, "has to be between 0 and 1, but got 1.5"),
        ("resnet18", {"depths": [1, 1], "widths": [8]}, "one number for each stage"),
        ("resnet20", {"depths": [1, 1], "widths": [16, 8]}, "a padded shortcut cannot reduce channels"),
        ("densenet121", {"depths": [6, 0], "compression": 1.5}, r"densenet121: .*depths\.1.*compression"),
        ("efficientnet-b0", {"strides": [1, 2]}, "efficientnet-b0: .*strides"),
        ("inception-v1", {"rows": [TABLE_1[0], [], [[64, 0, 64, 8, 16, 16]]]}, r"rows\.1.*rows\.2\.0\.1"),
        ("inception-v1", {"pools": [3]}, "pools needs a number between each two of 3 stages"),
        ("inception-v1", {"stem_channels": [64]}, "'imagenet' needs 3 stem_channels"),
        ("inception-v1", {"stem": "small"}, "'small' needs 1 stem_channels"),
        ("inception-v1", {"image_size": 78}, "at least 79 pixels, got 78"),
        ("inception-v1", {"image_size": 30, "auxiliary": False}, "at least 31 pixels, got 30"),
        ("inception-v1", {"auxiliary_after": []}, "pairs in ascending order"),
        ("inception-v1", {"auxiliary_after": [[1, 3], [1, 0]]}, "pairs in ascending order"),
        ("inception-v1", {"auxiliary_after": [[1, 5]]}, "pairs in ascending order"),
        ("lenet5", {"image_size": 28}, "lenet5: .*image_size"),
        ("lenet5", {"num_classes": 26}, "codes for the 10 digits, not for 26"),
        ("lenet1989", {"image_size": 28}, "lenet1989: .*image_size"),
        ("mobilefacenet", {"image_size": 0}, "greater than or equal to 16"),
        ("mobilefacenet", {"image_size": 100}, "multiple of 16"),
        ("embedder", {"backbone": "embedder"}, "must be a classifier, not embedder"),
        ("embedder", {"backbone": "nothing"}, "unknown architecture 'nothing'"),
        ("embedder", {"backbone_config": {"width": 3}}, "no setting width"),
        ("embedder", {"backbone_config": {"image_size": 64}}, "image_size of the backbone are set by the embedder"),
        ("embedder", {"backbone_config": {"depths": [1]}}, r"depths \(1,\) and widths"),
        ("autoencoder", {"image_size": 28, "widths": [4, 8, 8]}, "28 pixels cannot be halved 3 times"),
        ("autoencoder", {"image_size": 8, "widths": []}, "cannot be halved"),
        ("gan", {"widths": [8, 8, 8]}, "28 pixels cannot be halved"),
    ],
)
def test_invalid_settings_are_refused(name: str, overrides: dict[str, Any], message: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=f"(?s){message}"):
        build(name, overrides)
