"""Losses of adversarial networks as functions of tensors. Scores [N] are logits: the higher, the more real.

minimax         the discriminator's cross-entropy, and its negative for the generator: Goodfellow et
                al., "Generative Adversarial Nets", NIPS 2014. Its gradient vanishes for a confident discriminator.
non-saturating  the same discriminator; the generator minimises -log D(fake) (ibid., section 3)
hinge           Lim, Ye, "Geometric GAN", 2017; Miyato et al., ICLR 2018
wasserstein     Arjovsky, Chintala, Bottou, "Wasserstein GAN", ICML 2017; the critic must be 1-Lipschitz: by
                `gradient_penalty` (Gulrajani et al., NIPS 2017), `clip_weights` (the paper's), or spectral norm
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Adversarial = Literal["minimax", "non-saturating", "hinge", "wasserstein"]


def discriminator_loss(kind: Adversarial, real: Tensor, fake: Tensor) -> Tensor:
    """Return the discriminator's loss, from its scores of real [N] and of generated images [M]: a scalar."""
    if kind == "wasserstein":
        return -earth_mover(real, fake)
    if kind == "hinge":
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def generator_loss(kind: Adversarial, fake: Tensor) -> Tensor:
    """Return the generator's loss, from the scores [N] of its images: a scalar."""
    if kind == "minimax":
        return -F.softplus(fake).mean()  # log(1 - sigmoid(s)) = -softplus(s)
    if kind == "non-saturating":
        return F.softplus(-fake).mean()
    return -fake.mean()


def earth_mover(real: Tensor, fake: Tensor) -> Tensor:
    """Return a critic's estimate of the earth mover's distance, in units of its 1-Lipschitz scores: a scalar."""
    return real.mean() - fake.mean()


def interpolate(real: Tensor, fake: Tensor, shares: Tensor) -> Tensor:
    """Return a point between each real and each generated image [N, C, H, W]; `shares` [N], 0..1, of the real one."""
    return fake + shares[:, None, None, None] * (real - fake)


def slopes(critic: Callable[[Tensor], Tensor], images: Tensor, *, create_graph: bool = False) -> Tensor:
    """Return the Euclidean norm [N] of each score's gradient with respect to its image [N, C, H, W].

    With `create_graph`, a loss of the slopes has a gradient with respect to the critic's weights.
    """
    images = images.detach().requires_grad_()
    with torch.enable_grad():
        (gradients,) = torch.autograd.grad(critic(images).sum(), images, create_graph=create_graph)
    norms: Tensor = gradients.flatten(1).norm(dim=1)
    return norms


def gradient_penalty(slopes: Tensor) -> Tensor:
    """Return the mean of (slope - 1)^2 of slopes [N], a scalar."""
    return (slopes - 1).square().mean()


@torch.no_grad()
def clip_weights(module: nn.Module, limit: float) -> None:
    """Clamp every parameter to -limit..limit in place."""
    for parameter in module.parameters():
        parameter.clamp_(-limit, limit)
