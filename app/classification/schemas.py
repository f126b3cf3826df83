"""Requests and responses of `POST /classify`."""

from __future__ import annotations

import operator
from functools import partial
from typing import Annotated

from pydantic import Field

from app.schemas import Failed, Schema
from models.rejection import LARGEST_SHARE, SMALLEST_SHARE


class ClassifyParams(Schema):
    """The query of `POST /classify`."""

    model: str | None = Field(None, description="A name from /models; by default the service's default classifier.")
    top_k: Annotated[int, Field(ge=1, le=1000, description="How many classes to return, most probable first.")] = 5
    tta: bool = Field(False, description="Use test-time augmentation, if the model's card has one.")
    reject: Annotated[
        float | None,
        Field(
            ge=SMALLEST_SHARE,
            le=LARGEST_SHARE,
            description="Say of each image whether it is `rejected` as one of none of the model's classes. The value is"
            " the share of images of its classes that may be rejected by mistake; the model's card needs `rejection`.",
        ),
    ] = None
    sequence: bool = Field(
        False, description="Read a string of digits with a model of the ten digits; `top_k` is ignored."
    )


class Prediction(Schema):
    """A class and its confidence, 0..1, after temperature scaling."""

    class_: str = Field(alias="class")
    class_id: int
    confidence: float


class Classified(Schema):
    """The result for one image."""

    index: int
    predictions: list[Prediction]
    rejected: bool | None = Field(
        None,
        exclude_if=partial(operator.is_, None),
        description="Whether the image shows none of the model's classes; only with `reject`. The predictions then are"
        " the classes that it resembles most.",
    )


class Digit(Prediction):
    """A digit of a string; `box` is (x0, y0, x1, y1) in pixels of the upright image, x1 and y1 exclusive."""

    box: tuple[int, int, int, int]


class DigitString(Schema):
    """The string of digits in one image, empty if there are none.

    A digit's confidence is conditional on its box; the string's, 0..1, is over all segmentations and readings.
    """

    index: int
    sequence: str = Field(examples=["4871"])
    digits: list[Digit]
    confidence: float


class ClassifyResponse(Schema):
    """The results in the order of the request's images."""

    model: str
    version: str
    data: list[Classified | DigitString | Failed]
