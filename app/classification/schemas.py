"""Requests and responses of `POST /classify`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from app.schemas import Failed, Schema


class ClassifyParams(Schema):
    """The query of `POST /classify`."""

    model: str | None = Field(None, description="A name from /models; left out: the service's default classifier.")
    top_k: Annotated[int, Field(ge=1, le=1000, description="How many classes to name, the likeliest first.")] = 5
    tta: bool = Field(False, description="Test-time augmentation, where the model's card has one.")
    sequence: bool = Field(
        False, description="Read a string of digits, with a model of the ten digits; `top_k` has no meaning then."
    )


class Prediction(Schema):
    """One class and how sure the model is of it, 0..1, after temperature scaling."""

    class_: str = Field(alias="class")
    class_id: int
    confidence: float


class Classified(Schema):
    """The answer for one picture."""

    index: int
    predictions: list[Prediction]


class Digit(Prediction):
    """One digit of a string; `box` is (x0, y0, x1, y1) in the upright picture's pixels, x1 and y1 exclusive."""

    box: tuple[int, int, int, int]


class DigitString(Schema):
    """The string of digits in one picture, empty where there is no ink.

    A digit's confidence takes its box for granted; the string's, 0..1, is over all ways to cut and read the picture.
    """

    index: int
    sequence: str = Field(examples=["4871"])
    digits: list[Digit]
    confidence: float


class ClassifyResponse(Schema):
    """The pictures in the order they were sent."""

    model: str
    version: str
    data: list[Classified | DigitString | Failed]
