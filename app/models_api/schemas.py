"""Responses of /models and /v1/models."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from app.schemas import Schema
from models.card import ModelCard, Name

ModelName = Name


class ModelSummary(Schema):
    """One row of `GET /models`."""

    name: str
    version: str
    task: str
    description: str
    license: str
    parameters: int
    classes: int
    default: bool
    loaded: bool
    memory_bytes: int = Field(description="What its loaded parts take, about.")


class ModelMemory(Schema):
    """What models take, about, in bytes."""

    used: int = Field(description="By those that are loaded.")
    leaving: int = Field(description="By those that were reloaded or evicted, and still have requests under way.")
    budget: int | None = Field(description="Beyond it the least recently used are evicted; null: there is none.")


class ModelList(Schema):
    """Every model that can be asked for."""

    data: list[ModelSummary]
    memory: ModelMemory


class OpenAIModel(Schema):
    """A model in OpenAI's form. `created` is 0: cards do not have a date."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: Literal["vestibule"] = "vestibule"


class OpenAIModelList(Schema):
    """OpenAI's list of models."""

    object: Literal["list"] = "list"
    data: list[OpenAIModel]


class ModelReloaded(Schema):
    """What became of a model whose files were read anew."""

    model: str
    change: Literal["added", "reloaded", "unchanged", "removed"]
    version: str | None = Field(description="What answers from now on; null: the model is gone.")
    previous: str | None = Field(description="What answered before; null: nothing did.")


class ModelDetail(Schema):
    """A model's card as it lies beside its weights, and how it runs here."""

    version: str
    default: bool
    loaded: bool
    memory_bytes: int
    runtime: str | None
    choosing: bool = Field(description="Whether a faster runtime is still looked for, while this one answers.")
    card: ModelCard
