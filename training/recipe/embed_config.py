"""Recipes of embedders; see `training.recipe.config`."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from models.card import Name, refuse
from training.recipe.config import (
    ImageRecipe,
    ModelSection,
    NotNegative,
    Positive,
    Section,
    refuse_classifier_settings,
)


class EmbedModelSection(ModelSection):
    """A `ModelSection`, and the name `init` of the model from which training starts ("": random weights).

    `init` is the export of the run of that name or, if there is none, the shipped model (see `exported`). The first
    `freeze` blocks of its features keep their weights. The exported weights are interpolated: `trained` times the
    trained ones plus 1 - `trained` times those of `init`. This keeps most of the improvement and loses less accuracy on
    data unlike the training set (Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022).
    """

    init: str = ""
    freeze: Annotated[int, Field(ge=0)] = 0
    trained: Annotated[float, Field(gt=0, le=1)] = 1.0


class EmbedDataSection(Section):
    """A data set of identities under VESTIBULE_DATASETS, and how batches and pairs are drawn from it.

    A batch has `images` images of each of batch_size / images identities. `positives` are other images of an identity,
    or other augmentations of one image. In the calibration split, `mated` pairs of each identity and `impostors`
    non-mated pairs are compared.
    """

    name: Name
    images: Annotated[int, Field(ge=2)] = 4
    positives: Literal["identity", "augment"] = "identity"
    mated: Annotated[int, Field(ge=1)] = 10
    impostors: Annotated[int, Field(ge=1000)] = 100_000


class LossSection(Section):
    """The loss, see `training.losses.metric_learning` and `training.losses.mining`.

    `margin` is in units of the metric's distance, or of a cosine for margin softmax; `scale` belongs to margin softmax,
    `relations` is the weight of the relational part of distillation. `teacher` names a file of vectors, one for each
    image of the data set (see `training.embed.TeacherVectors`); `distillation` is the weight of its loss if `kind` is
    another.
    """

    kind: Literal["distillation", "margin-softmax", "contrastive", "triplet"]
    metric: Literal["euclidean", "cosine"] = "euclidean"
    mining: Literal["random", "batch-all", "semi-hard", "batch-hard"] = "batch-hard"
    margin: NotNegative = 0.3
    squared: bool = False
    active_only: bool = False
    scale: Positive = 30.0
    relations: NotNegative = 1.0
    teacher: str = ""
    distillation: NotNegative = 0.0

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        distils = self.kind == "distillation" or self.distillation > 0
        refuse((distils != (self.teacher != ""), "a teacher must be named for distillation, and for no other loss"))
        return self


def refuse_uneven_batch(batch_size: int, name: str, group: int) -> None:
    """Raise ValueError if a batch does not consist of whole groups of positives; `name` is the setting `group`."""
    refuse((batch_size % group > 0, f"batch_size ({batch_size}) must be a multiple of {name} ({group})"))


class EmbedRecipe(ImageRecipe):
    """The recipe of an embedder."""

    model: EmbedModelSection
    data: EmbedDataSection
    loss: LossSection

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        keeps = self.model.freeze > 0 or self.model.trained < 1
        refuse((keeps and not self.model.init, "freeze and trained keep weights of init, and init is not set"))
        refuse_classifier_settings(self.train, self.augment)
        refuse_uneven_batch(self.train.batch_size, "images", self.data.images)
        return self
