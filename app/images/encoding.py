"""Files in responses: pixels as PNG and WebP, the same bytes for the same pixels and library versions; and ETags."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL
from fastapi import Response
from PIL import Image, PngImagePlugin, features
from pydantic import BaseModel

Pixels = npt.NDArray[np.uint8]

PNG, WEBP, JSON = "image/png", "image/webp", "application/json"

# zlib's default, set here so that a change of Pillow's default changes no bytes.
_COMPRESSION = 6
_BYTES = {"schema": {"type": "string", "format": "binary"}}

NOT_MODIFIED: dict[int | str, dict[str, Any]] = {304: {"description": "`If-None-Match` contains the current ETag"}}


@dataclass(frozen=True)
class EncodedFile:
    """The body and headers of a response; `content` is None if the client has it already (304)."""

    content: bytes | None
    media_type: str
    headers: Mapping[str, str] = field(default_factory=dict)


def encode_json(document: BaseModel, headers: Mapping[str, str]) -> EncodedFile:
    """Return a document as a JSON file."""
    return EncodedFile(document.model_dump_json(by_alias=True).encode(), JSON, headers)


def encode_png(pixels: Pixels, profile: bytes | None = None, chunks: Mapping[bytes, bytes] | None = None) -> bytes:
    """Encode [H, W, C] with C as in `to_image`, with an ICC profile and more chunks, such as gAMA, if given."""
    info = PngImagePlugin.PngInfo()
    for name, data in (chunks or {}).items():
        info.add(name, data)
    return _save(to_image(pixels), "PNG", compress_level=_COMPRESSION, icc_profile=profile, pnginfo=info)


def encode_webp(pixels: Pixels) -> bytes:
    """Encode [H, W, C], lossless."""
    return _save(to_image(pixels), "WEBP", lossless=True)


def encode_animation(frames: Sequence[Pixels], frame_ms: int) -> bytes:
    """Encode frames [H, W, C] of one shape as an endless WebP, lossless."""
    first, *rest = (to_image(frame) for frame in frames)
    options = {"duration": frame_ms, "loop": 0, "lossless": True, "minimize_size": False}
    return _save(first, "WEBP", save_all=True, append_images=rest, **options)


def _save(image: Image.Image, file_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def grid(images: Pixels, columns: int) -> Pixels:
    """[N, H, W, C] -> [rows * H, columns * W, C], row by row without gaps; empty cells are black."""
    count, height, width, channels = images.shape
    rows = -(-count // columns)
    cells = np.zeros((rows * columns, height, width, channels), dtype=np.uint8)
    cells[:count] = images
    sheet = cells.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    return sheet.reshape(rows * height, columns * width, channels)


def encoder_versions() -> str:
    """Return the versions of all libraries that decide the encoded bytes, as JSON."""
    versions = {name: features.version(name) for name in ("zlib", "zlib_ng", "webp")}
    return json.dumps({"pillow": PIL.__version__, **versions})


def etag(*parts: object) -> str:
    """Return a strong ETag over JSON-serialisable parts and the encoder versions."""
    text = json.dumps([*parts, encoder_versions()], sort_keys=True)
    return f'"{hashlib.sha256(text.encode()).hexdigest()[:32]}"'


def etag_matches(tag: str, if_none_match: str | None) -> bool:
    """Return whether the If-None-Match header contains this ETag, by RFC 9110's weak comparison."""
    tags = [item.strip().removeprefix("W/") for item in (if_none_match or "").split(",")]
    return tag in tags or "*" in tags


def to_image(pixels: Pixels) -> Image.Image:
    """[H, W, C] -> a Pillow image: C is 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGB, alpha)."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


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
