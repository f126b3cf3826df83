"""Requests and responses of `POST /classify`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from app.schemas import Failed, Schema


class ClassifyParams(Schema):
    """The query of `POST /classify`."""

    model: str | None = Field(None, description="A name from /models; by default the service's default classifier.")
    top_k: Annotated[int, Field(ge=1, le=1000, description="How many classes to return, most probable first.")] = 5
    tta: bool = Field(False, description="Use test-time augmentation, if the model's card has one.")
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
