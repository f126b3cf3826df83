"""Recipes of name encoders; see `training.recipe.config`."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from models.card import Name, refuse
from models.name_encoder import VARIANTS
from training.datasets.misspellings import KINDS
from training.recipe.config import Section, TrainSection, refuse_classifier_settings
from training.recipe.embed_config import LossSection, refuse_uneven_batch


class WordsModelSection(Section):
    """The name of a variant of `models.name_encoder`."""

    architecture: str


class WordsDataSection(Section):
    """The sources of names (see `training.datasets.names`) and their misspellings (`training.datasets.misspellings`).

    `identities` and `test` are folders under VESTIBULE_DATASETS; `names` is the number of names to train on. A batch
    has `spellings` spellings of each of batch_size / spellings names, each with 0 to `edits` edits of the kinds
    `trained`. The kinds `held_out` are only used in the evaluation.
    """

    identities: Name
    test: Name
    names: Annotated[int, Field(ge=1)]
    spellings: Annotated[int, Field(ge=2)] = 4
    edits: Annotated[int, Field(ge=1)] = 4
    trained: Annotated[tuple[str, ...], Field(min_length=1)]
    held_out: Annotated[tuple[str, ...], Field(min_length=1)]


class WordsRecipe(Section):
    """The recipe of a name encoder. `name` is that of the run's folder."""

    name: Name
    description: str
    seed: Annotated[int, Field(ge=0)] = 0
    model: WordsModelSection
    data: WordsDataSection
    loss: LossSection
    train: TrainSection

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        trained, held_out = {*self.data.trained}, {*self.data.held_out}
        unknown = ", ".join(sorted((trained | held_out) - KINDS.keys()))
        refuse(
            (
                self.model.architecture not in VARIANTS,
                f"unknown architecture {self.model.architecture!r}; known: {', '.join(sorted(VARIANTS))}",
            ),
            (unknown != "", f"unknown kinds of edits: {unknown}; known: {', '.join(KINDS)}"),
            (
                not trained.isdisjoint(held_out),
                f"kinds that are both trained and held_out: {', '.join(sorted(trained & held_out))}",
            ),
            (
                self.loss.kind != "triplet" or self.loss.mining not in {"semi-hard", "batch-hard"},
                "the loss of a name encoder is triplet, with semi-hard or batch-hard mining",
            ),
        )
        refuse_classifier_settings(self.train)
        refuse_uneven_batch(self.train.batch_size, "spellings", self.data.spellings)
        return self
