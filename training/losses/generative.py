"""Losses of autoencoders as functions of tensors; everything in nats, and one number for each picture.

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

# Of a mean squared error, where the logarithm is taken: 80 dB.
_LEAST = 1e-8


def kl_to_prior(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, exp(log_variance)) || N(0, I)) of each row of [N, D], in closed form: [N]."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=1)


def log_likelihood(logits: Tensor, pictures: Tensor, log_scale: Tensor | None = None) -> Tensor:
    """log p(pictures | logits), both [N, C, H, W], summed over pixels: [N].

    Without `log_scale` each pixel is Bernoulli with the chance sigmoid(logit); a grey of 0.3 counts as white three
    times of ten, so it is the mean over pictures drawn from the greys. With it each pixel is Gaussian about
    sigmoid(logit) with the standard deviation exp(log_scale), a density on the scale 0..1.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if log_scale is None:
        surprise = F.binary_cross_entropy_with_logits(logits, pictures, reduction="none")
    else:
        error = (pictures - logits.sigmoid()) * (-log_scale).exp()
        surprise = 0.5 * error.square() + log_scale + 0.5 * math.log(2 * math.pi)
    return -surprise.flatten(1).sum(dim=1)


def elbo(log_likelihoods: Tensor, kl: Tensor, beta: float | Tensor = 1.0) -> Tensor:
    """The lower bound on log p(x) for each picture, [N], [N] -> [N]; with another `beta` than 1 it is no bound."""
    return log_likelihoods - beta * kl


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean over the pixels of each picture: [N, C, H, W] twice -> [N]."""
    return (outputs - targets).square().flatten(1).mean(dim=1)


def decibels(squared_errors: Tensor) -> Tensor:
    """PSNR of pictures in 0..1 from their mean squared errors, 80 at most: [N] -> [N]."""
    return -10 * squared_errors.clamp_min(_LEAST).log10()


def distance(outputs: Tensor, targets: Tensor, kind: Distance) -> Tensor:
    """How far restored pictures are from the clean ones, both [N, C, H, W] in 0..1: a scalar, the less the better.

    `psnr` is the mean of -PSNR, which pulls at an easy picture as hard as at a difficult one (Chen, Chu, Zhang, Sun,
    "Simple Baselines for Image Restoration", ECCV 2022).
    """
    outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
    if kind == "l1":
        return F.l1_loss(outputs, targets)
    errors = squared_error(outputs, targets)
    return errors.mean() if kind == "mse" else -decibels(errors).mean()
