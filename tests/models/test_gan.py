"""The adversarial networks against direct computations of their papers' formulas."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.gan import Discriminator, DiscriminatorConfig, Generator, GeneratorConfig, LabelledNorm
from tests.models.helpers import assert_all_gradients


def one_hot(count: int, classes: int) -> Tensor:
    return F.one_hot(torch.arange(count) % classes, classes).float() if classes else torch.zeros(count, 0)


@pytest.mark.parametrize(("channels", "side", "widths"), [(1, 28, (8, 16)), (3, 48, (8, 16, 24))])
@pytest.mark.parametrize("classes", [0, 10])
def test_every_weight_of_a_discriminator_gets_a_gradient(
    channels: int, side: int, widths: tuple[int, ...], classes: int
) -> None:
    torch.manual_seed(0)
    discriminator = Discriminator(DiscriminatorConfig(channels, side, classes, widths))
    scores = discriminator(torch.randn(20, channels, side, side), one_hot(20, classes))
    assert scores.shape == (20,)
    scores.square().sum().backward()
    assert_all_gradients(discriminator)


def test_labelled_normalisation_is_a_loop() -> None:
    torch.manual_seed(0)
    layer = LabelledNorm(3, 4)
    assert layer.by_label is not None
    nn.init.normal_(layer.by_label.weight)
    x, labels = torch.randn(8, 3, 5, 5), torch.arange(8) % 4
    normalised = layer(x, F.one_hot(labels, 4).float())
    for n in range(8):
        for c in range(3):
            normal = (x[n, c] - x[:, c].mean()) / (x[:, c].var(correction=0) + 1e-5).sqrt()
            weight = layer.by_label.weight[:, labels[n]]
            torch.testing.assert_close(normalised[n, c], normal * weight[c] + weight[3 + c], rtol=1e-4, atol=1e-5)


def test_labels_act_by_gains_that_start_near_one() -> None:
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(num_classes=3, widths=(16, 8)))
    noise = torch.randn(1, 64).expand(3, -1)
    images = generator.eval()(noise, torch.eye(3))
    assert (images[0] - images[1]).abs().max() > 1e-4
    for norm in generator.norms:
        assert isinstance(norm, LabelledNorm)
        assert norm.by_label is not None
        gains, biases = norm.by_label.weight.chunk(2, dim=0)
        assert gains.min() > 0.9
        assert gains.max() < 1.1
        assert not biases.any()


def test_projection_is_an_inner_product_with_the_class() -> None:
    torch.manual_seed(0)
    discriminator = Discriminator(DiscriminatorConfig(num_classes=4, widths=(8, 16), norm="none"))
    assert discriminator.by_label is not None
    images = torch.randn(8, 1, 28, 28)
    features = discriminator.features(images)
    scores = discriminator(images, one_hot(8, 4))
    for n in range(8):
        plain = discriminator.head.weight[0] @ features[n] + discriminator.head.bias[0]
        expected = plain + discriminator.by_label.weight[:, n % 4] @ features[n]
        torch.testing.assert_close(scores[n], expected, rtol=1e-4, atol=1e-6)


def test_spectral_norm_of_every_layer_is_one() -> None:
    torch.manual_seed(0)
    discriminator = Discriminator(DiscriminatorConfig(num_classes=4, widths=(8, 16), norm="none", spectral=True))
    with torch.no_grad():
        for _ in range(60):  # power iterations
            discriminator(torch.randn(2, 1, 28, 28), one_hot(2, 4))
    layers = [part for part in discriminator.modules() if isinstance(part, nn.Conv2d | nn.Linear)]
    assert len(layers) == 4
    for layer in layers:
        assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(("norm", "independent"), [("none", True), ("layer", True), ("batch", False)])
def test_score_depends_on_the_batch_only_under_batch_norm(norm: str, independent: bool) -> None:
    torch.manual_seed(0)
    discriminator = Discriminator(DiscriminatorConfig(widths=(8, 16), norm=norm))  # type: ignore[arg-type]
    images = torch.randn(6, 1, 28, 28)
    batch, pair = discriminator(images, one_hot(6, 0)), discriminator(images[:2], one_hot(2, 0))
    assert torch.allclose(batch[:2], pair, rtol=1e-3, atol=1e-6) == independent


def test_discriminator_refuses_sizes_and_shapes() -> None:
    with pytest.raises(ValueError, match="28 pixels cannot be halved"):
        Discriminator(DiscriminatorConfig(widths=(8, 8, 8)))
    discriminator = Discriminator(DiscriminatorConfig(num_classes=3, widths=(8, 8)))
    with pytest.raises(ValueError, match=r"images of shape \[N, 1, 28, 28\], got \[2, 1, 32, 32\]"):
        discriminator(torch.zeros(2, 1, 32, 32), one_hot(2, 3))
    with pytest.raises(ValueError, match=r"labels of shape \[2, 3\], got \[1, 3\]"):
        discriminator(torch.zeros(2, 1, 28, 28), one_hot(1, 3))
