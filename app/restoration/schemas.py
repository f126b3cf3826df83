"""Requests of `POST /denoise`."""

from __future__ import annotations

from app.schemas import ImageInput, ImageList


class NoisyInput(ImageInput):
    """Images to denoise, and optionally a reference for each, to measure the result."""

    reference: str | ImageList | None = None
