"""Requests of `POST /denoise`."""

from __future__ import annotations

from app.schemas import ImageInput, ImageList


class NoisyInput(ImageInput):
    """The same with what the pictures should become, to measure against: one reference for each."""

    reference: str | ImageList | None = None
