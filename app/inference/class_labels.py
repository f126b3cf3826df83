"""Class labels in requests to conditional networks: parsed, checked, and encoded as one-hot vectors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from app.errors import Unprocessable
from models.card import ModelCard


def parse_labels(card: ModelCard, labels: Sequence[str], count: int) -> list[int] | None:
    """Return the class id of each of `count` items from one label for all or one for each; None without labels.

    A string may hold several labels, separated by commas.

    Raises:
        Unprocessable: an unknown label, another number of labels, or a network without classes.
    """
    names = [name.strip() for text in labels for name in ([text] if text in card.classes else text.split(","))]
    if not names:
        return None
    if not card.classes:
        raise Unprocessable(f"{card.name} has no labels")
    if unknown := [name for name in names if name not in card.classes]:
        raise Unprocessable(f"{card.name} has no label {unknown[0][:64]!r}; it has: {', '.join(card.classes)}")
    if len(names) not in (1, count):
        raise Unprocessable(f"{len(names)} labels for {count}: send one for all, or one for each")
    ids = [card.classes.index(name) for name in names]
    return ids * count if len(ids) == 1 else ids


def require_labels(card: ModelCard, labels: Sequence[str], count: int) -> list[int] | None:
    """Return the same as `parse_labels`; None only for a network without classes.

    Raises:
        Unprocessable: as `parse_labels`; or a conditional network got no label.
    """
    ids = parse_labels(card, labels, count)
    if ids is None and card.classes:
        raise Unprocessable(f"{card.name} needs a label: one of {', '.join(card.classes)}")
    return ids


def one_hot(card: ModelCard, ids: Sequence[int] | None, count: int) -> Tensor:
    """Return float32 [count, classes]; [count, 0] for a network without classes."""
    if ids is None:
        return torch.zeros(count, 0)
    return F.one_hot(torch.tensor(ids), len(card.classes)).float()


def label_names(card: ModelCard, ids: Sequence[int] | None, count: int) -> list[str | None]:
    """Return the label of each of `count` items; None without labels."""
    return [None] * count if ids is None else [card.classes[id_] for id_ in ids]
