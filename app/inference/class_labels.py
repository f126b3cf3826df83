"""The classes that a caller asks for by name, as a conditional network takes them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from app.errors import Unprocessable
from models.card import ModelCard


def chosen(card: ModelCard, sent: Sequence[str], count: int) -> list[int] | None:
    """A class for each of `count` items from names, one for all or one for each; None where none was sent.

    Names may be joined by commas.

    Raises:
        Unprocessable: an unknown name, another number of names, or a network without classes.
    """
    names = [name.strip() for text in sent for name in ([text] if text in card.classes else text.split(","))]
    if not names:
        return None
    if not card.classes:
        raise Unprocessable(f"{card.name} knows no labels")
    if unknown := [name for name in names if name not in card.classes]:
        raise Unprocessable(f"{card.name} has no label {unknown[0][:64]!r}; it has: {', '.join(card.classes)}")
    if len(names) not in (1, count):
        raise Unprocessable(f"{len(names)} labels for {count}: send one for all, or one for each")
    ids = [card.classes.index(name) for name in names]
    return ids * count if len(ids) == 1 else ids


def needed(card: ModelCard, sent: Sequence[str], count: int) -> list[int] | None:
    """The same for what makes no sense without them.

    Raises:
        Unprocessable: as `chosen`; or none were sent to a conditional network.
    """
    ids = chosen(card, sent, count)
    if ids is None and card.classes:
        raise Unprocessable(f"{card.name} needs a label: one of {', '.join(card.classes)}")
    return ids


def one_hot(card: ModelCard, ids: Sequence[int] | None, count: int) -> Tensor:
    """float32 [count, classes]; [count, 0] for a network without."""
    if ids is None:
        return torch.zeros(count, 0)
    return F.one_hot(torch.tensor(ids), len(card.classes)).float()


def names(card: ModelCard, ids: Sequence[int] | None, count: int) -> list[str | None]:
    """The labels' names."""
    return [None] * count if ids is None else [card.classes[id_] for id_ in ids]
