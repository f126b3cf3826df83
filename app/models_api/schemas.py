"""Responses of /models and /v1/models."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from app.schemas import Schema
from models.card import ModelCard, Name

ModelName = Name


class ModelSummary(Schema):
    """A model in the list of `GET /models`."""

    name: str
    version: str
    task: str
    description: str
    license: str
    parameters: int
    classes: int
    default: bool
    loaded: bool
    memory_bytes: int = Field(description="Approximate memory of its loaded submodels.")


class ModelMemory(Schema):
    """The approximate memory of models in bytes."""

    used: int = Field(description="Memory of loaded models.")
    leaving: int = Field(description="Memory of models that were reloaded or evicted but still have requests.")
    budget: int | None = Field(description="Above it the least recently used models are evicted; null: no limit.")


class ModelList(Schema):
    """The served models and their memory."""

    data: list[ModelSummary]
    memory: ModelMemory


class OpenAIModel(Schema):
    """A model in OpenAI's format. `created` is 0: cards have no date."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: Literal["vestibule"] = "vestibule"


class OpenAIModelList(Schema):
    """A list of models in OpenAI's format."""

    object: Literal["list"] = "list"
    data: list[OpenAIModel]


class ModelReloaded(Schema):
    """The result of reloading a model."""

    model: str
    change: Literal["added", "reloaded", "unchanged", "removed"]
    version: str | None = Field(description="The version served from now on; null: the model was removed.")
    previous: str | None = Field(description="The version served before; null: the model is new.")


class ModelDetail(Schema):
    """A model's card, and how the model runs in this process."""

    version: str
    default: bool
    loaded: bool
    memory_bytes: int
    runtime: str | None
    runtimes: dict[str, str] = Field(
        description="The runtimes of its loaded submodels by their names. An empty name: the whole network; `int8`: the"
        " network for collections that allow 8-bit vectors."
    )
    choosing: bool = Field(description="Whether a faster runtime is being selected while this one serves.")
    card: ModelCard
