"""Recipes of embedders; see `training.recipe.config`."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from models.card import Name
from models.preprocess import Preprocess
from training.recipe.config import (
    AugmentSection,
    CardSection,
    ModelSection,
    NotNegative,
    Positive,
    Section,
    TrainSection,
    refuse_classifier_settings,
)


class EmbedModelSection(ModelSection):
    """As `ModelSection`; `init` names the model that this one starts from, "" for random weights.

    It is the export of the run of that name or, where there is none, the shipped model (see `exported`). The first
    `freeze` blocks of its features keep their weights. The exported weights are a share `trained` of the trained ones
    and for the rest those of init: a network between both forgets less of what is in no training set, and keeps most of
    what it has learnt (Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022).
    """

    init: str = ""
    freeze: Annotated[int, Field(ge=0)] = 0
    trained: Annotated[float, Field(gt=0, le=1)] = 1.0

    @model_validator(mode="after")
    def _keeps_trained_weights(self) -> Self:
        if (self.freeze or self.trained < 1) and not self.init:
            raise ValueError("freeze and trained keep weights of init, and there is none")
        return self


class EmbedDataSection(Section):
    """A data set of identities under VESTIBULE_DATASETS, and how a batch is drawn from it.

    A batch has `images` pictures of each of batch_size / images identities. `positives` are other pictures of an
    identity, or other augmentations of one picture. `mated` is how many pairs of each identity of the calibration split
    are compared, `impostors` how many pairs of strangers.
    """

    name: Name
    images: Annotated[int, Field(ge=2)] = 4
    positives: Literal["identity", "augment"] = "identity"
    mated: Annotated[int, Field(ge=1)] = 10
    impostors: Annotated[int, Field(ge=1000)] = 100_000


class LossSection(Section):
    """What pulls and pushes: see `training.losses.metric_learning` and `training.losses.mining`.

    `margin` is in units of the metric's distance, for margin softmax in those of a cosine; `scale` is margin softmax's,
    `relations` the weight of distillation's relational half. `teacher` names a file of vectors, a row for each picture
    of the data set (see `training.embed.Teacher`); `distillation` is the weight of its loss beside the others.
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

    @property
    def learns_from_a_teacher(self) -> bool:
        """Whether any part of the loss needs the teacher's vectors."""
        return self.kind == "distillation" or self.distillation > 0

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.learns_from_a_teacher != bool(self.teacher):
            raise ValueError("distillation needs the name of a teacher, and nothing else does")
        return self


class EmbedRecipe(Section):
    """One embedder's recipe. `name` is that of the run's folder and of the exported model."""

    name: Name
    description: str
    seed: Annotated[int, Field(ge=0)] = 0
    model: EmbedModelSection
    data: EmbedDataSection
    preprocess: Preprocess
    augment: AugmentSection = AugmentSection()
    loss: LossSection
    train: TrainSection
    card: CardSection

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.augment.mixup or self.augment.cutmix:
            raise ValueError("a blend of two identities is neither: mixup and cutmix are a classifier's")
        refuse_classifier_settings(self.train, self.augment)
        if self.train.batch_size % self.data.images:
            raise ValueError(f"batch_size ({self.train.batch_size}) must be a multiple of images ({self.data.images})")
        return self
