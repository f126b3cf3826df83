"""Request and response schemas that several domains share; the OpenAPI document is generated from them."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from app.settings import MOST_IMAGES


class Schema(BaseModel):
    """Base of all schemas: unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class FieldError(Schema):
    """An invalid parameter."""

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
        None, exclude_if=lambda value: value is None, description="Title and detail in one line; only under /v1."
    )


# Each list in a request has `max_length` and `fail_fast`: without them pydantic validates every item, and creates an
# error for each invalid one, before anything else can refuse the list. Lists in responses have neither.
ImageList = Annotated[list[str], Field(max_length=MOST_IMAGES, fail_fast=True)]


class ImageInput(Schema):
    """A JSON body: one image or a list of images, each base64 or a data URI."""

    input: str | ImageList


class Failed(Schema):
    """An image of a list for which there is an error in place of a result."""

    index: int
    problem: Problem


class OpenAIRequest(Schema):
    """A request of OpenAI's API. Unknown fields are ignored, because its clients add new ones at any time."""

    model_config = ConfigDict(extra="ignore")


class InferenceError(BaseModel):
    """An error of the Open Inference Protocol."""

    error: str


# Its component in the OpenAPI document is named after this module.
class OperatingPoint(Schema):
    """The operating point of a decision. `fmr`: its false match rate, by the count named in `calibration`.

    `extrapolated`: that rate is lower than any that was counted. `prior`: the share of mated pairs that `probability`
    assumes.
    """

    fmr: float
    calibration: str
    extrapolated: bool
    prior: float
