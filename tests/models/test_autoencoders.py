"""Autoencoder, VAE and denoiser: what is theirs alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributions import Normal

from models.autoencoder import Autoencoder, AutoencoderConfig
from models.denoiser import Denoiser, DenoiserConfig
from models.vae import VAE, VAEConfig, reparameterise

SMALL: dict[str, Any] = {"image_size": 8, "latent": 3, "widths": (4, 6), "hidden": 5, "blocks": 1}


def test_a_latent_is_all_that_passes() -> None:
    torch.manual_seed(0)
    module = Autoencoder(AutoencoderConfig(**SMALL)).eval()
    pictures, none = torch.rand(6, 1, 8, 8), torch.zeros(6, 0)
    answer = module(pictures, none)
    # The Jacobian of the answer in the picture has the latent's rank.
    jacobian = torch.func.jacrev(lambda x: module(x, none[:1]).flatten())(pictures[:1])
    assert torch.linalg.matrix_rank(jacobian.reshape(64, 64), rtol=1e-4) == 3
    assert answer.min() > 0
    assert answer.max() < 1


@pytest.mark.parametrize(("size", "widths"), [(28, (4, 8, 8)), (7, (4,)), (8, ()), (2, (4, 4, 4))])
def test_sizes_that_cannot_be_halved(size: int, widths: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="cannot be halved"):
        Autoencoder(AutoencoderConfig(image_size=size, widths=widths))


@pytest.mark.parametrize(("channels", "size", "widths"), [(1, 28, (4, 8)), (3, 32, (4, 4, 8)), (3, 64, (4, 4, 4, 8))])
def test_every_size_that_is_promised(channels: int, size: int, widths: tuple[int, ...]) -> None:
    config = VAEConfig(in_channels=channels, image_size=size, widths=widths, latent=5)
    reading = VAE(config)(torch.rand(2, channels, size, size), torch.zeros(2, 0), torch.randn(2, 5))
    assert reading.logits.shape == (2, channels, size, size)
    assert reading.mean.shape == reading.log_variance.shape == (2, 5)


def test_reparameterised_samples_have_the_moments_and_the_gradients_of_the_distribution() -> None:
    torch.manual_seed(0)
    mean = torch.tensor([[0.5, -2.0]], dtype=torch.float64, requires_grad=True)
    log_variance = torch.tensor([[0.0, -1.4]], dtype=torch.float64, requires_grad=True)
    noise = torch.randn(200_000, 2, dtype=torch.float64)
    drawn = reparameterise(mean, log_variance, noise)
    assert torch.allclose(drawn.mean(dim=0), mean[0], atol=0.01)
    assert torch.allclose(drawn.var(dim=0).log(), log_variance[0], atol=0.02)
    # E[z^2] = mean^2 + variance, whose gradients are known.
    drawn.square().mean(dim=0).sum().backward()  # type: ignore[no-untyped-call]
    assert mean.grad is not None
    assert log_variance.grad is not None
    assert torch.allclose(mean.grad, 2 * mean.detach(), atol=0.02)
    assert torch.allclose(log_variance.grad, log_variance.detach().exp(), atol=0.02)
    # The very numbers that torch.distributions draws from the same noise.
    other = Normal(mean.detach(), (log_variance.detach() / 2).exp())
    torch.manual_seed(3)
    expected = other.rsample()
    torch.manual_seed(3)
    noise = torch.empty(1, 2, dtype=torch.float64).normal_()
    assert torch.allclose(reparameterise(mean.detach(), log_variance.detach(), noise), expected)


def test_the_reading_is_the_decoded_sample_of_the_posterior() -> None:
    torch.manual_seed(0)
    module = VAE(VAEConfig(**SMALL, likelihood="gaussian", num_classes=2)).eval()
    pictures, labels, noise = torch.rand(4, 1, 8, 8), torch.eye(2)[[0, 1, 0, 1]], torch.randn(4, 3)
    reading = module(pictures, labels, noise)
    mean, log_variance = module.posterior(pictures, labels)
    assert torch.equal(reading.mean, mean)
    assert torch.equal(module.embed(pictures, labels), mean)
    sample = mean + torch.sqrt(log_variance.exp()) * noise
    torch.testing.assert_close(module.decode(sample, labels), reading.logits.sigmoid())
    assert reading.log_scale is module.log_scale is not None
    assert float(module.log_scale.detach().exp()) == pytest.approx(0.2)


def test_only_a_gaussian_decoder_has_a_scale() -> None:
    assert VAE(VAEConfig(**SMALL)).log_scale is None
    keys = {kind: set(VAE(VAEConfig(**SMALL, likelihood=kind)).state_dict()) for kind in ("bernoulli", "gaussian")}
    assert keys["gaussian"] - keys["bernoulli"] == {"log_scale"}


def test_the_posterior_is_float32_under_autocast() -> None:
    module = VAE(VAEConfig(**SMALL))
    with torch.autocast("cpu", torch.bfloat16):
        reading = module(torch.rand(2, 1, 8, 8), torch.zeros(2, 0), torch.randn(2, 3))
    assert reading.mean.dtype == reading.log_variance.dtype == torch.float32


def small_denoiser(**changes: Any) -> Denoiser:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"in_channels": 1, "unshuffle": 2, "widths": (4, 6), "blocks": 1, **changes}
    return Denoiser(DenoiserConfig(**settings))


@pytest.mark.parametrize(("height", "width"), [(4, 4), (8, 20), (28, 28), (60, 4)])
def test_a_denoiser_takes_any_multiple(height: int, width: int) -> None:
    assert small_denoiser()(torch.rand(2, 1, height, width)).shape == (2, 1, height, width)


@pytest.mark.parametrize("shape", [(2, 1, 6, 8), (2, 1, 8, 6), (2, 1, 0, 8), (2, 3, 8, 8), (1, 8, 8)])
def test_and_nothing_else(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected images"):
        small_denoiser()(torch.rand(shape))


def test_its_multiple_is_that_of_all_its_steps() -> None:
    assert DenoiserConfig(unshuffle=2, widths=(64, 96, 128)).multiple == 8
    assert DenoiserConfig(unshuffle=1, widths=(8,)).multiple == 1


def test_without_biases_it_scales_with_its_input() -> None:
    module = small_denoiser().double()
    assert not [name for name, _ in module.named_parameters() if name.endswith("bias")]
    pictures = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    for factor in (0.0, 0.3, 7.0):
        torch.testing.assert_close(module(factor * pictures), factor * module(pictures))


def test_a_new_denoiser_hardly_changes_the_picture() -> None:
    module, pictures = small_denoiser(widths=(32, 48)), torch.rand(4, 1, 32, 32)
    error = (module(pictures) - pictures).square().mean().sqrt()
    assert 0 < error < pictures.std()


def test_its_skips_carry_what_halving_loses() -> None:
    # With the way down cut at the bottom, fine detail still gets to the answer: a skip goes round it.
    module = small_denoiser()
    with torch.no_grad():
        module.bottom.register_forward_hook(lambda _module, _inputs, output: torch.zeros_like(output))
        assert module.noise(torch.rand(1, 1, 8, 8)).abs().max() > 0


def test_the_shipped_form_is_within_its_budget() -> None:
    config = DenoiserConfig()
    parameters = sum(p.numel() for p in Denoiser(config).parameters())
    assert parameters * 4 < 12e6
    counted = 0

    def count(module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
        nonlocal counted
        assert isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
        size = module.weight[0, 0].numel() * module.in_channels * module.out_channels
        places = output.shape[-1] * output.shape[-2]
        counted += size * places // (math.prod(module.stride) if isinstance(module, nn.ConvTranspose2d) else 1)

    module = Denoiser(config)
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
            part.register_forward_hook(count)
    module(torch.rand(1, 3, 64, 64))
    assert counted / 64**2 < 150_000  # multiplications for a pixel
