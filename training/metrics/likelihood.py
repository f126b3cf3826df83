"""Lower bounds on the log-likelihood log p(x) of images under a variational autoencoder, in nats.

The ELBO: Kingma, Welling, "Auto-Encoding Variational Bayes", ICLR 2014. The importance-weighted bound, IWAE-k, between
the ELBO (k = 1) and log p(x) (k to infinity): Burda, Grosse, Salakhutdinov, "Importance Weighted Autoencoders", ICLR
2016. A Bernoulli decoder gives probabilities of black and white, where a grey is a share of white; a Gaussian one gives
densities on the scale 0..1. So only models with the same kind of decoder can be compared.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from models.vae import VAE, reparameterise
from training.core.seeds import generator
from training.losses.generative import elbo, kl_to_prior, log_likelihood

_DECODED_AT_ONCE = 1024


class Bounds(NamedTuple):
    """Bounds on log p(x) of each image, or log p(x|y) with labels: float64 [N] each, in nats."""

    elbo: Tensor
    importance_weighted: Tensor


@torch.inference_mode()
def bounds(vae: VAE, images: Tensor, labels: Tensor, samples: int = 64, seed: int = 0) -> Bounds:
    """Return both bounds by the same `samples` latents of each image's posterior; the ELBO's KL is in closed form.

    Images [N, C, H, W] in 0..1, labels [N, num_classes]. The network is left in evaluation mode. The latents of image n
    depend on `seed` and n only.

    Raises:
        ValueError: fewer than one sample; see `VAE.posterior`.
    """
    if samples < 1:
        raise ValueError(f"expected at least one sample of the posterior, got {samples}")
    vae.eval()
    at_once = max(1, _DECODED_AT_ONCE // samples)
    parts = [
        _bounds(vae, images[rows], labels[rows], _noise(vae, rows, samples, seed).to(images))
        for rows in torch.split(torch.arange(len(images)), at_once)
    ]
    return Bounds(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _noise(vae: VAE, rows: Tensor, samples: int, seed: int) -> Tensor:
    """Draw from N(0, 1): [len(rows), samples, latent]."""
    draws = (generator(seed, "posterior", row) for row in rows.tolist())
    return torch.stack([torch.randn(samples, vae.config.latent, generator=draw) for draw in draws])


def _bounds(vae: VAE, images: Tensor, labels: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return ELBO [N] and IWAE bound [N] for `noise` [N, K, latent]."""
    count, samples, dimensions = noise.shape
    mean, log_variance = vae.posterior(images, labels)
    each = torch.arange(count, device=images.device).repeat_interleave(samples)
    latents = reparameterise(mean[each], log_variance[each], noise.reshape(-1, dimensions))
    logits = vae.decode_logits(latents, labels[each])
    likelihood = log_likelihood(logits, images[each], vae.log_scale).double().reshape(count, samples)
    bound = elbo(likelihood.mean(dim=1), kl_to_prior(mean.double(), log_variance.double()))
    # log p(z) - log q(z|x): the constants cancel, and q's standardised sample is the noise.
    prior = -latents.double().reshape(noise.shape).square().sum(dim=2) / 2
    proposal = -(noise.double().square().sum(dim=2) + log_variance.double().sum(dim=1, keepdim=True)) / 2
    weighted = torch.logsumexp(likelihood + prior - proposal, dim=1) - math.log(samples)
    return bound, weighted
