"""Training runs whose results a benchmark gathers: which of them are done."""

from __future__ import annotations

from pathlib import Path

from models.card import ModelCard
from training.recipe.config import Recipe
from training.recipe.embed_config import EmbedRecipe
from training.recipe.generative_config import AutoencodeRecipe


class RunFailedError(Exception):
    """A run ended without a model; the message says where its log is."""


def card_made_by(recipe: Recipe | EmbedRecipe | AutoencodeRecipe, folder: Path) -> ModelCard | None:
    """Of the model that this very recipe exported in the run's folder; None while there is none."""
    path = folder / "export" / recipe.name / "card.json"
    if not path.is_file():
        return None
    card = ModelCard.model_validate_json(path.read_bytes())
    made_by = recipe.model_dump(mode="json", exclude_none=True)  # as TOML has it
    return card if card.training and card.training.recipe == made_by else None
