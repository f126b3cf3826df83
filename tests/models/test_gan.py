"""The adversarial networks against plain computations of what their papers say."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import checkpoint
from models.gan import Discriminator, DiscriminatorConfig, Generator, GeneratorConfig, LabelledNorm
from models.generative import DecoderPart, Decodes
from models.preprocess import Preprocess
from models.registry import build, configure

# (channels, side, classes, generator's widths)
SIZES = [
    pytest.param(1, 28, 10, (16, 8), id="28 grey, labels"),
    pytest.param(1, 28, 0, (16, 8), id="28 grey"),
    pytest.param(3, 32, 10, (24, 16, 8), id="32 colour, labels"),
    pytest.param(3, 48, 0, (24, 16, 8), id="48 colour"),
    pytest.param(3, 64, 0, (32, 24, 16, 8), id="64 colour"),
]


def one_hot(count: int, classes: int) -> Tensor:
    return F.one_hot(torch.arange(count) % classes, classes).float() if classes else torch.zeros(count, 0)


@pytest.mark.parametrize(("channels", "side", "classes", "widths"), SIZES)
def test_every_gradient_of_the_game_reaches_every_weight(
    channels: int, side: int, classes: int, widths: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(channels, side, 5, classes, widths))
    discriminator = Discriminator(DiscriminatorConfig(channels, side, classes, widths[::-1]))
    labels = one_hot(20, classes)
    pictures = generator(torch.randn(20, 5), labels)
    assert pictures.shape == (20, channels, side, side)
    assert pictures.abs().max() <= 1
    scores = discriminator(pictures, labels)
    assert scores.shape == (20,)
    scores.square().sum().backward()
    for module in (generator, discriminator):
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any(), name


@pytest.mark.parametrize("name", ["gan", "wgan"])
@pytest.mark.parametrize(("channels", "side", "classes", "widths"), SIZES)
def test_a_generator_is_saved_loaded_and_served(
    name: str, channels: int, side: int, classes: int, widths: tuple[int, ...], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    config = configure(
        name, {"in_channels": channels, "image_size": side, "latent": 5, "num_classes": classes, "widths": list(widths)}
    )
    module = build(name, asdict(config))
    assert isinstance(module, Decodes)
    saved = checkpoint.save(
        tmp_path,
        module,
        name=name,
        description="untrained",
        task="generate",
        architecture=name,
        config=asdict(config),
        preprocess=Preprocess(
            mode="L" if channels == 1 else "RGB", size=(side, side), mean=(127.5,) * channels, std=(127.5,) * channels
        ),
        classes=tuple(map(str, range(classes))),
        data="none",
        source="this test",
        license="Apache-2.0",
    )
    loaded, card = checkpoint.load(tmp_path)
    assert card == saved
    noise, labels = torch.randn(4, 5), one_hot(4, classes)
    with torch.inference_mode():
        expected = module.eval()(noise, labels)
        assert torch.equal(DecoderPart(loaded)(torch.cat([noise, labels], dim=1)), expected)


def test_labelled_normalisation_against_a_loop() -> None:
    torch.manual_seed(0)
    layer = LabelledNorm(3, 4)
    assert layer.by_label is not None
    nn.init.normal_(layer.by_label.weight)
    x, labels = torch.randn(8, 3, 5, 5), torch.arange(8) % 4
    answer = layer(x, F.one_hot(labels, 4).float())
    for n in range(8):
        for c in range(3):
            normal = (x[n, c] - x[:, c].mean()) / (x[:, c].var(correction=0) + 1e-5).sqrt()
            weight = layer.by_label.weight[:, labels[n]]
            torch.testing.assert_close(answer[n, c], normal * weight[c] + weight[3 + c], rtol=1e-4, atol=1e-5)


def test_labels_change_what_is_drawn_by_gains_that_start_near_one() -> None:
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(num_classes=3, widths=(16, 8)))
    noise = torch.randn(1, 64).expand(3, -1)
    pictures = generator.eval()(noise, torch.eye(3))
    assert (pictures[0] - pictures[1]).abs().max() > 1e-4
    for norm in generator.norms:
        assert isinstance(norm, LabelledNorm)
        assert norm.by_label is not None
        gains, biases = norm.by_label.weight.chunk(2, dim=0)
        assert gains.min() > 0.9
        assert gains.max() < 1.1
        assert not biases.any()


def test_the_projection_is_an_inner_product_with_the_class() -> None:
    torch.manual_seed(0)
    discriminator = Discriminator(DiscriminatorConfig(num_classes=4, widths=(8, 16), norm="none"))
    assert discriminator.by_label is not None
    pictures = torch.randn(8, 1, 28, 28)
    features = discriminator.features(pictures)
    scores = discriminator(pictures, one_hot(8, 4))
    for n in range(8):
        plain = discriminator.head.weight[0] @ features[n] + discriminator.head.bias[0]
        expected = plain + discriminator.by_label.weight[:, n % 4] @ features[n]
        torch.testing.assert_close(scores[n], expected, rtol=1e-4, atol=1e-6)


def test_spectral_normalisation_holds_every_layer_at_one() -> None:
    torch.manual_seed(0)
    discriminator = Discriminator(DiscriminatorConfig(num_classes=4, widths=(8, 16), norm="none", spectral=True))
    with torch.no_grad():
        for _ in range(60):  # power iterations
            discriminator(torch.randn(2, 1, 28, 28), one_hot(2, 4))
    layers = [part for part in discriminator.modules() if isinstance(part, nn.Conv2d | nn.Linear)]
    assert len(layers) == 4
    for layer in layers:
        assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(("norm", "alone"), [("none", True), ("layer", True), ("batch", False)])
def test_only_under_batch_normalisation_does_a_score_depend_on_other_pictures(norm: str, alone: bool) -> None:
    torch.manual_seed(0)
    discriminator = Discriminator(DiscriminatorConfig(widths=(8, 16), norm=norm))  # type: ignore[arg-type]
    pictures = torch.randn(6, 1, 28, 28)
    together, single = discriminator(pictures, one_hot(6, 0)), discriminator(pictures[:2], one_hot(2, 0))
    assert torch.allclose(together[:2], single, rtol=1e-3, atol=1e-6) == alone


@pytest.mark.parametrize("widths", [(8, 8, 8), (), (8,) * 6])
def test_widths_that_do_not_lead_to_the_size_are_refused(widths: tuple[int, ...]) -> None:
    for module, config in ((Generator, GeneratorConfig(widths=widths)), (Discriminator, None)):
        with pytest.raises(ValueError, match="28 pixels cannot be halved"):
            module(config or DiscriminatorConfig(widths=widths))  # type: ignore[arg-type]


def test_wrong_shapes_are_refused() -> None:
    generator = Generator(GeneratorConfig(num_classes=3, widths=(8, 8)))
    discriminator = Discriminator(DiscriminatorConfig(num_classes=3, widths=(8, 8)))
    with pytest.raises(ValueError, match=r"latents of shape \[N, 64\], got \[2, 63\]"):
        generator(torch.zeros(2, 63), one_hot(2, 3))
    with pytest.raises(ValueError, match=r"labels of shape \[2, 3\], got \[2, 0\]"):
        generator(torch.zeros(2, 64), one_hot(2, 0))
    with pytest.raises(ValueError, match=r"images of shape \[N, 1, 28, 28\], got \[2, 1, 32, 32\]"):
        discriminator(torch.zeros(2, 1, 32, 32), one_hot(2, 3))
    with pytest.raises(ValueError, match=r"labels of shape \[2, 3\], got \[1, 3\]"):
        discriminator(torch.zeros(2, 1, 28, 28), one_hot(1, 3))
