"""The models that lie in a weights folder, by their cards."""

from __future__ import annotations

from pathlib import Path

import structlog

from app.errors import ModelRefused
from models import checkpoint
from models.card import ModelCard

log = structlog.get_logger()

MOST_TOLD = 500  # characters of why a file is refused


def read_all(weights: Path) -> dict[str, tuple[ModelCard, Path]]:
    """Cards and folders by name; a folder that is refused is told of in the log and is not served."""
    found: dict[str, tuple[ModelCard, Path]] = {}
    for path in sorted(weights.glob(f"*/{checkpoint.CARD_FILE}")):
        try:
            card = read(path.parent)
        except ModelRefused as error:
            log.error("model_refused", folder=path.parent.name, error=error.detail)
            continue
        if card is not None:
            found[card.name] = (card, path.parent)
    return found


def read(folder: Path) -> ModelCard | None:
    """The card that lies there; None: none does.

    Raises:
        ModelRefused: it cannot be read, or is that of another.
    """
    if not (folder / checkpoint.CARD_FILE).is_file():
        return None
    try:
        card = checkpoint.read_card(folder)
    except checkpoint.CheckpointError as error:
        raise ModelRefused(told(error, folder)) from error
    if card.name != folder.name:
        raise ModelRefused(f"its card is that of {card.name}")
    return card


def told(error: Exception, folder: Path) -> str:
    """For a caller: without where on this machine that is."""
    return " ".join(str(error).replace(f"{folder}/", "").split())[:MOST_TOLD]
