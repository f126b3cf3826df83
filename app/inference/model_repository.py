"""Read the model cards of a weights folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import structlog

from app.errors import ModelRefused
from models import checkpoint
from models.card import ModelCard

log = structlog.get_logger()

MAX_REASON_LENGTH = 500  # characters


def read_all(weights: Path) -> dict[str, ModelCard]:
    """Return the cards by model name, sorted. A refused folder is logged and left out."""
    models: dict[str, ModelCard] = {}
    for folder, card in read_each(weights):
        if isinstance(card, ModelRefused):
            log.error("model_refused", folder=folder.name, error=card.detail)
        else:
            models[card.name] = card
    return models


def read_each(weights: Path) -> Iterator[tuple[Path, ModelCard | ModelRefused]]:
    """Yield each folder with a card or weights, sorted by name, and its card or why it is refused."""
    files = [*weights.glob(f"*/{checkpoint.CARD_FILE}"), *weights.glob(f"*/{checkpoint.WEIGHTS_FILE}")]
    for folder in sorted({path.parent for path in files}):
        try:
            card = read(folder)
        except ModelRefused as error:
            yield folder, error
        else:
            yield folder, card or ModelRefused(f"it has {checkpoint.WEIGHTS_FILE} and no {checkpoint.CARD_FILE}")


def read(folder: Path) -> ModelCard | None:
    """Return the folder's card; None if it has none.

    Raises:
        ModelRefused: the card cannot be read, or has another model's name.
    """
    if not (folder / checkpoint.CARD_FILE).is_file():
        return None
    try:
        card = checkpoint.read_card(folder)
    except checkpoint.CheckpointError as error:
        raise ModelRefused(public_reason(error, folder)) from error
    if card.name != folder.name:
        raise ModelRefused(f"the folder is {folder.name}, but its card is that of {card.name}: rename one of them")
    return card


def public_reason(error: Exception, folder: Path) -> str:
    """Return the error's text without the folder's path, for API responses."""
    return " ".join(str(error).replace(f"{folder}/", "").split())[:MAX_REASON_LENGTH]
