"""Losses of autoencoders as functions of tensors; in nats, one number for each image.

A variational autoencoder's evidence lower bound is E[log p(x|z)] - KL(q(z|x) || p(z)), Kingma, Welling, "Auto-Encoding
Variational Bayes", ICLR 2014; with a weight on the second term, Higgins et al., "beta-VAE", ICLR 2017.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Distance = Literal["l1", "mse", "psnr"]

# Smaller mean squared errors are raised to this before the logarithm, so the PSNR is at most 80 dB.
_LEAST = 1e-8


def kl_to_prior(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return KL(N(mean, exp(log_variance)) || N(0, I)) of each row of [N, D], in closed form: [N]."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=1)


def log_likelihood(logits: Tensor, images: Tensor, log_scale: Tensor | None = None) -> Tensor:
    """Return log p(images | logits), both [N, C, H, W], summed over pixels: [N].

    Without `log_scale` each pixel is Bernoulli with the probability sigmoid(logit); a grey of 0.3 counts as 0.3 white
    and 0.7 black. With it each pixel is Gaussian with mean sigmoid(logit) and standard deviation exp(log_scale): a
    density on the scale 0..1.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if log_scale is None:
        negative = F.binary_cross_entropy_with_logits(logits, images, reduction="none")
    else:
        error = (images - logits.sigmoid()) * (-log_scale).exp()
        negative = 0.5 * error.square() + log_scale + 0.5 * math.log(2 * math.pi)
    return -negative.flatten(1).sum(dim=1)


def elbo(log_likelihoods: Tensor, kl: Tensor, beta: float | Tensor = 1.0) -> Tensor:
    """Return the lower bound on log p(x) of each image: [N], [N] -> [N]. It is only a bound if `beta` is 1."""
    return log_likelihoods - beta * kl


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean squared error over the pixels of each image: [N, C, H, W] twice -> [N]."""
    return (outputs - targets).square().flatten(1).mean(dim=1)


def decibels(squared_errors: Tensor) -> Tensor:
    """Return the PSNR of images in 0..1 from their mean squared errors, at most 80: [N] -> [N]."""
    return -10 * squared_errors.clamp_min(_LEAST).log10()


def distance(outputs: Tensor, targets: Tensor, kind: Distance) -> Tensor:
    """Return the distance of restored from clean images, both [N, C, H, W] in 0..1: a scalar.

    `psnr` is the mean of -PSNR, whose relative gradient is the same for easy and difficult images (Chen, Chu, Zhang,
    Sun, "Simple Baselines for Image Restoration", ECCV 2022).
    """
    outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
    if kind == "l1":
        return F.l1_loss(outputs, targets)
    errors = squared_error(outputs, targets)
    return errors.mean() if kind == "mse" else -decibels(errors).mean()
