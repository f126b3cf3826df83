"""Read the request bodies of face routes: a pair of images, and OpenAI's request for embeddings."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request

from app.errors import BadRequest, UnsupportedMediaType
from app.faces.schemas import EmbeddingsRequest, PicturePair
from app.images.uploads import (
    FILE_SCHEMA,
    INPUT_EXAMPLE,
    Images,
    disconnect_as_bad_request,
    json_images,
    media_type,
    read_files,
    read_json,
)

PAIR = ("source", "target")

PAIR_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "Two images: JPEG, PNG, WebP, BMP or GIF.",
        "content": {
            "multipart/form-data": {
                "schema": {"type": "object", "required": list(PAIR), "properties": dict.fromkeys(PAIR, FILE_SCHEMA)}
            },
            "application/json": {"schema": PicturePair.model_json_schema()},
        },
    }
}


EMBEDDINGS_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": EmbeddingsRequest.model_json_schema()}},
    }
}


async def read_pair(request: Request) -> tuple[bytes, bytes]:
    """Return the source and the target image of a request, still encoded. Large JSON is parsed in a thread.

    Raises:
        BadRequest: if the body is malformed or lacks an image. BodyTooLarge, UnsupportedMediaType.
    """
    content_type = media_type(request)
    with disconnect_as_bad_request():
        if content_type == "multipart/form-data":
            files = dict(await read_files(request, PAIR, len(PAIR)))
            if len(files) != len(PAIR):
                raise BadRequest("send one part named 'source' and one named 'target'")
            return files["source"], files["target"]
        if content_type == "application/json":
            return await read_json(
                request,
                PicturePair,
                '{"source": "<base64>", "target": "<base64>"}',
                lambda body: (body.base64(body.value.source), body.base64(body.value.target)),
            )
    raise UnsupportedMediaType("send multipart/form-data or application/json")


async def read_embeddings(request: Request, max_images: int) -> tuple[EmbeddingsRequest, Images]:
    """Return OpenAI's request for embeddings and its images, still encoded. Large JSON is parsed in a thread.

    Raises:
        BadRequest: if the body does not match the schema. BodyTooLarge, TooManyImages, UnsupportedMediaType.
    """
    if media_type(request) != "application/json":
        raise UnsupportedMediaType("send application/json")
    with disconnect_as_bad_request():
        return await read_json(
            request,
            EmbeddingsRequest,
            INPUT_EXAMPLE,
            lambda body: (body.value, json_images(body, body.value.input, max_images)),
        )
