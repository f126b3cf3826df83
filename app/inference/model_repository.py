"""The models that lie in a weights folder, by their cards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import structlog

from app.errors import ModelRefused
from models import checkpoint
from models.card import ModelCard

log = structlog.get_logger()

MOST_TOLD = 500  # characters of why a file is refused


def read_all(weights: Path) -> dict[str, tuple[ModelCard, Path]]:
    """Cards and folders by name. A folder that is refused is reported in the log and not served."""
    found: dict[str, tuple[ModelCard, Path]] = {}
    for folder, card in read_each(weights):
        if isinstance(card, ModelRefused):
            log.error("model_refused", folder=folder.name, error=card.detail)
        else:
            found[card.name] = (card, folder)
    return found


def read_each(weights: Path) -> Iterator[tuple[Path, ModelCard | ModelRefused]]:
    """Each folder with a card or with weights, by name, and its card or why it is refused."""
    files = [*weights.glob(f"*/{checkpoint.CARD_FILE}"), *weights.glob(f"*/{checkpoint.WEIGHTS_FILE}")]
    for folder in sorted({path.parent for path in files}):
        try:
            card = read(folder)
        except ModelRefused as error:
            yield folder, error
        else:
            yield folder, card or ModelRefused(f"it has {checkpoint.WEIGHTS_FILE} and no {checkpoint.CARD_FILE}")


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
        raise ModelRefused(f"the folder is {folder.name}, but its card is that of {card.name}: rename one of them")
    return card


def told(error: Exception, folder: Path) -> str:
    """For a caller: without where on this machine that is."""
    return " ".join(str(error).replace(f"{folder}/", "").split())[:MOST_TOLD]
