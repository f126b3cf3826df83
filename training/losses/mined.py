"""The losses of metric learning over mined pairs and triplets, as a recipe's loss section states them."""

from __future__ import annotations

import torch
from torch import Tensor

from training.losses import metric_learning, mining
from training.recipe.embed_config import LossSection


def contrastive_loss(loss: LossSection, embeddings: Tensor, labels: Tensor, draw: torch.Generator) -> Tensor:
    """Return the contrastive loss of embeddings [N, D] with labels [N]."""
    distances = metric_learning.pairwise_distances(embeddings, loss.metric)
    if loss.mining == "random":
        pairs = mining.random_pairs(distances, labels, draw)
    elif loss.mining == "batch-hard":
        pairs = mining.hard_pairs(distances, labels)
    else:
        pairs = mining.all_pairs(distances, labels)
    return metric_learning.contrastive(*pairs.of(distances), loss.margin, squared=loss.squared)


def triplet_loss(loss: LossSection, embeddings: Tensor, labels: Tensor, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the triplet loss of embeddings [N, D] with labels [N], and the share of active triplets."""
    distances = metric_learning.pairwise_distances(embeddings, loss.metric)
    if loss.mining == "random":
        triplets = mining.random_triplets(distances, labels, draw)
    elif loss.mining == "semi-hard":
        triplets = mining.semi_hard(distances, labels, loss.margin)
    elif loss.mining == "batch-hard":
        triplets = mining.batch_hard(distances, labels)
    else:
        triplets = mining.batch_all(distances, labels)
    positive, negative = triplets.of(distances)
    value = metric_learning.triplet(positive, negative, loss.margin, squared=loss.squared, active_only=loss.active_only)
    if loss.squared:
        positive, negative = positive.square(), negative.square()
    return value, mining.active_fraction(positive, negative, loss.margin)
