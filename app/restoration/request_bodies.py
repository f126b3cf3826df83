"""Read the request body of `POST /denoise`: images and, optionally, a reference for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from app.errors import BadRequest, UnsupportedMediaType, VestibuleError
from app.images.large_json import ParsedJson
from app.images.uploads import (
    FILE_PART,
    FILE_SCHEMA,
    FILES_SCHEMA,
    INPUT_EXAMPLE,
    OPTIONAL_FILES_SCHEMA,
    Images,
    check_count,
    disconnect_as_bad_request,
    json_images,
    media_type,
    raw_image,
    read_files,
    read_json,
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
    content_type = media_type(request)
    references: tuple[bytes | VestibuleError | None, ...] = ()
    with disconnect_as_bad_request():
        if content_type == "multipart/form-data":
            files = await read_files(request, (FILE_PART, REFERENCE), 2 * max_images)
            items = tuple(data for name, data in files if name == FILE_PART)
            references = tuple(data for name, data in files if name == REFERENCE)
            images = Images(items, is_list=len(items) > 1)
        elif content_type == "application/json":
            images, references = await read_json(
                request, NoisyInput, INPUT_EXAMPLE, lambda body: _json_request(body, max_images)
            )
        elif content_type.startswith("image/"):
            images = raw_image(await request.body())
        else:
            raise UnsupportedMediaType("send multipart/form-data, image/* or application/json")
    if not images.items:
        raise BadRequest(f"there is no part named {FILE_PART!r}")
    if references and len(references) != len(images.items):
        raise BadRequest(f"{len(references)} references for {len(images.items)} images: send one for each, or none")
    check_count(len(images.items), max_images)
    return DenoiseRequest(images, references or (None,) * len(images.items))


def _json_request(body: ParsedJson[NoisyInput], max_images: int) -> tuple[Images, tuple[bytes | VestibuleError, ...]]:
    images = json_images(body, body.value.input, max_images)
    reference = body.value.reference
    return images, () if reference is None else json_images(body, reference, max_images).items
