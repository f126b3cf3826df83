"""Recipes of adversarial networks: what differs from other generators', see `training.recipe.generative_config`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from models.card import Name
from models.gan import DiscriminatorConfig, Norm
from models.preprocess import Preprocess
from models.registry import configure
from training.losses.adversarial import Adversarial
from training.recipe.config import (
    AugmentSection,
    CardSection,
    Fraction,
    NotNegative,
    Positive,
    Section,
    TrainSection,
    refuse_classifier_settings,
)
from training.recipe.generative_config import ConditionalSection, PicturesSection

# In -1..1, as the generator's last layer answers them.
_CENTRE = 127.5

GENERATORS = ("gan", "wgan")


class DiscriminatorSection(Section):
    """See `models.gan.DiscriminatorConfig`; its sizes are the generator's."""

    widths: tuple[int, ...] = (64, 128)
    norm: Norm = "batch"
    spectral: bool = False


class GameSection(Section):
    """Who plays how.

    `turns` are the discriminator's steps before each one of the generator, on fresh pictures each, and `rate` is its
    learning rate as a multiple of the generator's. A Wasserstein critic is held at a slope of 1 by a `penalty` of that
    weight, or at any slope by `clip`, the greatest absolute value of a weight, or by spectral normalisation; 0 for
    without. With `penalty_every` the penalty is taken in every so-manieth step of the critic only, and weighs as much
    more (Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", CVPR 2020).
    """

    loss: Adversarial = "non-saturating"
    turns: Annotated[int, Field(ge=1)] = 1
    rate: Positive = 1.0
    penalty: NotNegative = 0.0
    penalty_every: Annotated[int, Field(ge=1)] = 1
    clip: NotNegative = 0.0


class WatchSection(Section):
    """When a run counts as collapsed, see `training.metrics.gan_monitor`.

    `extractor` is the weights folder of a classifier or an embedder, in whose features `samples` generated pictures are
    compared with as many real ones. From epoch `grace` + 1 on (it counts from 1), the run is stopped if less than a
    share of `coverage` of the classes that the real pictures have is drawn, of `modes_covered` of `modes` groups of
    real pictures, or if pictures of a class are less than `diversity` times as far apart as real ones are.
    """

    extractor: Path
    samples: Annotated[int, Field(ge=100)] = 2000
    modes: Annotated[int, Field(ge=2)] = 50
    grace: Annotated[int, Field(ge=0)] = 1
    coverage: Fraction = 0.8
    modes_covered: Fraction = 0.5
    diversity: Fraction = 0.5


class GanRecipe(Section):
    """The recipe of one generator and its discriminator; `train.ema` is the generator's."""

    name: Name
    description: str
    seed: Annotated[int, Field(ge=0)] = 0
    model: ConditionalSection
    discriminator: DiscriminatorSection = DiscriminatorSection()
    data: PicturesSection
    preprocess: Preprocess
    augment: AugmentSection = AugmentSection()
    game: GameSection
    watch: WatchSection
    train: TrainSection
    card: CardSection

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.model.architecture not in GENERATORS:
            raise ValueError(f"{self.model.architecture} is no generator that plays: {', '.join(GENERATORS)}")
        if set(self.preprocess.mean) != {_CENTRE} or set(self.preprocess.std) != {_CENTRE}:
            raise ValueError("these pictures are in -1..1: mean 127.5, std 127.5")
        if self.augment.mixup or self.augment.cutmix:
            raise ValueError("a blend of two pictures is no picture: mixup and cutmix are a classifier's")
        refuse_classifier_settings(self.train, self.augment)
        if self.data.validation < self.watch.samples:
            raise ValueError(f"{self.watch.samples} samples are compared with as many of {self.data.validation} real")
        return self

    @model_validator(mode="after")
    def _critic_has_slopes(self) -> Self:
        if self.game.loss == "wasserstein" and not (self.game.penalty or self.game.clip or self.discriminator.spectral):
            raise ValueError("a Wasserstein critic needs a penalty, a clip or spectral normalisation")
        if self.discriminator.norm == "batch" and (self.game.penalty or self.game.loss == "wasserstein"):
            raise ValueError("under batch normalisation no picture has a score of its own, so its slope means nothing")
        return self

    def configs(self, classes: int) -> tuple[Any, DiscriminatorConfig]:
        """The generator's and the discriminator's, for a data set of so many classes.

        Raises:
            ValueError: the widths do not lead to the picture's size.
        """
        sizes = {
            "in_channels": self.preprocess.channels,
            "image_size": self.preprocess.shape[1],
            "num_classes": classes if self.model.conditional else 0,
        }
        generator = configure(self.model.architecture, self.model.config | sizes)
        return generator, DiscriminatorConfig(**(sizes | self.discriminator.model_dump()))
