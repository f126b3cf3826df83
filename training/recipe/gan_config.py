"""Recipes of adversarial networks; see `training.recipe.config`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from models.card import refuse
from models.gan import DiscriminatorConfig, Norm
from models.registry import configure
from training.losses.adversarial import Adversarial
from training.recipe.config import (
    Differentiable,
    Fraction,
    ImageRecipe,
    NotNegative,
    Positive,
    Section,
    refuse_classifier_settings,
)
from training.recipe.generative_config import ConditionalSection, FeaturesSection, PicturesSection

GENERATORS = ("gan", "wgan", "fastgan")


class DiscriminatorSection(Section):
    """See `models.gan.DiscriminatorConfig`; the image sizes are the generator's.

    With a section `features`, `projection` and `widths` are the channels of a
    `models.projected_gan.ProjectedDiscriminator`, and the other settings have no effect.
    """

    widths: tuple[int, ...] = (64, 128)
    norm: Norm = "batch"
    spectral: bool = False
    projection: Annotated[int, Field(ge=1)] = 32


class GameSection(Section):
    """The adversarial loss and the ratio of the two networks' steps.

    `turns` is the number of steps of the discriminator, each on new images, before one of the generator; `rate` is its
    learning rate as a multiple of the generator's. The slope of a Wasserstein critic is limited by a gradient penalty
    of weight `penalty`, by `clip`, the largest absolute value of a weight, or by spectral normalisation; 0 disables
    them. With `penalty_every` = n only every n-th step of the critic has the penalty, with n times the weight (Karras
    et al., "Analyzing and Improving the Image Quality of StyleGAN", CVPR 2020). `augment` lists differentiable
    augmentations of both networks' images (`training.datasets.augment.augment_differentiably`).
    """

    loss: Adversarial = "non-saturating"
    turns: Annotated[int, Field(ge=1)] = 1
    rate: Positive = 1.0
    penalty: NotNegative = 0.0
    penalty_every: Annotated[int, Field(ge=1)] = 1
    clip: NotNegative = 0.0
    augment: tuple[Differentiable, ...] = ()


class AnchorSection(Section):
    """Keeps the images near those that a trained generator draws of the same latents, see `training.losses.anchor`.

    `model` is its name (`exported`). Both images are reduced to `side` pixels; `weight` is that of their mean squared
    distance, on the scale -1..1, in the generator's loss. In the first `copy_steps` steps that distance, of the whole
    images, is the entire loss.
    """

    model: str
    side: Annotated[int, Field(ge=1)] = 8
    weight: Positive = 1.0
    copy_steps: Annotated[int, Field(ge=0)] = 0


class WatchSection(Section):
    """When a run counts as collapsed, see `training.metrics.gan_monitor`.

    `extractor` is the weights folder of a classifier or an embedder, in whose features `samples` generated images are
    compared with as many real ones. After the first `grace` epochs the run is stopped if the generator draws less than
    a share `coverage` of the classes of the real images, or less than a share `modes_covered` of `modes` groups of real
    images, or if the mean distance between images of a class is less than `diversity` times that of real ones.
    `sheet_steps` is the number of steps between sheets of samples; 0 for only at the end of an epoch.
    """

    extractor: Path
    samples: Annotated[int, Field(ge=100)] = 2000
    modes: Annotated[int, Field(ge=2)] = 50
    grace: Annotated[int, Field(ge=0)] = 1
    coverage: Fraction = 0.8
    modes_covered: Fraction = 0.5
    diversity: Fraction = 0.5
    sheet_steps: Annotated[int, Field(ge=0)] = 0


class GanRecipe(ImageRecipe):
    """The recipe of a generator and its discriminator; `train.ema` applies to the generator.

    With `features`, the discriminator distinguishes the feature maps of a frozen network instead of pixels.
    """

    model: ConditionalSection
    discriminator: DiscriminatorSection = DiscriminatorSection()
    data: PicturesSection
    features: FeaturesSection | None = None
    anchor: AnchorSection | None = None
    game: GameSection
    watch: WatchSection

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        game, wasserstein = self.game, self.game.loss == "wasserstein"
        refuse(
            (
                self.model.architecture not in GENERATORS,
                f"{self.model.architecture} is not an adversarial generator: {', '.join(GENERATORS)}",
            ),
            (
                self.features is not None and (self.model.conditional or game.penalty > 0 or wasserstein),
                "a discriminator of features takes no labels, and its loss is a cross-entropy or hinge without penalty",
            ),
            (
                self.features is not None and self.features.folder == self.watch.extractor,
                "the extractor of watch must not be the network whose features the discriminator sees",
            ),
            (
                game.penalty > 0 and game.augment != (),
                "the penalty limits the slope at images that are not augmented: no game.augment",
            ),
            # The range of the generator's last layer.
            (
                {*self.preprocess.mean, *self.preprocess.std} != {127.5},
                "the images must be in -1..1: mean 127.5, std 127.5",
            ),
            (
                self.data.validation < self.watch.samples,
                f"{self.watch.samples} samples need as many validation images, not {self.data.validation}",
            ),
            (
                wasserstein and not (game.penalty or game.clip or self.discriminator.spectral),
                "a Wasserstein critic needs a penalty, a clip or spectral normalisation",
            ),
            (
                self.discriminator.norm == "batch" and (game.penalty > 0 or wasserstein),
                "with batch normalisation a score depends on the whole batch, so the critic's slope is undefined",
            ),
        )
        refuse_classifier_settings(self.train, self.augment)
        return self

    def configs(self, classes: int) -> tuple[Any, DiscriminatorConfig]:
        """Return the configs of generator and discriminator of pixels for a data set of `classes` classes.

        Raises:
            ValueError: the widths do not lead to the image size.
        """
        sizes = {
            "in_channels": self.preprocess.channels,
            "image_size": self.preprocess.shape[1],
            "num_classes": classes if self.model.conditional else 0,
        }
        generator = configure(self.model.architecture, self.model.config | sizes)
        return generator, DiscriminatorConfig(**(sizes | self.discriminator.model_dump(exclude={"projection"})))
