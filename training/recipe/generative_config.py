"""Recipes of networks that make pictures: what differs from a classifier's, see `training.recipe.config`."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from models.card import Name
from models.preprocess import Preprocess
from models.registry import configure, lookup
from training.losses.generative import Distance
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

Grey = Annotated[float, Field(ge=0, le=255)]


class ConditionalSection(ModelSection):
    """As `ModelSection`; `conditional` gives the network the data set's labels."""

    conditional: bool = False


class PicturesSection(Section):
    """A data set under VESTIBULE_DATASETS, and how its pictures are shown.

    With `identities` the splits are those of `training.datasets.faces`, and `validation` is how many of the pictures
    that calibrate are validated on; without, that many are cut from the training pictures. `size` is the side that they
    are decoded to, 0 for the recipe's; `crop` the side of a random part of it that is trained on, 0 for the whole;
    `batch_size` is that of all processes together, 0 for the recipe's.
    """

    name: Name
    validation: Annotated[int, Field(ge=1)]
    identities: bool = False
    size: Annotated[int, Field(ge=0, le=4096)] = 0
    crop: Annotated[int, Field(ge=0)] = 0
    batch_size: Annotated[int, Field(ge=0)] = 0


class NoiseSection(Section):
    """White Gaussian noise on the pictures that a denoiser is shown; standard deviations on the 0..255 scale.

    Each picture's is uniform in `sigma`. A share of `clipped` of them are clipped to 0..255 afterwards, as a file of
    bytes holds them; the others are not, as papers measure. `validation` lists what is measured, without clipping.
    """

    sigma: tuple[Grey, Grey]
    clipped: Annotated[float, Field(ge=0, le=1)] = 0.5
    validation: Annotated[tuple[Positive, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _low_then_high(self) -> Self:
        if self.sigma[0] > self.sigma[1]:
            raise ValueError(f"sigma {self.sigma} is not (low, high)")
        return self


class RestoreSection(Section):
    """What an autoencoder's answer is judged by.

    `distance` is for networks that are not variational. For those that are it is the ELBO: `beta` weighs the KL term,
    rising from 0 over the first `beta_epochs`.
    """

    distance: Distance = "psnr"
    beta: Positive = 1.0
    beta_epochs: NotNegative = 0.0


class AutoencodeRecipe(Section):
    """The recipe of one autoencoder, variational or not, or denoiser. With several data sets, they take turns."""

    name: Name
    description: str
    seed: Annotated[int, Field(ge=0)] = 0
    model: ConditionalSection
    data: Annotated[tuple[PicturesSection, ...], Field(min_length=1)]
    preprocess: Preprocess
    augment: AugmentSection = AugmentSection()
    noise: NoiseSection | None = None
    loss: RestoreSection = RestoreSection()
    train: TrainSection
    card: CardSection

    @property
    def task(self) -> str:
        """What the architecture is for."""
        return lookup(self.model.architecture).task

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.task not in {"reconstruct", "generate", "denoise"}:
            raise ValueError(f"{self.model.architecture} is built to {self.task}, which is not learnt like this")
        if (self.task == "denoise") != (self.noise is not None):
            raise ValueError("a network to denoise needs noise, and no other does")
        if self.preprocess.mean != (0.0,) * self.preprocess.channels or set(self.preprocess.std) != {255.0}:
            raise ValueError("these pictures are in 0..1: mean 0, std 255")
        if self.preprocess.fit == "within" and not all(section.size for section in self.data):
            raise ValueError("pictures of one batch have one size: with fit within, each data set needs its own")
        if self.augment.mixup or self.augment.cutmix:
            raise ValueError("a blend of two pictures is no picture: mixup and cutmix are a classifier's")
        refuse_classifier_settings(self.train, self.augment)
        if self.model.conditional and len(self.data) > 1:
            raise ValueError("labels are those of one data set")
        return self

    def config(self, classes: int) -> Any:
        """The network's, for a data set of so many classes; its size is the side of what is trained on."""
        first = self.data[0]
        sizes = {"in_channels": self.preprocess.channels, "image_size": first.crop or first.size or self.side}
        labels = {"num_classes": classes} if self.model.conditional else {}
        return configure(self.model.architecture, self.model.config | sizes | labels)

    @property
    def side(self) -> int:
        """Of what `preprocess` makes."""
        return self.preprocess.shape[1]
