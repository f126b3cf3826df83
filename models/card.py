"""The model card, which describes a weight file: task, architecture, preprocessing, classes, metrics, origin."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from models.matching import CardModel, Matching
from models.passages import MAX_FRAMES
from models.preprocess import Preprocess
from models.registry import Task, configure, lookup
from models.rejection import Rejection
from models.tta import Tta

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
# The tasks of networks that may have a quantised network beside them.
QUANTISED_TASKS: tuple[Task, ...] = ("classify", "embed", "detect")


def refuse(*rules: tuple[bool, str]) -> None:
    """Raise ValueError with the message of the first rule (broken, message) that is broken."""
    for broken, message in rules:
        if broken:
            raise ValueError(message)


class Metric(CardModel):
    """A figure, the data it was measured on, and whether it was measured here or reported by the weights' source."""

    name: str
    value: float
    data: str
    origin: Literal["measured", "reported"] = "measured"


class Training(CardModel):
    """How the weights were trained, to reproduce it. `wall_time_s` is in seconds; `versions` are by package."""

    recipe: dict[str, Any]
    seed: int
    epochs: int
    best_epoch: int
    wall_time_s: float
    hardware: str
    processes: int = 1
    versions: dict[str, str]


class Tolerance(CardModel):
    """How much a runtime's outputs may differ from those of torch in float32.

    For logits: `top1` is the minimal share of images with the same most probable class, `probability` the maximal
    difference of a probability. For vectors: `direction` is the maximum of 1 - cosine. For maps: `maps` is the maximal
    difference of a value. For a detector with `faces`, the faces are compared instead: `faces` is the minimal share of
    images with the same faces, and `landmarks` the maximum of the 95th percentile of their landmarks' distances
    (`models.detection_agreement`).
    """

    top1: Annotated[float, Field(ge=0, le=1)] = 0.995
    probability: Annotated[float, Field(ge=0, le=1)] = 0.02
    direction: Annotated[float, Field(ge=0, le=2)] = 0.001
    maps: Annotated[float, Field(ge=0)] = 0.001
    faces: Annotated[float, Field(ge=0, le=1)] | None = None
    landmarks: Annotated[float, Field(ge=0)] = 0.05


class Int8(CardModel):
    """The quantised network beside the weights, which OpenVINO runs with 8-bit integers (`models.quantisation`).

    `sha256` is that of its two files; `images` is the number of images that determined the ranges of its values. It was
    compared with torch on `compared` other images: `agreement` is a classifier's share of images with the same most
    probable class, an embedder's least cosine of two vectors of one image, and a detector's share of images with the
    same faces. `tolerance` is the tolerance of this runtime alone.
    """

    sha256: Sha256
    images: Annotated[int, Field(ge=1)]
    compared: Annotated[int, Field(ge=1)]
    agreement: Annotated[float, Field(ge=0, le=1)]
    tolerance: Tolerance


class Int8Description(CardModel):
    """The parts of an imported model's card that its import does not write, in a file beside the quantised network.

    They are the network's description and the figures that were measured here. An import adds them to the card that it
    writes if `weights` is the sha256 of the weights that it writes.
    """

    weights: Sha256
    int8: Int8
    metrics: tuple[Metric, ...] = ()


class ModelCard(CardModel):
    """The card of a served model. `sha256` is that of its `model.safetensors`.

    `matching` interprets the similarity of two faces; `passages` has the same for a face and the fused vector of 1, 2,
    3, ... frames of a passage (`models.passages`), empty without that calibration. `rejection` decides whether an image
    shows none of a classifier's classes; None without that calibration. `int8` describes the quantised network of a
    classifier, an embedder or a detector; None if there is none.
    """

    schema_version: Literal[1] = 1
    name: Name
    description: str
    task: Task
    architecture: str
    config: dict[str, Any]
    preprocess: Preprocess
    classes: tuple[str, ...] = ()
    temperature: Annotated[float, Field(gt=0)] = 1.0
    tta: Tta = "none"
    matching: Matching | None = None
    passages: tuple[Matching, ...] = ()
    rejection: Rejection | None = None
    tolerance: Tolerance = Tolerance()
    int8: Int8 | None = None
    parameters: Annotated[int, Field(ge=0)]
    metrics: tuple[Metric, ...] = ()
    training: Training | None = None
    data: str
    source: str
    license: str
    sha256: Sha256

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        config = configure(self.architecture, self.config)
        task, classes = lookup(self.architecture).task, getattr(config, "num_classes", 0)
        channels = self.preprocess.channels
        refuse(
            (self.task != task, f"{self.architecture} is built to {task}, not to {self.task}"),
            (len(self.classes) != classes, f"{len(self.classes)} class names for a network with {classes} classes"),
            (
                self.task != "classify" and self.temperature != 1,
                f"a temperature is a classifier's, not that of a network to {self.task}",
            ),
            (
                self.task != "classify" and self.rejection is not None,
                f"rejection is a classifier's, not that of a network to {self.task}",
            ),
            (
                self.task not in QUANTISED_TASKS and self.int8 is not None,
                f"only networks to {' or '.join(QUANTISED_TASKS)} are served quantised, not one to {self.task}",
            ),
            (
                self.task != "embed" and self.matching is not None,
                f"matching is an embedder's, not that of a network to {self.task}",
            ),
            (
                bool(self.passages) and (self.matching is None or len(self.passages) > MAX_FRAMES),
                f"passages need matching and are calibrated for at most {MAX_FRAMES} frames",
            ),
            (
                channels != config.in_channels,
                f"preprocessing gives {channels} channels, the network takes {config.in_channels}",
            ),
        )
        return self

    @property
    def version(self) -> str:
        """The first twelve hex digits of the weights' hash."""
        return self.sha256[:12]

    @property
    def int8_description(self) -> Int8Description | None:
        """The description of an imported model with a quantised network; None for another model or without one."""
        if self.int8 is None or self.training is not None:
            return None
        metrics = tuple(metric for metric in self.metrics if metric.origin == "measured")
        return Int8Description(weights=self.sha256, int8=self.int8, metrics=metrics)

    @property
    def has_int8_vectors(self) -> bool:
        """Whether the vectors of an embedder's quantised network differ from torch's by more than `tolerance`."""
        return self.task == "embed" and self.int8 is not None and 1 - self.int8.agreement > self.tolerance.direction
