"""Inception against torchvision on copied weights, and against the papers' figures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.googlenet import Inception, InceptionAux

from models.inception import InceptionNetwork
from models.registry import build, configure
from tests.models.helpers import (
    SMALL_INCEPTION,
    TOLERANCE,
    assert_all_gradients,
    assert_parity,
    drop_rates,
    enliven,
    without_drops,
)


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
    """`copy_in_order` for a target whose auxiliary heads follow the head, and a source whose head is last."""
    order = {"AuxLogits": 2, "aux1": 2, "aux2": 2, "fc": 1}
    theirs = sorted(source.state_dict().items(), key=lambda item: order.get(item[0].split(".")[0], 0))
    ours = target.state_dict()
    target.load_state_dict({name: value for name, (_, value) in zip(ours, theirs, strict=True)})


@torch.no_grad()
def assert_same_outputs(ours: nn.Module, theirs: nn.Module, images: Tensor, *, train: bool) -> None:
    """The logits of the head and of every auxiliary head are the same, each on its own scale."""
    theirs.train(train)
    theirs.training = True  # the outermost module's flag only decides whether the auxiliary heads run
    logits, *reversed_heads = theirs(images)
    actual = ours.train(train)(images, auxiliary=True)
    expected = [logits, *reversed_heads[::-1]]
    assert len(actual) == len(expected) >= 2
    for a, b in zip(actual, expected, strict=True):
        scale = b.abs().max()
        assert b.std(dim=0).mean() > 0.01 * scale, "all images have the same logits, so the comparison proves nothing"
        assert (a - b).abs().max() <= TOLERANCE * scale
    if not train:
        assert torch.equal(ours(images), actual[0])


@pytest.mark.parametrize(
    ("name", "theirs", "side"),
    [
        ("googlenet", "googlenet", 96),
        pytest.param("inception-v3", "inception_v3", 299, marks=pytest.mark.slow),
    ],
)
def test_logits_are_torchvisions(name: str, theirs: str, side: int) -> None:
    torch.manual_seed(0)
    reference, ours = torchvisions(theirs), network(name)
    assert sorted(drop_rates(ours)) == sorted(drop_rates(reference))
    batch = torch.randn(4, 3, side, side)
    enliven(without_drops(reference), torch.randn(8, 3, side, side))
    copy_heads_last(reference, without_drops(ours))
    for train in (False, True, False):  # train mode updates the running statistics
        assert_same_outputs(ours, reference, batch, train=train)


def test_v3_logits_are_torchvisions_at_the_smallest_size() -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.inception_v3(weights=None, init_weights=False, aux_logits=False)
    assert_parity(network("inception-v3", {"auxiliary": False}), theirs, torch.randn(4, 3, 75, 75))


class Biased(nn.Module):
    """The 2015 paper's convolution: with a bias and without batch norm."""

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


class ResponseNorm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        """x_c / (1 + 1e-4 / 5 * sum of the squares of channels c-2 to c+2) ^ 0.75, channel by channel."""
        maps = []
        for channel in range(x.shape[1]):
            neighbours = x[:, max(channel - 2, 0) : channel + 3]
            maps.append(x[:, channel] / (1 + 1e-4 / 5 * neighbours.square().sum(1)) ** 0.75)
        return torch.stack(maps, 1)


def test_v1_logits_are_those_of_torchvisions_modules_arranged_as_in_the_paper() -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.GoogLeNet(init_weights=False, blocks=[Biased, WideInception, StridedHead], dropout=0.4)
    theirs.maxpool1 = nn.Sequential(theirs.maxpool1, ResponseNorm())
    theirs.maxpool2 = nn.Sequential(ResponseNorm(), theirs.maxpool2)
    theirs.maxpool4 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
    ours = network("inception-v1")
    assert sorted(drop_rates(ours)) == sorted(drop_rates(theirs))
    copy_heads_last(theirs, without_drops(ours))
    without_drops(theirs)
    # A wide range, so that the response normalisation matters, and coarse blobs, so that images do not look alike.
    images = 128 * F.interpolate(torch.randn(2, 3, 4, 4), 224, mode="bilinear")
    assert_same_outputs(ours, theirs, images, train=False)
    assert_same_outputs(ours, theirs, images, train=True)


@pytest.mark.parametrize(
    ("name", "overrides", "side"),
    [
        ("inception-v1", {}, 79),
        ("googlenet", {}, 15),
        pytest.param("inception-v3", {}, 299, marks=pytest.mark.slow),
        ("inception-v1", SMALL_INCEPTION, 32),
        ("inception-v1", SMALL_INCEPTION | {"auxiliary_pool": "adaptive", "wide_kernel": 3, "pools": [2, 3]}, 32),
        ("inception-v1", SMALL_INCEPTION | {"image_size": 28, "in_channels": 1}, 28),
        ("inception-v1", SMALL_INCEPTION | {"batch_norm": False, "local_response_norm": True}, 32),
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

    outputs = module(images, auxiliary=True)
    assert ran == heads
    assert len(heads) == (1 if name == "inception-v3" else 2)
    torch.stack([F.cross_entropy(output, torch.arange(4)) for output in outputs]).sum().backward()  # type: ignore[no-untyped-call]
    assert_all_gradients(module)

    ran.clear()
    assert module(images).shape == (4, config.num_classes)
    assert not ran
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
    with pytest.raises(ValueError, match="no auxiliary heads"):
        serving(images, auxiliary=True)
