"""Request and response schemas that several domains share; the OpenAPI document is generated from them."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from app.settings import MOST_IMAGES


class Schema(BaseModel):
    """Base of all schemas: unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class FieldError(Schema):
    """One parameter that does not fit."""

    parameter: str
    detail: str


class Problem(Schema):
    """RFC 9457 problem details."""

    type: str = Field(examples=["urn:vestibule:problem:unknown-model"])
    title: str
    status: int
    detail: str | None = None
    errors: list[FieldError] | None = None
    message: str | None = Field(
        None, exclude_if=lambda value: value is None, description="All of it in a line, under /v1: what OpenAI's show."
    )


# Each list in a request has `max_length` and `fail_fast`: without them pydantic validates every item, and creates an
# error for each invalid one, before anything else can refuse the list. Lists in responses have neither.
ImageList = Annotated[list[str], Field(max_length=MOST_IMAGES, fail_fast=True)]


class ImageInput(Schema):
    """The JSON body: one picture or a list of them, each base64 or a data URI."""

    input: str | ImageList


class Failed(Schema):
    """One picture of a list that could not be answered; its neighbours were."""

    index: int
    problem: Problem


class OpenAIRequest(Schema):
    """A request of OpenAI's API. Fields that are not known here are ignored: its clients send new ones at any time."""

    model_config = ConfigDict(extra="ignore")


class InferenceError(BaseModel):
    """What went wrong."""

    error: str


# Its component in the OpenAPI document is named after this module.
class OperatingPoint(Schema):
    """Where is decided: the false match rate, by whose count, and whether it lies beyond what was counted.

    `prior` is the share of pairs of one person for which `probability` is meant.
    """

    fmr: float
    calibration: str
    extrapolated: bool
    prior: float
