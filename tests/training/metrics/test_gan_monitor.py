"""The collapse monitor on varied and on collapsed samples, and its figures against plain loops."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn

from training.core.errors import CollapsedError, TrainingError
from training.metrics.feature_extractor import Extractor
from training.metrics.gan_monitor import CollapseMonitor, Pixels, balance, gradient_norm
from training.recipe.gan_config import WatchSection

WEIGHTS = Path(__file__).parents[3] / "weights/lenet5-mnist"
SAMPLES, MODES = 500, 20


@pytest.fixture(scope="module")
def digits() -> tuple[Pixels, Tensor]:
    """scikit-learn's 1,797 handwritten digits of 8x8, enlarged to 28x28, shuffled."""
    bunch = load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.target))
    small = [Image.fromarray((image * 15.9).astype(np.uint8)) for image in bunch.images[order]]
    pixels = np.stack([np.asarray(image.resize((28, 28), Image.Resampling.BICUBIC)) for image in small])
    return pixels[..., None], torch.from_numpy(bunch.target[order])


@pytest.fixture(scope="module")
def watch(digits: tuple[Pixels, Tensor]) -> CollapseMonitor:
    section = WatchSection(extractor=WEIGHTS, samples=SAMPLES, modes=MODES)
    return CollapseMonitor(section, Extractor(WEIGHTS), digits[0][:900], seed=0)


def jittered(images: Pixels, count: int) -> Pixels:
    """Return `count` copies of a few images with slight noise."""
    copies = np.resize(images, (count, *images.shape[1:])).astype(int)
    noise = np.random.default_rng(1).integers(-6, 7, copies.shape)
    return (copies + noise).clip(0, 255).astype(np.uint8)


def test_other_real_images_pass(watch: CollapseMonitor, digits: tuple[Pixels, Tensor]) -> None:
    pixels, labels = digits
    figures = watch.figures(pixels[900:1400], labels[900:1400])
    assert figures["classes"] == 10
    assert figures["modes"] >= 0.9 * MODES
    assert figures["diversity"] == pytest.approx(1, abs=0.1)
    assert min(figures["precision"], figures["recall"]) > 0.6
    assert figures["asked"] > 0.7  # enlarged from 8x8, they are hard to read
    watch.check(figures, epoch=2)


def test_single_image_per_class_is_a_collapse(watch: CollapseMonitor, digits: tuple[Pixels, Tensor]) -> None:
    pixels = digits[0]
    good = watch.figures(pixels[900:1400], None)
    read = watch._extractor(pixels[:900]).labels
    one_each = np.stack([pixels[int((read == digit).nonzero()[0])] for digit in range(10)])
    figures = watch.figures(jittered(one_each, SAMPLES), None)
    assert figures["classes"] == 10  # coverage alone would not have seen it
    assert figures["recall"] < 0.1
    assert figures["frechet"] > 3 * good["frechet"]
    with pytest.raises(CollapsedError, match=r"images of a class differ 0\.\d\d times as much as real ones"):
        watch.check(figures, epoch=2)


def test_three_classes_of_ten_are_a_collapse(watch: CollapseMonitor, digits: tuple[Pixels, Tensor]) -> None:
    pixels = digits[0]
    read = watch._extractor(pixels).labels
    figures = watch.figures(pixels[(read < 3).numpy()], None)
    assert figures["classes"] == 3
    with pytest.raises(CollapsedError, match="epoch 2: 3 of 10 classes are drawn; ") as caught:
        watch.check(figures, epoch=2)
    assert f"{figures['modes']:.0f} of {MODES} kinds of images are drawn" in str(caught.value)
    assert caught.value.figures == figures
    assert isinstance(caught.value, TrainingError)


def test_grace_epochs_are_not_checked(watch: CollapseMonitor) -> None:
    collapsed = {"modes": 1.0, "diversity": 0.0, "classes": 1.0}
    watch.check(collapsed, epoch=1)
    with pytest.raises(CollapsedError):
        watch.check(collapsed, epoch=2)


def test_the_figures_against_plain_loops(watch: CollapseMonitor, digits: tuple[Pixels, Tensor]) -> None:
    pixels = digits[0]
    figures = watch.figures(pixels[900:1020], None)
    extractor = Extractor(WEIGHTS)
    real, fake = extractor(pixels[:900]), extractor(pixels[900:1020])

    def groups(features: Tensor) -> list[int]:
        return [int((row.double() - watch._centres).square().sum(dim=1).argmin()) for row in features]

    seen, existing = groups(fake.features), groups(real.features)
    assert figures["modes"] == sum(
        seen.count(mode) / 120 >= 0.25 * existing.count(mode) / 900 for mode in range(MODES) if mode in existing
    )

    ratios = []
    for digit in range(10):
        means = []
        for sight in (fake, real):
            members = sight.features[:SAMPLES][sight.labels[:SAMPLES] == digit].double().numpy()
            apart = [np.linalg.norm(a - b) for a, b in itertools.combinations(members, 2)]
            means.append(sum(apart) / len(apart) if apart else 0.0)
        ratios.append(means[0] / means[1])
    assert figures["diversity"] == pytest.approx(sum(ratios) / 10)
    assert "asked" not in figures


def test_groups_depend_only_on_the_seed(watch: CollapseMonitor, digits: tuple[Pixels, Tensor]) -> None:
    section = WatchSection(extractor=WEIGHTS, samples=SAMPLES, modes=MODES)
    again, other = (CollapseMonitor(section, Extractor(WEIGHTS), digits[0][:900], seed) for seed in (0, 1))
    assert torch.equal(again._centres, watch._centres)
    assert not torch.equal(other._centres, watch._centres)


def test_without_classes_only_modes_and_diversity_count(digits: tuple[Pixels, Tensor]) -> None:
    section = WatchSection(extractor=WEIGHTS, samples=SAMPLES, modes=MODES)
    watch = CollapseMonitor(section, _Blind(), digits[0][:900], seed=0)  # type: ignore[arg-type]
    figures = watch.figures(digits[0][900:1400], None)
    assert "classes" not in figures
    features = Extractor(WEIGHTS)(digits[0][:1400]).features
    spreads = [torch.pdist(part.double()).mean() for part in (features[900:], features[:SAMPLES])]
    assert figures["diversity"] == pytest.approx(float(spreads[0] / spreads[1]))
    watch.check(figures, epoch=2)
    with pytest.raises(CollapsedError, match=r"0\.\d\d times"):
        watch.check(watch.figures(jittered(digits[0][:2], SAMPLES), None), epoch=2)


class _Blind:
    """LeNet-5's features without its classes, as an embedder has none."""

    class card:  # noqa: N801  as an extractor's attribute
        classes = ()

    def __call__(self, pixels: Pixels) -> object:
        return Extractor(WEIGHTS)(pixels)._replace(probabilities=torch.zeros(len(pixels), 0))


def test_balance_by_hand() -> None:
    accuracy, lead = balance(torch.tensor([2.0, -1.0, 3.0, 0.5]), torch.tensor([-2.0, 1.0]))
    assert accuracy.item() == pytest.approx((3 / 4 + 1 / 2) / 2)

    def chance(score: float) -> float:
        return 1 / (1 + math.exp(-score))

    expected = sum(map(chance, (2, -1, 3, 0.5))) / 4 - sum(map(chance, (-2, 1))) / 2
    assert lead.item() == pytest.approx(expected)
    assert balance(torch.tensor([-1.0]), torch.tensor([1.0])).lead == 0


def test_gradient_norm_covers_all_weights() -> None:
    layer = nn.Linear(3, 2)
    assert gradient_norm(layer) == 0
    layer(torch.ones(1, 3)).sum().backward()
    squares = [g * g for p in layer.parameters() if p.grad is not None for g in p.grad.flatten().tolist()]
    assert gradient_norm(layer).item() == pytest.approx(math.sqrt(sum(squares)))
