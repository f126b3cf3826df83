"""Whitening against numpy's covariance; identity convolutions; pretrained features: copied, frozen or refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage  # type: ignore[import-untyped]
from torch import nn
from typer.testing import CliRunner, Result

from models import checkpoint
from models.card import ModelCard
from models.preprocess import Preprocess
from models.registry import build
from tests.training.conftest import CLASSES, GREY, assert_error, save_network, sets
from training import classify
from training.core.export import begin
from training.core.initialise import initialise_as_identity, set_norms, whiten, whitening
from training.core.run_folder import Run
from training.datasets.images import ImageSet, Indices
from training.recipe.config import Recipe, TrainSection, read_recipe

COLOUR = Preprocess(size=(16, 16), mean=(120, 120, 120), std=(60, 60, 60))


def pictures(count: int = 400) -> tuple[ImageSet, Indices]:
    """Blurred noise, whose neighbours are as alike as those of a photo, in colours that are mostly grey."""
    numbers = np.random.default_rng(0)
    grey = numbers.normal(size=(count, 16, 16, 1)) + 0.3 * numbers.normal(size=(count, 16, 16, 3))
    smooth = ndimage.gaussian_filter(grey, (0, 1, 1, 0))
    images = (120 + 60 * smooth / smooth.std()).clip(0, 255).astype(np.uint8)
    return ImageSet(images, np.zeros(count, dtype=np.int64), ("noise",)), np.arange(count)


def test_whitened_outputs_are_uncorrelated_with_variance_one() -> None:
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
def test_networks_without_a_suitable_convolution_are_refused(network: nn.Module) -> None:
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


SHIPPED = Path(__file__).parents[3] / "weights"
# With batch norm, whose counts are no parameters, in a form of which the recipe says nothing.
TINY = {"depths": [1, 1], "widths": [4, 8], "in_channels": 1, "num_classes": 4, "image_size": 32}


def begun(folder: Path, preprocess: Preprocess = GREY) -> ModelCard:
    """Save a network with random weights and statistics."""
    torch.manual_seed(11)
    module = build("resnet20", TINY)
    for name, buffer in module.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 1.5) if name.endswith("var") else buffer.uniform_(-0.5, 0.5)
    card = {"preprocess": preprocess, "classes": ("a", "b", "c", "d"), "data": "other strokes", "license": "CC0"}
    save_network(folder, module, "resnet20", TINY, task="classify", **card)
    return checkpoint.read_card(folder)


def switches(workshop: Path, *more: str) -> list[str]:
    start = [f"model.start={workshop / 'elder'}", "model.architecture=resnet20", "model.config={}"]
    return [*start, "train.epochs=2", "train.checkpoint_steps=0", "train.ema=0.5", "train.lr=0.05", *more]


def train(workshop: Path, *more: str) -> Result:
    return CliRunner().invoke(classify.cli, [str(workshop / "recipe.toml"), *sets(*switches(workshop, *more))])


def recipe_of(workshop: Path, *more: str) -> Recipe:
    return read_recipe(Recipe, workshop / "recipe.toml", switches(workshop, *more))


def features(module: nn.Module) -> dict[str, torch.Tensor]:
    return module.get_submodule("features").state_dict()


def test_features_are_those_of_start_and_the_head_is_new(workshop: Path) -> None:
    begun(workshop / "elder")
    elder, _ = checkpoint.load(workshop / "elder")
    task, _ = begin(classify.setup, recipe_of(workshop))
    network = build("resnet20", TINY | {"num_classes": 3})
    network.load_state_dict(task.learners["classifier"].network.state_dict())  # the shapes are the card's
    pictures = GREY.normalise(torch.from_numpy(task.images.images[:5].copy()))
    with torch.inference_mode():
        expected = elder.get_submodule("features")(pictures)
        assert expected.any()
        assert torch.equal(network.eval().get_submodule("features")(pictures), expected)
        assert torch.equal(network(pictures), torch.zeros(5, 3))  # no class is likelier before it has learnt


@pytest.mark.parametrize("freeze", [True, False])
def test_frozen_features_stay_bit_for_bit_and_others_move(workshop: Path, freeze: bool) -> None:
    card = begun(workshop / "elder")
    elder, _ = checkpoint.load(workshop / "elder")
    result = train(workshop, f"model.freeze={str(freeze).lower()}")
    assert result.exit_code == 0, result.output
    created, lines = checkpoint.load(workshop / "runs/strokes/export/strokes")
    kept = {name: torch.equal(value, features(elder)[name]) for name, value in features(created).items()}
    assert all(kept.values()) if freeze else not all(kept.values())
    assert any("running_mean" in name for name in kept)
    last = Run(workshop / "runs/strokes").load_last(1)["learners"]["classifier"]["model"]
    assert freeze == all(torch.equal(last[f"features.{name}"], value) for name, value in features(elder).items())
    assert created.state_dict()["head.1.weight"].any()

    assert lines.classes == CLASSES
    assert lines.config == lines.config | card.config | {"num_classes": 3}
    assert lines.data == f"strokes; started from elder {card.version}, trained on: other strokes"
    assert lines.license == "Apache-2.0; of elder, which it started from: CC0"
    assert lines.training is not None
    assert lines.training.recipe["model"]["start"] == str(workshop / "elder")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["model.start=nowhere"], "nowhere/card.json: No such file or directory"),
        (["model.architecture=resnet32"], "elder has the architecture resnet20, the recipe resnet32"),
        (["preprocess.mean=[0.0]"], "elder has the mean (33.3,), the recipe (0.0,)"),
        (["preprocess.std=[1.0]"], "elder has the std (78.6,), the recipe (1.0,)"),
        (
            ["preprocess.mode=RGB", "preprocess.mean=[1.0,1.0,1.0]", "preprocess.std=[1.0,1.0,1.0]"],
            "elder has the mode L, the recipe RGB",
        ),
        (["model.config={widths=[4, 9]}"], "model.config asks for other features than elder has: Error(s) in"),
        (["model.config={depths=[1, 2]}"], "Missing key(s)"),
        (["train.whiten=true"], "exclude each other"),
        ([f"model.start={SHIPPED / 'ae-mnist'}"], "ae-mnist is a network to reconstruct, not to classify"),
        (["model.start=", "model.freeze=true"], "start is not set"),
    ],
)
def test_unsuitable_models_are_refused(workshop: Path, more: list[str], message: str) -> None:
    begun(workshop / "elder")
    assert_error(train(workshop, *more), message)


def test_image_size_may_differ(workshop: Path) -> None:
    begun(workshop / "elder", preprocess=GREY.model_copy(update={"size": (40, 40), "pad": 0}))
    task, _ = begin(classify.setup, recipe_of(workshop))
    assert task.pretrained is not None
    assert task.images.images.shape[1:] == (32, 32, 1)
