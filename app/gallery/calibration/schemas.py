"""Requests and responses of calibrations on site."""

from __future__ import annotations

from pydantic import AwareDatetime, Field

from app.gallery.schemas import Key, Page
from app.schemas import Schema


class NewCalibration(Schema):
    """The body of `POST /collections/{c}/calibrations`."""

    strangers: Key = Field(
        description="A collection of the same pipeline with photos from the site's own cameras of people who are not"
        " enrolled: each subject a person. It can be erased afterwards."
    )
    mated: Key | None = Field(
        None,
        description="A collection of the same pipeline with further photos of enrolled people, under the ids that they"
        " have in the calibrated collection. With it the report has FNIR, and the probability is fitted, too.",
    )
    compare_strangers: bool = Field(
        True,
        description="Compare the strangers with each other, too. false: only with enrolled faces, if one person may be"
        " among the strangers under several ids.",
    )


class RateChange(Schema):
    """An error rate at a requested rate, by the thresholds in use before and by the new ones, each 0..1.

    `low` to `high` is a 95 % interval by a bootstrap over people. The new rates are cross-validated: fitted to the
    comparisons of one half of the strangers, and measured on the other half; null if a half is too small.
    """

    requested: float
    comparisons: int
    before: float
    before_low: float
    before_high: float
    after: float | None
    after_low: float | None
    after_high: float | None


class GroupErrors(Schema):
    """FMR at a requested rate of 0.01 of the strangers whose metadata have the `value` under the key `field`."""

    field: str
    value: str
    people: int
    comparisons: int
    before: float
    after: float | None


class CalibrationReport(Schema):
    """What a calibration changes. `fmr`: per comparison; `fpir`: per photo of a stranger, in the gallery as it is.

    `fnir`: share of the mated photos that do not match their own subject, by requested FPIR.
    """

    people: int
    photos: int
    comparisons: int
    mated: int
    fmr: list[RateChange]
    fpir: list[RateChange]
    fnir: list[RateChange]
    groups: list[GroupErrors]


class CalibrationInfo(Schema):
    """A calibration of a collection; `version` counts from 1. `in_use`: searches of the collection use its thresholds.

    A calibration of another pipeline (`fingerprint`) than the collection's cannot be used.
    """

    id: str
    version: int
    fingerprint: str
    created_at: AwareDatetime
    in_use: bool
    report: CalibrationReport


class CalibrationPage(Page[CalibrationInfo, int]):
    """A page of a collection's calibrations, oldest first; `next` is the `after` of the following page."""


class CalibrationChoice(Schema):
    """The body of `PUT /collections/{c}/calibration`."""

    id: Key | None = Field(description="An earlier calibration; null: the embedder's own.")


class CalibrationInUse(Schema):
    """The calibration that searches of the collection use; null: the embedder's own."""

    calibration: CalibrationInfo | None
