"""The model card: everything about a weight file that its numbers do not say. Weights never travel without it."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from models.matching import Matching
from models.preprocess import Preprocess
from models.registry import Task, configure, lookup
from models.tta import Tta

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class _Part(BaseModel):
    # JSON has no NaN: pydantic would write null, and the card could not be read again.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Metric(_Part):
    """One figure, on which data it was taken, and who took it: measured here, or reported by the weights' source."""

    name: str
    value: float
    data: str
    origin: Literal["measured", "reported"] = "measured"


class Training(_Part):
    """What it took, so that somebody else can have it again. Seconds of wall time; versions by package."""

    recipe: dict[str, Any]
    seed: int
    epochs: int
    best_epoch: int
    wall_time_s: float
    hardware: str
    processes: int = 1
    versions: dict[str, str]


class Tolerance(_Part):
    """How far a runtime's answers may be from those of torch in float32 before it does not serve.

    Of logits: `top1` is the share of pictures whose likeliest class is the same, at least; `probability` how far a
    class's may be off. Of vectors: `direction` is how far 1 - cosine may be. Of maps: `maps` is how far a value may be
    off.
    """

    top1: Annotated[float, Field(ge=0, le=1)] = 0.995
    probability: Annotated[float, Field(ge=0, le=1)] = 0.02
    direction: Annotated[float, Field(ge=0, le=2)] = 0.001
    maps: Annotated[float, Field(ge=0)] = 0.001


class ModelCard(_Part):
    """One served model. `sha256` binds the card to its `model.safetensors`."""

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
    tolerance: Tolerance = Tolerance()
    parameters: Annotated[int, Field(ge=0)]
    metrics: tuple[Metric, ...] = ()
    training: Training | None = None
    data: str
    source: str
    license: str
    sha256: Sha256

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        config = configure(self.architecture, self.config)
        if self.task != lookup(self.architecture).task:
            raise ValueError(f"{self.architecture} is built to {lookup(self.architecture).task}, not to {self.task}")
        classes = getattr(config, "num_classes", 0)
        if len(self.classes) != classes:
            raise ValueError(f"{len(self.classes)} class names for a network with {classes} classes")
        if self.task != "classify" and self.temperature != 1:
            raise ValueError(f"a temperature is a classifier's, not that of a network to {self.task}")
        if self.task != "embed" and self.matching:
            raise ValueError(f"matching is an embedder's, not that of a network to {self.task}")
        if self.preprocess.channels != config.in_channels:
            raise ValueError(f"preprocessing makes {self.preprocess.channels} channels, not {config.in_channels}")
        return self

    @property
    def version(self) -> str:
        """Twelve hex digits of the weights' hash: two files with one version are one file."""
        return self.sha256[:12]
