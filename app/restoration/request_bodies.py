"""Read the request body of `POST /denoise`: images and, optionally, a reference for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from app.errors import BadRequest, VestibuleError
from app.images.uploads import (
    FILE_PART,
    FILE_SCHEMA,
    FILES_SCHEMA,
    OPTIONAL_FILES_SCHEMA,
    Images,
    check_count,
    read_images,
)
from app.schemas import ImageInput, ImageList

REFERENCE = "reference"


class NoisyInput(ImageInput):
    """Images to denoise, and optionally a reference for each, to measure the result."""

    reference: str | ImageList | None = None


DENOISE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": (
            "An image or a list of images: JPEG, PNG, WebP, BMP or GIF; optionally, as many references of the same "
            "sizes, to measure the result."
        ),
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": [FILE_PART],
                    "properties": {FILE_PART: FILES_SCHEMA, REFERENCE: OPTIONAL_FILES_SCHEMA},
                }
            },
            "image/*": {"schema": FILE_SCHEMA},
            "application/json": {"schema": NoisyInput.model_json_schema()},
        },
    }
}


@dataclass(frozen=True)
class DenoiseRequest:
    """Images to denoise and the reference of each, or None."""

    images: Images
    references: tuple[bytes | VestibuleError | None, ...]


async def read_denoise_request(request: Request, max_images: int) -> DenoiseRequest:
    """Return the images of a request and their references, still encoded. Large JSON is parsed in a thread.

    Raises:
        BadRequest: if the body is malformed, or references and images differ in number. BodyTooLarge, TooManyImages,
        UnsupportedMediaType.
    """
    named = await read_images(request, NoisyInput, {FILE_PART: "input", REFERENCE: "reference"}, max_images)
    if FILE_PART not in named:
        raise BadRequest(f"there is no part named {FILE_PART!r}")
    images = named[FILE_PART]
    count = len(images.items)
    references: tuple[bytes | VestibuleError | None, ...] = (
        named[REFERENCE].items if REFERENCE in named else (None,) * count
    )
    if len(references) != count:
        raise BadRequest(f"{len(references)} references for {count} images: send one for each, or none")
    check_count(count, max_images)
    return DenoiseRequest(images, references)
