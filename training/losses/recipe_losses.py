"""The losses of metric learning over a batch's pairs and triplets, as a recipe's loss section states them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from training.losses import metric_learning, mining
from training.recipe.embed_config import LossSection


def contrastive_loss(loss: LossSection, embeddings: Tensor, labels: Tensor, draw: torch.Generator) -> Tensor:
    """Return the contrastive loss of embeddings [N, D] with labels [N]."""
    distances = metric_learning.pairwise_distances(embeddings, loss.metric)
    miners: dict[str, Callable[[Tensor, Tensor], mining.Pairs]] = {
        "random": partial(mining.random_pairs, generator=draw),
        "batch-hard": mining.hard_pairs,
    }
    pairs = miners.get(loss.mining, mining.all_pairs)(distances, labels)
    return metric_learning.contrastive(*pairs.of(distances), loss.margin, squared=loss.squared)


def triplet_loss(loss: LossSection, embeddings: Tensor, labels: Tensor, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the triplet loss of embeddings [N, D] with labels [N], and the share of active triplets."""
    distances = metric_learning.pairwise_distances(embeddings, loss.metric)
    miners: dict[str, Callable[[Tensor, Tensor], mining.Triplets]] = {
        "random": partial(mining.random_triplets, generator=draw),
        "semi-hard": partial(mining.semi_hard, margin=loss.margin),
        "batch-hard": mining.batch_hard,
        "batch-all": mining.batch_all,
    }
    positive, negative = miners[loss.mining](distances, labels).of(distances)
    if loss.squared:
        positive, negative = positive.square(), negative.square()
    value = metric_learning.triplet(positive, negative, loss.margin, active_only=loss.active_only)
    return value, mining.active_fraction(positive, negative, loss.margin)
