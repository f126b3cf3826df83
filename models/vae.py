"""The variational autoencoder, for P(X), for P(X|Y), and for denoising.

Kingma, Welling, "Auto-Encoding Variational Bayes", ICLR 2014; with labels: Sohn, Lee, Yan, "Learning Structured Output
Representation using Deep Conditional Generative Models", NIPS 2015, with the prior N(0, I) for every label; trained
to denoise: Im, Ahn, Memisevic, Bengio, "Denoising Criterion for Variational
Auto-Encoding Framework", AAAI 2017.
    Input [N, in_channels, S, S] with S = `image_size` and values in 0..1, output the same.
    Deviations: the convolutional halves of `models.autoencoder` where the paper has one hidden layer; a Gaussian
    decoder has one standard deviation for all pixels, a learnt parameter (Rybkin, Daniilidis, Levine, "Simple
    and Effective VAE Training with Calibrated Decoders", ICML 2021), where the paper has one per pixel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from models.autoencoder import AutoencoderConfig, Decoder, Encoder

# Bernoulli: each pixel is the probability of white. Gaussian: each pixel is a mean.
Likelihood = Literal["bernoulli", "gaussian"]


@dataclass(frozen=True)
class VAEConfig(AutoencoderConfig):
    """`likelihood` is the distribution whose parameters the decoder outputs for each pixel."""

    likelihood: Likelihood = "bernoulli"


class VAEOutput(NamedTuple):
    """The inputs of a loss: logits [N, C, S, S] of a sample; the posterior, [N, latent] each; `VAE.log_scale`."""

    logits: Tensor
    mean: Tensor
    log_variance: Tensor
    log_scale: Tensor | None


def reparameterise(mean: Tensor, log_variance: Tensor, noise: Tensor) -> Tensor:
    """A sample of N(mean, exp(log_variance)) as a function of noise from N(0, 1); all [N, latent]."""
    return mean + (log_variance / 2).exp() * noise


class VAE(nn.Module):
    """Images [N, in_channels, S, S] in 0..1 with labels [N, num_classes]; the output is a `VAEOutput`.

    `log_scale` is the logarithm of a Gaussian decoder's standard deviation, None for a Bernoulli decoder.
    """

    log_scale: nn.Parameter | None

    def __init__(self, config: VAEConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config, 2 * config.latent)
        self.decoder = Decoder(config)
        self.log_scale = nn.Parameter(torch.tensor(math.log(0.2))) if config.likelihood == "gaussian" else None

    def posterior(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the latents, [N, latent] each, in float32 or better."""
        parameters: Tensor = self.encoder(images, labels)
        parameters = parameters.to(torch.promote_types(parameters.dtype, torch.float32))
        mean, log_variance = parameters.chunk(2, dim=1)
        return mean, log_variance

    def embed(self, images: Tensor, labels: Tensor) -> Tensor:
        """The posterior's mean [N, latent]."""
        return self.posterior(images, labels)[0]

    def decode_logits(self, latents: Tensor, labels: Tensor) -> Tensor:
        """Logits [N, in_channels, S, S] of the images that `decode` returns."""
        logits: Tensor = self.decoder(latents, labels)
        return logits

    def decode(self, latents: Tensor, labels: Tensor) -> Tensor:
        """The expected image [N, in_channels, S, S] in 0..1."""
        return self.decode_logits(latents, labels).sigmoid()

    def forward(self, images: Tensor, labels: Tensor, noise: Tensor) -> VAEOutput:
        """The reconstruction from a sample of the posterior; `noise` from N(0, 1), [N, latent]."""
        mean, log_variance = self.posterior(images, labels)
        logits = self.decode_logits(reparameterise(mean, log_variance, noise), labels)
        return VAEOutput(logits, mean, log_variance, self.log_scale)
