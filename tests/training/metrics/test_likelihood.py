"""Bounds on log p(x) against torch's distributions and a network whose log p(x) is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Independent, MultivariateNormal, Normal, kl_divergence
from torch.nn import functional as F

from models.vae import VAE, VAEConfig
from training.core.seeds import generator
from training.metrics.likelihood import bounds

SIZE = {"image_size": 8, "latent": 3, "widths": (4, 8), "hidden": 0}


def small(likelihood: str = "bernoulli", num_classes: int = 0) -> VAE:
    torch.manual_seed(0)
    vae = VAE(VAEConfig(**SIZE, num_classes=num_classes, likelihood=likelihood))  # type: ignore[arg-type]
    with torch.no_grad():  # a posterior away from the prior
        for parameter in vae.encoder.head.parameters():
            parameter.mul_(3)
    return vae.eval()


def drawn(count: int, num_classes: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    labels = F.one_hot(torch.arange(count) % max(num_classes, 1), max(num_classes, 1)).float()
    return torch.rand(count, 1, 8, 8, generator=draw), labels[:, :num_classes]


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("num_classes", [0, 4])
def test_both_bounds_are_those_of_torchs_distributions(likelihood: str, num_classes: int) -> None:
    vae = small(likelihood, num_classes)
    images, labels = drawn(3, num_classes)
    if likelihood == "bernoulli":
        images = images.round()  # torch's Bernoulli takes no greys
    result = bounds(vae, images, labels, samples=200, seed=7)
    with torch.no_grad():
        for row in range(3):
            mean, log_variance = vae.posterior(images[row : row + 1], labels[row : row + 1])
            posterior = Independent(Normal(mean[0].double(), (log_variance[0].double() / 2).exp()), 1)
            prior = Independent(Normal(torch.zeros(3).double(), 1.0), 1)
            noise = torch.randn(200, 3, generator=generator(7, "posterior", row)).double()
            latents = posterior.mean + posterior.stddev * noise
            logits = vae.decode_logits(latents.float(), labels[row].expand(200, -1)).double()
            pixels: Bernoulli | Normal = Bernoulli(logits=logits)
            if vae.log_scale is not None:
                pixels = Normal(logits.sigmoid(), vae.log_scale.double().exp())
            reconstruction = Independent(pixels, 3).log_prob(images[row].double().expand_as(logits))  # type: ignore[no-untyped-call]
            elbo = float(reconstruction.mean() - kl_divergence(posterior, prior))
            terms = reconstruction + prior.log_prob(latents) - posterior.log_prob(latents)  # type: ignore[no-untyped-call]
            assert float(result.elbo[row]) == pytest.approx(elbo, rel=1e-4)
            assert float(result.importance_weighted[row]) == pytest.approx(
                float(torch.logsumexp(terms, dim=0)) - math.log(200), rel=1e-4
            )


class Linear(VAE):
    """Factor analysis, x = W z + b + noise, whose log p(x) is known; its posterior is the exact one, but too wide."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.config = VAEConfig(image_size=2, latent=2, widths=(1,), likelihood="gaussian")
        # Small, so that means stay within 0..1, where the decoder's sigmoid can reach them.
        self.weights = torch.randn(4, 2, generator=torch.Generator().manual_seed(3)).double() / 16
        self.offset, self.variance = torch.full((4,), 0.5).double(), 0.0025
        self.log_scale = nn.Parameter(torch.tensor(math.log(self.variance) / 2).double())
        self.covariance = torch.linalg.inv(torch.eye(2).double() + self.weights.T @ self.weights / self.variance)

    def posterior(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        mean = (images.flatten(1) - self.offset) @ self.weights / self.variance @ self.covariance
        return mean, (self.covariance.diagonal().log() + 0.5).expand_as(mean)

    def decode_logits(self, latents: Tensor, labels: Tensor) -> Tensor:
        return (latents @ self.weights.T + self.offset).reshape(-1, 1, 2, 2).logit()

    @property
    def marginal(self) -> MultivariateNormal:
        return MultivariateNormal(self.offset, self.weights @ self.weights.T + self.variance * torch.eye(4).double())


def test_importance_weighted_bound_rises_from_elbo_to_likelihood() -> None:
    vae = Linear()
    torch.manual_seed(4)
    flat = vae.marginal.sample((6,))
    truth, images, none = vae.marginal.log_prob(flat), flat.reshape(6, 1, 2, 2), torch.zeros(6, 0)  # type: ignore[no-untyped-call]
    few, more = (bounds(vae, images, none, samples=count).importance_weighted for count in (8, 512))
    many = bounds(vae, images, none, samples=4096)
    assert many.elbo.mean() < few.mean() < more.mean() < truth.mean() + 0.01
    assert (many.elbo < truth).all()
    assert many.importance_weighted.tolist() == pytest.approx(truth.tolist(), abs=0.05)


def test_bounds_depend_only_on_seed_and_image() -> None:
    vae = small()
    images, labels = drawn(7)
    combined = bounds(vae, images, labels, samples=500)
    again = bounds(vae, images[:2], labels[:2], samples=500)
    assert again.importance_weighted.tolist() == pytest.approx(combined.importance_weighted[:2].tolist(), rel=1e-6)
    assert bounds(vae, images, labels, samples=500, seed=1).elbo.tolist() != combined.elbo.tolist()


def test_no_sample_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        bounds(small(), *drawn(2), samples=0)
