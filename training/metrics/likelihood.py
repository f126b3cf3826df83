"""How likely a variational autoencoder finds pictures that it has not seen: lower bounds on log p(x), in nats.

The ELBO: Kingma, Welling, "Auto-Encoding Variational Bayes", ICLR 2014. The importance-weighted bound, IWAE-k, between
the ELBO (k = 1) and log p(x) (k without end): Burda, Grosse, Salakhutdinov, "Importance Weighted Autoencoders", ICLR
2016. What a nat means depends on the decoder: a probability of black and white for a Bernoulli one, of which a grey is
a share, or a density on the scale 0..1 for a Gaussian one. So only models with one kind of decoder can be compared.
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
    """On log p(x) of each picture, or log p(x|y) where there are labels: float64 [N] each, in nats."""

    elbo: Tensor
    importance_weighted: Tensor


@torch.inference_mode()
def bounds(vae: VAE, pictures: Tensor, labels: Tensor, samples: int = 64, seed: int = 0) -> Bounds:
    """Both bounds by the same `samples` latents of each picture's posterior; in the ELBO the KL is the closed form.

    Pictures [N, C, H, W] in 0..1, labels [N, num_classes]; the network is left in evaluation mode. The latents of
    picture n are a function of seed and n.

    Raises:
        ValueError: fewer than one sample; see `VAE.posterior`.
    """
    if samples < 1:
        raise ValueError(f"expected at least one sample of the posterior, got {samples}")
    vae.eval()
    at_once = max(1, _DECODED_AT_ONCE // samples)
    parts = [
        _bounds(vae, pictures[rows], labels[rows], _noise(vae, rows, samples, seed).to(pictures))
        for rows in torch.split(torch.arange(len(pictures)), at_once)
    ]
    return Bounds(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _noise(vae: VAE, rows: Tensor, samples: int, seed: int) -> Tensor:
    """N(0, 1) [len(rows), samples, latent]."""
    draws = (generator(seed, "posterior", row) for row in rows.tolist())
    return torch.stack([torch.randn(samples, vae.config.latent, generator=draw) for draw in draws])


def _bounds(vae: VAE, pictures: Tensor, labels: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """[N] and [N]; `noise` [N, K, latent]."""
    count, samples, dimensions = noise.shape
    mean, log_variance = vae.posterior(pictures, labels)
    each = torch.arange(count, device=pictures.device).repeat_interleave(samples)
    latents = reparameterise(mean[each], log_variance[each], noise.reshape(-1, dimensions))
    logits = vae.decode_logits(latents, labels[each])
    likelihood = log_likelihood(logits, pictures[each], vae.log_scale).double().reshape(count, samples)
    bound = elbo(likelihood.mean(dim=1), kl_to_prior(mean.double(), log_variance.double()))
    # log p(z) - log q(z|x): the constants cancel, and of q's standardised sample the noise is what remains.
    prior = -latents.double().reshape(noise.shape).square().sum(dim=2) / 2
    proposal = -(noise.double().square().sum(dim=2) + log_variance.double().sum(dim=1, keepdim=True)) / 2
    weighted = torch.logsumexp(likelihood + prior - proposal, dim=1) - math.log(samples)
    return bound, weighted
