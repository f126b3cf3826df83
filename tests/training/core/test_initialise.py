"""The first convolution as a whitening, against numpy's covariance and correlations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage  # type: ignore[import-untyped]
from torch import nn

from models.preprocess import Preprocess
from models.registry import build
from training.core.initialise import initialise_as_identity, set_norms, whiten, whitening
from training.datasets.images import ImageSet, Indices
from training.recipe.config import TrainSection

COLOUR = Preprocess(size=(16, 16), mean=(120, 120, 120), std=(60, 60, 60))


def pictures(count: int = 400) -> tuple[ImageSet, Indices]:
    """Blurred noise, whose neighbours are as alike as those of a photo, in colours that are mostly grey."""
    numbers = np.random.default_rng(0)
    grey = numbers.normal(size=(count, 16, 16, 1)) + 0.3 * numbers.normal(size=(count, 16, 16, 3))
    smooth = ndimage.gaussian_filter(grey, (0, 1, 1, 0))
    images = (120 + 60 * smooth / smooth.std()).clip(0, 255).astype(np.uint8)
    return ImageSet(images, np.zeros(count, dtype=np.int64), ("noise",)), np.arange(count)


def test_what_is_whitened_is_unrelated_and_of_variance_one() -> None:
    numbers = torch.Generator().manual_seed(0)
    patches = torch.randn(20_000, 6, generator=numbers).double() @ torch.randn(6, 6, generator=numbers).double()
    rows = whitening(patches)
    spread = np.cov((patches @ rows.T).numpy(), rowvar=False)
    variances = np.sort(np.linalg.eigvalsh(np.cov(patches.numpy(), rowvar=False)))[::-1]
    floor = 0.01 * variances.mean()
    kept = variances[variances > floor]
    np.testing.assert_allclose(spread, np.diag(kept / (kept + floor)), atol=1e-10)


def test_directions_that_are_noise_are_left_out() -> None:
    numbers = torch.Generator().manual_seed(0)
    patches = torch.randn(1000, 4, generator=numbers).double() * torch.tensor([3.0, 1.0, 1e-3, 1e-3])
    rows = whitening(patches)
    assert len(rows) == 2
    assert rows.abs().argmax(dim=1).tolist() == [0, 1]  # most variance first


def test_the_first_convolution_begins_with_pairs_of_both_signs() -> None:
    images, rows = pictures()
    torch.manual_seed(0)
    network = build("vgg11-bn", {"stages": [[64], [64]], "hidden": [], "pool_size": 1, "num_classes": 3})
    before = {name: value.clone() for name, value in network.state_dict().items()}
    whiten(network, images, rows, COLOUR)
    after = network.state_dict()
    changed = [name for name, value in before.items() if not torch.equal(value, after[name])]
    assert changed == ["features.0.weight"]

    filters = after["features.0.weight"]
    new = (filters != before["features.0.weight"]).flatten(1).any(dim=1)
    count = int(new.sum())
    assert 2 <= count < 54  # blurred: not every direction is more than noise
    assert new.tolist() == [True] * count + [False] * (64 - count)
    torch.testing.assert_close(filters[0:count:2], -filters[1:count:2])
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    with torch.inference_mode():
        maps = first(COLOUR.normalise(torch.from_numpy(images.images)))[:, 0:count:2, 1:-1, 1:-1]
    related = np.corrcoef(maps.movedim(1, 0).flatten(1).numpy())
    np.testing.assert_allclose(related, np.eye(count // 2), atol=0.1)


def test_a_narrow_convolution_takes_the_leading_directions() -> None:
    images, rows = pictures()
    wide, narrow = nn.Conv2d(3, 64, 3), nn.Conv2d(3, 8, 3, bias=False)
    for convolution in (wide, narrow):
        assert whiten(convolution, images, rows, COLOUR) is convolution
    torch.testing.assert_close(narrow.weight, wide.weight[:8])


@pytest.mark.parametrize("network", [nn.Linear(3, 3), nn.Conv2d(1, 8, 3)])
def test_what_has_no_such_convolution_is_refused(network: nn.Module) -> None:
    images, rows = pictures(10)
    with pytest.raises(ValueError, match="no first convolution of 3 channels"):
        whiten(network, images, rows, COLOUR)


def test_later_convolutions_pass_their_input_on() -> None:
    torch.manual_seed(0)
    convolutions = [
        nn.Conv2d(3, 4, 3),
        nn.Conv2d(4, 6, 3, padding=1, bias=False),
        nn.Conv2d(6, 5, 3),
        nn.Conv2d(5, 8, 2),
    ]
    grouped = nn.Conv2d(8, 8, 3, groups=8)
    network = nn.Sequential(*convolutions, grouped)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    initialise_as_identity(network)
    after = network.state_dict()
    assert [name for name, value in before.items() if not torch.equal(value, after[name])] == ["1.weight"]
    maps = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(convolutions[1](maps)[:, :4], maps)
    assert torch.equal(after["1.weight"][4:], before["1.weight"][4:])


@pytest.mark.parametrize("freeze", [False, True])
def test_norms_take_the_recipe_s_settings(freeze: bool) -> None:
    norm, bare = nn.BatchNorm2d(2), nn.BatchNorm2d(2, affine=False)
    set_norms(
        nn.Sequential(norm, bare), TrainSection(epochs=1, batch_size=1, lr=1, norm_momentum=0.4, freeze_gains=freeze)
    )
    maps = 5 + torch.randn(8, 2, 4, 4)
    norm(maps)
    torch.testing.assert_close(norm.running_mean, 0.4 * maps.mean(dim=(0, 2, 3)))
    assert bare.momentum == 0.4
    assert (norm.weight.requires_grad, norm.bias.requires_grad) == (not freeze, True)
