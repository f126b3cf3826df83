"""Responses with a file as body, and their OpenAPI descriptions."""

from __future__ import annotations

from typing import Any

from fastapi import Response
from pydantic import BaseModel

from app.images.encoding import JSON, EncodedFile

_BYTES = {"schema": {"type": "string", "format": "binary"}}

NOT_MODIFIED: dict[int | str, dict[str, Any]] = {304: {"description": "`If-None-Match` contains the current ETag"}}


def file_response(file: EncodedFile) -> Response:
    """Return a response with the file; 304 without content."""
    if file.content is None:
        return Response(status_code=304, headers=file.headers)
    return Response(file.content, media_type=file.media_type, headers=file.headers)


def describe_files(*media_types: str, schema: type[BaseModel] | None = None) -> dict[int | str, dict[str, Any]]:
    """Return OpenAPI's `responses` for files of these types, or for JSON of this schema."""
    described: dict[str, Any] = {"content": dict.fromkeys(media_types, _BYTES)}
    if schema is not None:
        described |= {"model": schema, "content": described["content"] | {JSON: {}}}
    return {200: described}
