"""Recipes of autoencoders, VAEs and denoisers; see `training.recipe.config`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from models.card import Name, refuse
from models.registry import configure, lookup
from training.losses.generative import Distance
from training.recipe.config import (
    ImageRecipe,
    ModelSection,
    NotNegative,
    Positive,
    Section,
    refuse_classifier_settings,
)

Grey = Annotated[float, Field(ge=0, le=255)]


class ConditionalSection(ModelSection):
    """As `ModelSection`; a `conditional` network gets the data set's labels."""

    conditional: bool = False


class PicturesSection(Section):
    """A data set under VESTIBULE_DATASETS, and the size of its images.

    With `identities` the splits are those of `training.datasets.faces`, and `validation` images of the calibration
    split are validated on; otherwise as many of the training images. `size` is the side to which images are decoded, 0
    for the recipe's; `crop` the side of a random crop to train on, 0 for the whole image; `batch_size` is the total of
    all processes, 0 for the recipe's.
    """

    name: Name
    validation: Annotated[int, Field(ge=1)]
    identities: bool = False
    size: Annotated[int, Field(ge=0, le=4096)] = 0
    crop: Annotated[int, Field(ge=0)] = 0
    batch_size: Annotated[int, Field(ge=0)] = 0


class FeaturesSection(Section):
    """Feature maps of a frozen network for a loss, see `training.losses.feature_maps`.

    `folder` has the network's weights; the maps are outputs of the layers `taps` of its `features`, in ascending order,
    for images enlarged or reduced to `side` pixels.
    """

    folder: Path
    taps: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
    side: Annotated[int, Field(ge=8, le=512)]

    @model_validator(mode="after")
    def _is_ascending(self) -> Self:
        refuse((list(self.taps) != sorted(set(self.taps)), f"the taps {list(self.taps)} are not in ascending order"))
        return self


class CameraNoiseSection(Section):
    """Photos as cameras store them (`training.datasets.camera_noise`): the fraction `share` of the images, without the
    white noise of the others.

    Each image has its own strengths, up to these: `blur`, the standard deviation of a Gaussian blur in pixels; noise
    with a variance of `shot` times the value plus `read` squared, on the 0..255 scale; and for half of the images JPEG
    with a quality of at least `jpeg`.
    """

    share: Annotated[float, Field(ge=0, le=1)] = 0.0
    blur: NotNegative = 0.0
    shot: NotNegative = 0.0
    read: NotNegative = 0.0
    jpeg: Annotated[int, Field(ge=1, le=95)] = 95


class NoiseSection(Section):
    """White Gaussian noise on a denoiser's inputs; standard deviations are on the 0..255 scale.

    The standard deviation of each image is uniform in `sigma`. A share `clipped` of the images are clipped to 0..255
    afterwards, as in image files; the others are not, as in papers. `validation` lists the noise strengths that are
    measured, without clipping. With `camera`, photos with a camera's faults are measured, too.
    """

    sigma: tuple[Grey, Grey]
    clipped: Annotated[float, Field(ge=0, le=1)] = 0.5
    validation: Annotated[tuple[Positive, ...], Field(min_length=1)]
    camera: CameraNoiseSection = CameraNoiseSection()


class RestoreSection(Section):
    """The loss: `distance` for networks that are not variational, the ELBO for VAEs.

    `beta` is the weight of the KL term, which rises from 0 during the first `beta_epochs`. `perceptual` is the weight
    of the perceptual distance of a VAE's reconstructions, in nats per pixel and channel.
    """

    distance: Distance = "psnr"
    beta: Positive = 1.0
    beta_epochs: NotNegative = 0.0
    perceptual: NotNegative = 0.0


class AutoencodeRecipe(ImageRecipe):
    """The recipe of an autoencoder, VAE or denoiser. Several data sets are used in turn, batch by batch.

    `features` are the maps of the perceptual distance.
    """

    model: ConditionalSection
    data: Annotated[tuple[PicturesSection, ...], Field(min_length=1)]
    noise: NoiseSection | None = None
    features: FeaturesSection | None = None
    loss: RestoreSection = RestoreSection()

    @property
    def task(self) -> str:
        """The task of the architecture."""
        return lookup(self.model.architecture).task

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        refuse(
            (
                self.task not in {"reconstruct", "generate", "denoise"},
                f"{self.model.architecture} is built to {self.task}; this script trains reconstruct, generate, denoise",
            ),
            (
                (self.task == "denoise") != (self.noise is not None),
                "the section noise is required to denoise, and not allowed otherwise",
            ),
            (
                self.noise is not None and self.noise.sigma != tuple(sorted(self.noise.sigma)),
                "noise.sigma is not (low, high)",
            ),
            (
                (self.features is not None) != (self.loss.perceptual > 0),
                "the section features is required by loss.perceptual, and not allowed otherwise",
            ),
            (
                self.features is not None and self.model.architecture not in {"vae", "vae-denoiser"},
                f"the perceptual loss is for VAEs, not for {self.model.architecture}",
            ),
            (
                {*self.preprocess.mean} != {0.0} or {*self.preprocess.std} != {255.0},
                "the images must be in 0..1: mean 0, std 255",
            ),
            (
                self.preprocess.fit == "within" and not all(section.size for section in self.data),
                "images of a batch must have one size: with fit within, each data set needs a size",
            ),
            (
                self.model.conditional and len(self.data) > 1,
                "a conditional network needs the labels of exactly one data set",
            ),
        )
        refuse_classifier_settings(self.train, self.augment)
        return self

    def config(self, classes: int) -> Any:
        """Return the network's config for a data set of `classes` classes; its image size is the side of the crops."""
        first = self.data[0]
        side = first.crop or first.size or self.preprocess.shape[1]
        sizes = {"in_channels": self.preprocess.channels, "image_size": side}
        labels = {"num_classes": classes} if self.model.conditional else {}
        return configure(self.model.architecture, self.model.config | sizes | labels)
