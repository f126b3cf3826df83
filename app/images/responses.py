"""What the routes that answer with files share: the response, and its description for OpenAPI."""

from __future__ import annotations

from typing import Any

from fastapi import Response
from pydantic import BaseModel

from app.images.encoding import JSON, File

_BYTES = {"schema": {"type": "string", "format": "binary"}}

UNCHANGED: dict[int | str, dict[str, Any]] = {304: {"description": "`If-None-Match` names what would be answered"}}


def answer(file: File) -> Response:
    """The file, or 304 where the caller has it."""
    if file.content is None:
        return Response(status_code=304, headers=file.headers)
    return Response(file.content, media_type=file.media_type, headers=file.headers)


def describe(*media_types: str, schema: type[BaseModel] | None = None) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's `responses` for files of these types, or for JSON of this schema."""
    described: dict[str, Any] = {"content": dict.fromkeys(media_types, _BYTES)}
    if schema is not None:
        described |= {"model": schema, "content": described["content"] | {JSON: {}}}
    return {200: described}
