"""Properties of the autoencoder, the VAE and the denoiser."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.distributions import Normal
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from models.autoencoder import Autoencoder, AutoencoderConfig
from models.denoiser import Denoiser, DenoiserConfig
from models.vae import VAE, VAEConfig, reparameterise

SMALL: dict[str, Any] = {"image_size": 8, "latent": 3, "widths": (4, 6), "hidden": 5, "blocks": 1}


def test_reconstruction_depends_on_the_latent_only() -> None:
    torch.manual_seed(0)
    module = Autoencoder(AutoencoderConfig(**SMALL)).eval()
    images, labels = torch.rand(6, 1, 8, 8), torch.zeros(6, 0)
    reconstruction = module(images, labels)
    # The Jacobian of the reconstruction with respect to the image has the rank of the latent.
    jacobian = torch.func.jacrev(lambda x: module(x, labels[:1]).flatten())(images[:1])
    assert torch.linalg.matrix_rank(jacobian.reshape(64, 64), rtol=1e-4) == 3
    assert reconstruction.min() > 0
    assert reconstruction.max() < 1


def test_reparameterised_samples_and_gradients_are_torchs() -> None:
    mean = torch.tensor([[0.5, -2.0]], dtype=torch.float64, requires_grad=True)
    log_variance = torch.tensor([[0.0, -1.4]], dtype=torch.float64, requires_grad=True)
    torch.manual_seed(3)
    expected = Normal(mean, (log_variance / 2).exp()).rsample()
    torch.manual_seed(3)
    actual = reparameterise(mean, log_variance, torch.empty(1, 2, dtype=torch.float64).normal_())
    torch.testing.assert_close(actual, expected)
    gradients = [torch.autograd.grad(sample.sum(), (mean, log_variance)) for sample in (actual, expected)]
    torch.testing.assert_close(*gradients)


def test_output_is_the_decoded_sample_of_the_posterior() -> None:
    torch.manual_seed(0)
    module = VAE(VAEConfig(**SMALL, likelihood="gaussian", num_classes=2)).eval()
    images, labels, noise = torch.rand(4, 1, 8, 8), torch.eye(2)[[0, 1, 0, 1]], torch.randn(4, 3)
    output = module(images, labels, noise)
    mean, log_variance = module.posterior(images, labels)
    assert torch.equal(output.mean, mean)
    assert torch.equal(module.embed(images, labels), mean)
    sample = mean + torch.sqrt(log_variance.exp()) * noise
    torch.testing.assert_close(module.decode(sample, labels), output.logits.sigmoid())
    assert output.log_scale is module.log_scale is not None
    assert float(module.log_scale.detach().exp()) == pytest.approx(0.2)
    assert module.state_dict().keys() - VAE(VAEConfig(**SMALL, num_classes=2)).state_dict().keys() == {"log_scale"}


def test_posterior_is_float32_under_autocast() -> None:
    module = VAE(VAEConfig(**SMALL))
    with torch.autocast("cpu", torch.bfloat16):
        output = module(torch.rand(2, 1, 8, 8), torch.zeros(2, 0), torch.randn(2, 3))
    assert output.mean.dtype == output.log_variance.dtype == torch.float32


def small_denoiser(**changes: Any) -> Denoiser:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"in_channels": 1, "unshuffle": 2, "widths": (4, 6), "blocks": 1, **changes}
    return Denoiser(DenoiserConfig(**settings))


@pytest.mark.parametrize("shape", [(2, 1, 4, 4), (2, 1, 8, 20), (2, 1, 60, 4)])
def test_denoiser_accepts_multiples_only(shape: tuple[int, ...]) -> None:
    module = small_denoiser()
    assert module.config.multiple == 4
    assert module(torch.rand(shape)).shape == shape
    for side in (2, 3):
        with pytest.raises(ValueError, match="expected images whose sides are multiples of 4"):
            module(F.pad(torch.rand(shape), (2, 0) if side == 3 else (0, 0, 2, 0)))


def test_denoiser_scales_with_its_input() -> None:
    module = small_denoiser().double()
    assert not [name for name, _ in module.named_parameters() if name.endswith("bias")]
    images = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    for factor in (0.0, 0.3, 7.0):
        torch.testing.assert_close(module(factor * images), factor * module(images))


def test_untrained_denoiser_hardly_changes_the_image() -> None:
    module, images = small_denoiser(widths=(32, 48)), torch.rand(4, 1, 32, 32)
    error = (module(images) - images).square().mean().sqrt()
    assert 0 < error < images.std()


def test_skip_connections_preserve_detail() -> None:
    # With zeros at the bottom, detail can reach the output through skips only.
    module = small_denoiser()
    with torch.no_grad():
        module.bottom.register_forward_hook(lambda _module, _inputs, output: torch.zeros_like(output))
        assert module.noise(torch.rand(1, 1, 8, 8)).abs().max() > 0


def test_default_denoiser_is_within_its_budget() -> None:
    config = DenoiserConfig()
    parameters = sum(p.numel() for p in Denoiser(config).parameters())
    assert parameters * 4 < 12e6
    with FlopCounterMode(display=False) as counter:
        Denoiser(config)(torch.rand(1, 3, 64, 64))
    assert counter.get_total_flops() / 2 / 64**2 < 150_000  # multiply-accumulates per pixel
