"""Inception against torchvision on copied weights, and against the papers' figures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.googlenet import Inception, InceptionAux

from models.inception import TABLE_1, InceptionNetwork
from models.registry import build, configure
from tests.models.helpers import drop_rates, enliven, parity, without_drops

TOLERANCE = 1e-4  # of the logits' scale, in float32

# A form for CIFAR: 32x32 -> 16x16 -> 8x8.
SMALL: dict[str, Any] = {
    "num_classes": 10,
    "image_size": 32,
    "stem": "small",
    "stem_channels": [24],
    "rows": [
        [[16, 16, 24, 4, 8, 8]],
        [[24, 24, 32, 4, 8, 8], [24, 24, 32, 4, 8, 8]],
        [[32, 32, 48, 8, 16, 16]],
    ],
    "batch_norm": True,
    "local_response_norm": False,
    "auxiliary_after": [[1, 0], [1, 1]],
    "auxiliary_hidden": 64,
}


def network(name: str, overrides: dict[str, Any] | None = None) -> InceptionNetwork:
    module = build(name, overrides)
    assert isinstance(module, InceptionNetwork)
    return module


def torchvisions(name: str) -> nn.Module:
    module: nn.Module = getattr(torchvision.models, name)(
        weights=None, init_weights=False, aux_logits=True, transform_input=False
    )
    return module


def copy_heads_last(source: nn.Module, target: nn.Module) -> None:
    """As copy_in_order does, where ours ends in the head and the auxiliary heads and theirs ends in the head."""
    order = {"AuxLogits": 2, "aux1": 2, "aux2": 2, "fc": 1}
    theirs = sorted(source.state_dict().items(), key=lambda item: order.get(item[0].split(".")[0], 0))
    ours = target.state_dict()
    target.load_state_dict({name: value for name, (_, value) in zip(ours, theirs, strict=True)})


@torch.no_grad()
def assert_same_outputs(ours: nn.Module, theirs: nn.Module, images: Tensor, *, train: bool) -> None:
    """The logits and every auxiliary head's, each on its own scale."""
    theirs.train(train)
    theirs.training = True  # the flag of the outermost module, which only decides whether the heads run
    logits, *reversed_heads = theirs(images)
    answers = ours.train(train)(images, auxiliary=True)
    expected = [logits, *reversed_heads[::-1]]
    assert len(answers) == len(expected) >= 2
    for a, b in zip(answers, expected, strict=True):
        scale = b.abs().max()
        assert b.std(dim=0).mean() > 0.01 * scale, "every picture gets the same logits: the comparison shows nothing"
        assert (a - b).abs().max() <= TOLERANCE * scale
    if not train:
        assert torch.equal(ours(images), answers[0])


def assert_parity(theirs: nn.Module, ours: nn.Module, batch: Tensor) -> None:
    enliven(without_drops(theirs), torch.randn(2 * len(batch), *batch.shape[1:]))
    copy_heads_last(theirs, without_drops(ours))
    assert_same_outputs(ours, theirs, batch, train=False)
    assert_same_outputs(ours, theirs, batch, train=True)
    # Train mode moves the running statistics, by the momentum.
    assert_same_outputs(ours, theirs, batch, train=False)


def test_googlenet_parity_with_torchvision() -> None:
    torch.manual_seed(0)
    theirs, ours = torchvisions("googlenet"), network("googlenet")
    assert sorted(drop_rates(ours)) == sorted(drop_rates(theirs))
    assert_parity(theirs, ours, torch.randn(4, 3, 96, 96))


@pytest.mark.slow
def test_v3_parity_with_torchvision() -> None:
    torch.manual_seed(0)
    theirs, ours = torchvisions("inception_v3"), network("inception-v3")
    assert drop_rates(ours) == drop_rates(theirs)
    assert_parity(theirs, ours, torch.randn(4, 3, 299, 299))


def test_v3_parity_with_torchvision_at_the_smallest_size() -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.inception_v3(weights=None, init_weights=False, aux_logits=False)
    batch = torch.randn(4, 3, 75, 75)
    enliven(without_drops(theirs), torch.randn(8, 3, 75, 75))
    ours = without_drops(network("inception-v3", {"auxiliary": False}))
    copy_heads_last(theirs, ours)
    assert parity(ours, theirs, batch, train=False) <= TOLERANCE
    assert parity(ours, theirs, batch, train=True) <= TOLERANCE


class Biased(nn.Module):
    """A convolution as the 2015 paper has it: with a bias and without batch norm."""

    def __init__(self, in_channels: int, out_channels: int, **kwargs: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, **kwargs)  # type: ignore[arg-type]
        nn.init.kaiming_normal_(self.conv.weight)
        nn.init.normal_(self.conv.bias, 0, 0.1)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x))


class WideInception(Inception):  # type: ignore[misc]
    def __init__(self, *channels: int):
        super().__init__(*channels, conv_block=Biased)
        _, _, _, _, reduced, outputs, _ = channels
        self.branch3[1] = Biased(reduced, outputs, kernel_size=5, padding=2)


class StridedHead(InceptionAux):  # type: ignore[misc]
    def __init__(self, in_channels: int, num_classes: int, dropout: float):
        super().__init__(in_channels, num_classes, conv_block=Biased, dropout=dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.flatten(self.conv(F.avg_pool2d(x, 5, 3)), 1)
        logits: Tensor = self.fc2(self.dropout(F.relu(self.fc1(x))))
        return logits


def caffes_response_norm(x: Tensor) -> Tensor:
    """A loop over channels: x_c / (1 + 1e-4 / 5 * sum of the squares of channels c-2 to c+2) ^ 0.75."""
    maps = []
    for channel in range(x.shape[1]):
        neighbours = x[:, max(channel - 2, 0) : channel + 3]
        maps.append(x[:, channel] / (1 + 1e-4 / 5 * neighbours.square().sum(1)) ** 0.75)
    return torch.stack(maps, 1)


class ResponseNorm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return caffes_response_norm(x)


def test_v1_parity_with_torchvisions_parts_put_together_as_in_the_paper() -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.GoogLeNet(init_weights=False, blocks=[Biased, WideInception, StridedHead], dropout=0.4)
    theirs.maxpool1 = nn.Sequential(theirs.maxpool1, ResponseNorm())
    theirs.maxpool2 = nn.Sequential(ResponseNorm(), theirs.maxpool2)
    theirs.maxpool4 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
    ours = network("inception-v1")
    assert sorted(drop_rates(ours)) == sorted(drop_rates(theirs))
    copy_heads_last(theirs, without_drops(ours))
    without_drops(theirs)
    # Wide in range, so that the response normalisation counts, and coarse, so that pictures do not average to one grey.
    images = 128 * F.interpolate(torch.randn(2, 3, 4, 4), 224, mode="bilinear")
    assert_same_outputs(ours, theirs, images, train=False)
    assert_same_outputs(ours, theirs, images, train=True)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_response_norm_has_caffes_constants(memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    x = (300 * torch.randn(2, 8, 3, 4)).contiguous(memory_format=memory_format)
    norms = [m for m in network("inception-v1", {"auxiliary": False}).modules() if isinstance(m, nn.LocalResponseNorm)]
    assert len(norms) == 2
    expected = caffes_response_norm(x)
    assert (expected / x).min() < 0.5  # it does something
    for norm in norms:
        torch.testing.assert_close(norm(x), expected)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("name", "serving", "training"),
    [
        ("inception-v1", 6_998_552, 13_378_280),
        ("googlenet", 6_624_904, 13_004_888),
        ("inception-v3", 23_834_568, 27_161_264),
    ],
)
def test_parameter_counts(name: str, serving: int, training: int) -> None:
    with torch.device("meta"):
        assert parameters(network(name, {"auxiliary": False})) == serving
        assert parameters(network(name)) == training


@pytest.mark.parametrize(("ours", "theirs"), [("googlenet", "googlenet"), ("inception-v3", "inception_v3")])
def test_parameter_counts_are_torchvisions(ours: str, theirs: str) -> None:
    with torch.device("meta"):
        assert parameters(network(ours)) == parameters(torchvisions(theirs))


def test_v1_parameters_are_table_1s() -> None:
    # The column "params", in units of 1024, without biases. Some entries are up to 8 % off what their row gives.
    column = {"3": (159, 380), "4": (364, 437, 463, 580, 840), "5": (1072, 1388)}
    with torch.device("meta"):
        module = network("inception-v1", {"auxiliary": False})
    counts = [
        sum(p.numel() for p in layer.parameters() if p.ndim == 4) / 1024
        for layer in module.features
        if hasattr(layer, "branches")
    ]
    assert counts == [pytest.approx(count, rel=0.08) for stage in column.values() for count in stage]
    # The first convolution and the linear layer, which the table counts as 2.7 and 1000, and the 1x1 and 3x3.
    total = 2.7 + 112 + sum(map(sum, column.values())) + 1000
    assert parameters(module) / 1024 == pytest.approx(total, rel=0.01)


def test_v3_has_less_than_25_million_parameters() -> None:
    with torch.device("meta"):
        assert parameters(network("inception-v3", {"auxiliary": False})) < 25e6


def layers_with_parameters(logits: Tensor) -> int:
    """Convolutions and matrix products along the longest path of the graph that autograd recorded."""
    longest: dict[Any, int] = {None: 0}
    pending = [logits.grad_fn]
    while pending:
        node = pending[-1]
        before = [function for function, _ in node.next_functions]  # type: ignore[union-attr]
        missing = [function for function in before if function not in longest]
        if missing:
            pending.extend(missing)
            continue
        counts = node.name().startswith(("ConvolutionBackward", "AddmmBackward"))  # type: ignore[union-attr]
        longest[node] = counts + max((longest[function] for function in before), default=0)
        pending.pop()
    return longest[logits.grad_fn]


@pytest.mark.parametrize("name", ["inception-v1", "googlenet"])
def test_v1_has_22_layers_with_parameters(name: str) -> None:
    assert layers_with_parameters(network(name)(torch.zeros(1, 3, 224, 224))) == 22


def test_v3_is_as_deep_as_torchvisions() -> None:
    images = torch.zeros(1, 3, 75, 75)
    theirs = torchvisions("inception_v3").eval()(images)
    ours = network("inception-v3", {"auxiliary": False}).eval()(images)
    assert layers_with_parameters(ours) == layers_with_parameters(theirs) == 48


def test_v1_maps_have_table_1s_sizes() -> None:
    module = network("inception-v1", {"auxiliary": False})
    shapes: list[tuple[int, ...]] = []
    for layer in module.features:
        layer.register_forward_hook(lambda _module, _inputs, output: shapes.append(tuple(output.shape[1:])))
    with torch.no_grad():
        module.eval()(torch.zeros(1, 3, 224, 224))
    table = [(64, 112, 112), (64, 56, 56), (192, 56, 56), (192, 28, 28)]
    table += [(256, 28, 28), (480, 28, 28), (480, 14, 14)]
    table += [(512, 14, 14), (512, 14, 14), (512, 14, 14), (528, 14, 14), (832, 14, 14), (832, 7, 7)]
    table += [(832, 7, 7), (1024, 7, 7), (1024, 1, 1)]
    assert [shape for shape in dict.fromkeys(shapes) if len(shape) == 3] == list(dict.fromkeys(table))


@pytest.mark.parametrize(
    ("name", "overrides", "side"),
    [
        ("inception-v1", {}, 79),
        ("googlenet", {}, 15),
        pytest.param("inception-v3", {}, 299, marks=pytest.mark.slow),
        ("inception-v1", SMALL, 32),
        ("inception-v1", SMALL | {"auxiliary_pool": "adaptive", "wide_kernel": 3, "pools": [2, 3]}, 32),
        ("inception-v1", SMALL | {"image_size": 28, "in_channels": 1}, 28),
        ("inception-v1", SMALL | {"batch_norm": False, "local_response_norm": True}, 32),
    ],
)
def test_auxiliary_heads_are_for_training_only(name: str, overrides: dict[str, Any], side: int) -> None:
    torch.manual_seed(0)
    module = without_drops(network(name, overrides))
    config = configure(name, overrides)
    heads = [part for key, part in module.named_modules() if key.startswith("auxiliary.") and key.count(".") == 1]
    ran: list[nn.Module] = []
    for head in heads:
        head.register_forward_hook(lambda head, _inputs, _output: ran.append(head))
    images = torch.randn(4, config.in_channels, side, side)

    answers = module(images, auxiliary=True)
    assert ran == heads
    assert len(heads) == (1 if name == "inception-v3" else 2)
    assert [answer.shape for answer in answers] == [(4, config.num_classes)] * (1 + len(heads))
    torch.stack([F.cross_entropy(answer, torch.arange(4)) for answer in answers]).sum().backward()  # type: ignore[no-untyped-call]
    for key, parameter in module.named_parameters():
        assert parameter.grad is not None, f"{key} is not used"
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.any(), f"{key} has no gradient"

    ran.clear()
    serving = network(name, overrides | {"auxiliary": False})
    state = {key: value for key, value in module.state_dict().items() if not key.startswith("auxiliary.")}
    assert state.keys() == serving.state_dict().keys()
    assert len(state) < len(module.state_dict())
    serving.load_state_dict(state)
    with torch.inference_mode():
        logits = module.eval()(images)
        assert not ran
        assert torch.equal(logits, module(images, auxiliary=True)[0])
        assert torch.equal(logits, serving.eval()(images))
        assert torch.equal(logits, serving.head(serving.features(images)))
        assert logits.shape == (4, config.num_classes)
    with pytest.raises(ValueError, match="no auxiliary heads"):
        serving(images, auxiliary=True)


@pytest.mark.parametrize("train", [False, True])
def test_logits_alone_never_run_the_heads(train: bool) -> None:
    module = network("inception-v1", SMALL).train(train)
    module.auxiliary = nn.ModuleList()  # whoever looks for a head will not find one
    assert module(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("side", [28, 32])
@pytest.mark.parametrize("auxiliary", [False, True])
def test_small_pictures_keep_their_resolution(side: int, auxiliary: bool) -> None:
    module = network("inception-v1", SMALL | {"image_size": side, "auxiliary": auxiliary}).eval()
    with torch.inference_mode():
        images = torch.zeros(1, 3, side, side)
        maps = [layer.shape[2:] for layer in walk(module.features[:-2], images)]
        assert module(images).shape == (1, 10)
    assert list(dict.fromkeys(maps)) == [(side, side), (side // 2, side // 2), (side // 4, side // 4)]


def walk(layers: nn.Sequential, x: Tensor) -> list[Tensor]:
    outputs = []
    for layer in layers:
        x = layer(x)
        outputs.append(x)
    return outputs


@pytest.mark.parametrize(
    ("name", "overrides", "auxiliary", "smallest"),
    [
        ("inception-v1", {}, False, 31),
        ("inception-v1", {}, True, 79),
        ("googlenet", {}, False, 15),  # as torchvision says of its own
        ("googlenet", {}, True, 15),
        ("inception-v3", {}, False, 75),  # as torchvision says of its own
        ("inception-v3", {}, True, 299),
        ("inception-v1", SMALL, False, 4),
        ("inception-v1", SMALL, True, 10),
        ("inception-v1", SMALL | {"stem": "small-pool"}, False, 7),
        ("inception-v1", SMALL | {"pools": [2, 2], "auxiliary_after": [[0, 0]]}, True, 5),
    ],
)
def test_the_smallest_picture_passes_and_none_below(
    name: str, overrides: dict[str, Any], auxiliary: bool, smallest: int
) -> None:
    overrides = overrides | {"auxiliary": auxiliary}
    assert configure(name, overrides).smallest == smallest
    with torch.device("meta"):
        module = network(name, overrides).eval()
        good = torch.zeros(2, 3, smallest, smallest)
    answers = module(good, auxiliary=True) if auxiliary else (module(good),)
    assert {tuple(logits.shape) for logits in answers} == {(2, module.config.num_classes)}
    with pytest.raises(
        ValueError, match=rf"\[N, 3, >={smallest}, >={smallest}\], got \[2, 3, {smallest - 1}, {smallest}\]"
    ):
        module(good[:, :, 1:])
    # The bound is not merely a rule: one pixel less leaves a layer without input.
    with pytest.raises(RuntimeError, match="size"):
        run_every_layer(module, good[:, :, 1:, 1:])


def run_every_layer(module: InceptionNetwork, x: Tensor) -> None:
    """As forward does with auxiliary=True, without a look at the images."""
    heads = dict(zip(module.taps, module.auxiliary, strict=True))
    for index, layer in enumerate(module.features):
        x = layer(x)
        if index in heads:
            heads[index](x)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"rows": []}, "at least one module in each stage"),
        ({"rows": [TABLE_1[0], [], TABLE_1[2]]}, "at least one module in each stage"),
        ({"rows": [TABLE_1[0], TABLE_1[1], [[64, 0, 64, 8, 16, 16]]]}, "six numbers >= 1"),
        ({"rows": [[[64, 64, 64, 8, 16]]]}, "rows"),
        ({"pools": [3]}, "pools needs a 2 or 3 between each two of 3 stages"),
        ({"pools": [3, 4]}, "pools needs a 2 or 3"),
        ({"stem_channels": [64]}, "'imagenet' needs 3 stem_channels"),
        ({"stem": "small"}, "'small' needs 1 stem_channels"),
        ({"stem": "large"}, "stem"),
        ({"wide_kernel": 7}, "wide_kernel"),
        ({"image_size": 78}, "at least 79 pixels, got 78"),
        ({"image_size": 30, "auxiliary": False}, "at least 31 pixels, got 30"),
        ({"auxiliary_after": []}, "pairs in ascending order"),
        ({"auxiliary_after": [[1, 3], [1, 0]]}, "pairs in ascending order"),
        ({"auxiliary_after": [[1, 0], [1, 0]]}, "pairs in ascending order"),
        ({"auxiliary_after": [[1, 5]]}, "pairs in ascending order"),
        ({"auxiliary_after": [[3, 0]]}, "pairs in ascending order"),
        ({"auxiliary": 1}, "auxiliary"),
        ({"heads": 2}, "no setting heads"),
    ],
)
def test_wrong_configs_are_refused(overrides: dict[str, Any], message: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        build("inception-v1", overrides)


def test_without_heads_their_settings_do_not_matter() -> None:
    with torch.device("meta"):
        module = network("inception-v1", {"image_size": 32, "auxiliary": False, "auxiliary_after": []})
    assert not [key for key in module.state_dict() if key.startswith("auxiliary")]
