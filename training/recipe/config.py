"""Recipes: TOML files with all settings of a training run. The sections that recipes share, and the classifier's."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from models.card import Name, refuse
from models.preprocess import Preprocess
from models.registry import configure
from training.core.errors import DataError, RecipeError

Fraction = Annotated[float, Field(ge=0, lt=1)]
NotNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
# The augmentations of `training.datasets.augment.augment_differentiably`.
Differentiable = Literal["colour", "translation", "cutout"]


class Section(BaseModel):
    """A section of a recipe; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelSection(Section):
    """A name of the registry and changes to its config. Class count and channels follow from data and `preprocess`."""

    architecture: str
    config: dict[str, Any] = {}

    @model_validator(mode="after")
    def _exists(self) -> Self:
        configure(self.architecture, self.config)
        return self


class ClassifyModelSection(ModelSection):
    """A `ModelSection`, and optionally a folder `start`, such as "weights/efficientnet-lite0", of a trained model.

    Training then starts from that model's features, and `config` contains changes to the config of its card. `freeze`
    keeps the features, so that only the head is trained.
    """

    start: str = ""
    freeze: bool = False


class DataSection(Section):
    """A folder under VESTIBULE_DATASETS, and the number of its training images that are used for validation.

    `train` is the largest number of other images to train on, each class keeping its share; 0 for all.
    """

    name: Name
    validation: Annotated[int, Field(ge=1)]
    train: Annotated[int, Field(ge=0)] = 0


class CameraSection(Section):
    """Degradations of a door camera (`training.datasets.degradations`), each on a share `chance` of the images.

    `smallest` is the smallest side in pixels to which an image is reduced before it is enlarged again, `defocus` the
    largest standard deviation of a Gaussian blur and `motion` the longest path of a motion blur, both in pixels;
    `light` the darkest factor, `noise` the largest standard deviation of noise (of 255), `jpeg` the lowest quality.
    `occlude` covers eyes or mouth of aligned faces. The defaults change nothing.
    """

    chance: Annotated[float, Field(ge=0, le=1)] = 0.0
    smallest: Annotated[int, Field(ge=0)] = 0
    defocus: NotNegative = 0.0
    motion: NotNegative = 0.0
    light: Annotated[float, Field(gt=0, le=1)] = 1.0
    noise: NotNegative = 0.0
    jpeg: Annotated[int, Field(ge=1, le=100)] = 100
    grey: bool = False
    occlude: bool = False


class AugmentSection(Section):
    """The augmentations of `training.datasets.augment`; the defaults change nothing.

    `flip = true` mirrors each image with probability 1/2. With `flip = "alternating"`, the first epoch mirrors a random
    half of the images, and every later epoch mirrors those that the epoch before it did not; classifiers only.
    `crop_fill` is the padding of `crop`: black, or the image reflected at its edges.
    `rotate` and `shear` are in degrees to either side, `translate` in fractions of a side, `scale` in factors of size;
    `crop` is in pixels of padding, `cutout` the side of its square in pixels; `mixup` and `cutmix` are the alpha of
    their Beta distribution; `colour_pca` is the standard deviation, 0.1 in AlexNet's paper; `rand_augment` is the
    number of operations and their magnitude, 0..30.
    """

    rotate: Annotated[float, Field(ge=0, le=180)] = 0.0
    translate: Fraction = 0.0
    scale: tuple[Positive, Positive] = (1.0, 1.0)
    shear: Annotated[float, Field(ge=0, le=60)] = 0.0
    crop: Annotated[int, Field(ge=0)] = 0
    crop_fill: Literal["black", "reflect"] = "black"
    flip: bool | Literal["alternating"] = False
    rand_augment: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0, le=30)]] = (0, 0)
    colour_pca: NotNegative = 0.0
    cutout: Annotated[int, Field(ge=0)] = 0
    mixup: NotNegative = 0.0
    cutmix: NotNegative = 0.0
    camera: CameraSection = CameraSection()


class TrainSection(Section):
    """Optimizer, schedule and length of the training.

    `batch_size` is the total of all processes; `momentum` is also AdamW's first beta, `second_momentum` its second.
    `warmup_epochs` is the length of the rise to `lr`: linear before `constant` and `cosine`, the rising part of
    `onecycle`. `plateau` divides the rate by ten after `patience` epochs without progress. `ema` is the decay of the
    averaged weights, which are validated and exported; 0 for none. `checkpoint_steps` is the number of steps between
    writes of last.pt within an epoch; 0 for only at its end. `auxiliary_weight` is the weight of each auxiliary
    classifier's loss. `whiten` initialises a classifier's first convolution by `training.core.initialise.whiten`.
    `precision = "bf16"` means float32 on a CPU without bf16 instructions, where bf16 would be much slower.

    `muon` updates the filters of convolutions by `training.core.muon.Muon` with `filter_lr` and `filter_momentum`, and
    the rest as `sgd`; `bias_lr` is then the rate of the biases of convolutions and normalisations (0: `lr`), and
    `weight_decay` shrinks all but the filters by lr * weight_decay per step. `linear` decreases linearly to 0.
    `freeze_whitening` keeps the filters of `whiten` (not their biases). `identity` initialises the later convolutions
    by `training.core.initialise.initialise_as_identity`. `norm_momentum` is the weight of the newest batch in the
    running statistics of batch normalisations, and `freeze_gains` keeps their gains at 1.
    """

    epochs: Annotated[int, Field(ge=1)]
    batch_size: Annotated[int, Field(ge=1)]
    optimizer: Literal["sgd", "adamw", "muon"] = "sgd"
    lr: Positive
    bias_lr: NotNegative = 0.0
    filter_lr: NotNegative = 0.0
    filter_momentum: Fraction = 0.6
    momentum: Fraction = 0.9
    second_momentum: Fraction = 0.999
    nesterov: bool = False
    weight_decay: NotNegative = 0.0
    schedule: Literal["constant", "cosine", "linear", "onecycle", "plateau"] = "cosine"
    warmup_epochs: NotNegative = 0.0
    patience: Annotated[int, Field(ge=0)] = 5
    label_smoothing: Fraction = 0.0
    auxiliary_weight: NotNegative = 0.3
    ema: Fraction = 0.0
    precision: Literal["no", "bf16", "fp16"] = "no"
    channels_last: bool = False
    clip_norm: NotNegative = 0.0
    whiten: bool = False
    freeze_whitening: bool = False
    identity: bool = False
    norm_momentum: Annotated[float, Field(gt=0, le=1)] = 0.1
    freeze_gains: bool = False
    checkpoint_steps: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        muon = self.optimizer == "muon"
        refuse(
            (
                self.warmup_epochs >= self.epochs,
                f"warmup_epochs ({self.warmup_epochs}) must be below epochs ({self.epochs})",
            ),
            (self.schedule == "plateau" and self.warmup_epochs > 0, "the plateau schedule has no warm-up"),
            (muon != (self.filter_lr > 0), "muon needs a filter_lr, and no other optimizer has one"),
            (self.bias_lr > 0 and not muon, "bias_lr is a setting of muon"),
            (
                self.freeze_whitening and not self.whiten,
                "freeze_whitening keeps the filters of whiten, and whiten is false",
            ),
        )
        return self


def refuse_classifier_settings(train: TrainSection, augment: AugmentSection | None = None) -> None:
    """Raise ValueError for settings that only `training.classify` supports, so that no other script ignores them."""
    augment = augment or AugmentSection()
    settings = {
        "train.whiten": train.whiten,
        "train.identity": train.identity,
        "train.norm_momentum": train.norm_momentum != TrainSection.model_fields["norm_momentum"].default,
        "train.freeze_gains": train.freeze_gains,
        'augment.flip = "alternating"': augment.flip == "alternating",
        "augment.mixup": augment.mixup,
        "augment.cutmix": augment.cutmix,
    }
    chosen = ", ".join(name for name, is_set in settings.items() if is_set)
    refuse((chosen != "", f"only a classifier's recipe has {chosen}"))


class TeacherSection(Section):
    """The names of classifiers, trained or shipped (`exported`), whose mean logits are learnt besides the labels.

    `weight` is the share of their loss, the rest is that of the labels; both softmaxes divide by `temperature`
    (`training.losses.soft_targets`).
    """

    models: tuple[str, ...] = ()
    weight: Annotated[float, Field(gt=0, le=1)] = 0.9
    temperature: Positive = 4.0


class CardSection(Section):
    """Fields of the model card that cannot be computed."""

    data: str
    source: str
    license: str


class ImageRecipe(Section):
    """The recipe of a network for images. `name` is that of the run's folder and of the exported model."""

    name: Name
    description: str
    seed: Annotated[int, Field(ge=0)] = 0
    model: Any
    data: Any
    preprocess: Preprocess
    augment: AugmentSection = AugmentSection()
    train: TrainSection
    card: CardSection


class Recipe(ImageRecipe):
    """The recipe of a classifier."""

    model: ClassifyModelSection
    data: DataSection
    teacher: TeacherSection = TeacherSection()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        side, augment = min(self.preprocess.shape[1:]), self.augment
        refuse(
            (self.model.freeze and not self.model.start, "freeze keeps the features of start, and start is not set"),
            (
                self.model.start != "" and (self.train.whiten or self.train.identity),
                "model.start and train.whiten or train.identity exclude each other",
            ),
            (
                augment.crop_fill == "reflect" and augment.crop >= side,
                f"a crop of {augment.crop} pixels cannot be reflected in an image of {side}",
            ),
        )
        return self


AnyRecipe = TypeVar("AnyRecipe", bound=Section)


def read_recipe(form: type[AnyRecipe], path: Path, overrides: Sequence[str] = ()) -> AnyRecipe:
    """Read the recipe in `path` and apply `overrides`, each as `train.epochs=1` (the value in TOML, or bare text).

    Raises:
        RecipeError: the file is unreadable or not TOML; an override without "="; unknown keys or invalid values.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path}: {error}") from error
    for override in overrides:
        _override(content, override)
    try:
        return form.model_validate(content)
    except ValidationError as error:
        raise RecipeError(f"{path}: " + "; ".join(_explain(dict(e)) for e in error.errors())) from error


def _override(content: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    *sections, key = name.strip().split(".")
    if not equals or not key:
        raise RecipeError(f"override {override!r} is not of the form section.key=value")
    for section in sections:
        content = content.setdefault(section, {})
        if not isinstance(content, dict):
            raise RecipeError(f"override {override!r}: {section} is not a section")
    try:
        content[key] = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        content[key] = text


def _explain(error: dict[str, Any]) -> str:
    key = ".".join(str(part) for part in error["loc"])
    return f"unknown key {key}" if error["type"] == "extra_forbidden" else f"{key}: {error['msg']}"


def check_name(name: str) -> str:
    """Return the name of a data set or model.

    Raises:
        DataError: the name is not valid.
    """
    try:
        return TypeAdapter(Name).validate_python(name)
    except ValidationError as error:
        raise DataError(f"{name!r} is not a valid name: at most 64 of a-z, 0-9, . _ -") from error


def datasets_folder() -> Path:
    """Return the folder of data sets: VESTIBULE_DATASETS, by default ./data."""
    return Path(os.environ.get("VESTIBULE_DATASETS") or "data")


def runs_folder() -> Path:
    """Return the folder of runs and decoded data: VESTIBULE_RUNS, by default ./runs."""
    return Path(os.environ.get("VESTIBULE_RUNS") or "runs")


def weights_folder() -> Path:
    """Return the folder of shipped models: VESTIBULE_WEIGHTS, by default ./weights."""
    return Path(os.environ.get("VESTIBULE_WEIGHTS") or "weights")


def exported(name: str) -> Path:
    """Return the folder of a trained model: its run's export, or else the shipped weights of that name."""
    run = runs_folder() / name / "export" / name
    return run if run.is_dir() else weights_folder() / name


def teacher_files(name: str, dataset: str) -> tuple[Path, Path]:
    """Return two possible paths of a teacher's vectors for a data set: from `training.teach`, and beside the data."""
    return runs_folder() / "teachers" / f"{name}.npy", datasets_folder() / name / f"{dataset}-vectors.npy"
