"""Pixels -> the bytes of PNG and WebP files, the same for the same pixels and versions; and an answer's tag."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import PIL
from PIL import Image, features
from pydantic import BaseModel

Pixels = npt.NDArray[np.uint8]

PNG, WEBP, JSON = "image/png", "image/webp", "application/json"

# zlib's own middle way. Said here, so that another default of Pillow's changes no bytes.
_COMPRESSION = 6


@dataclass(frozen=True)
class File:
    """An answer that is bytes; None where the caller said that it has them already."""

    content: bytes | None
    media_type: str
    headers: Mapping[str, str] = field(default_factory=dict)


def document(answer: BaseModel, headers: Mapping[str, str]) -> File:
    """A schema as JSON."""
    return File(answer.model_dump_json(by_alias=True).encode(), JSON, headers)


def png(pixels: Pixels, profile: bytes | None = None) -> bytes:
    """[H, W, C], grey or RGB, perhaps with alpha as the last channel; with an ICC profile where one is given."""
    buffer = io.BytesIO()
    image(pixels).save(buffer, "PNG", compress_level=_COMPRESSION, icc_profile=profile)
    return buffer.getvalue()


def webp(pixels: Pixels) -> bytes:
    """The same, lossless."""
    buffer = io.BytesIO()
    image(pixels).save(buffer, "WEBP", lossless=True)
    return buffer.getvalue()


def animation(frames: Sequence[Pixels], frame_ms: int) -> bytes:
    """Frames [H, W, C] of one shape as an endless WebP, lossless."""
    first, *others = (image(frame) for frame in frames)
    buffer = io.BytesIO()
    first.save(
        buffer,
        "WEBP",
        save_all=True,
        append_images=others,
        duration=frame_ms,
        loop=0,
        lossless=True,
        minimize_size=False,
    )
    return buffer.getvalue()


def grid(pictures: Pixels, columns: int) -> Pixels:
    """[N, H, W, C] -> [rows * H, columns * W, C], row by row with nothing between; what stays empty is black."""
    count, height, width, channels = pictures.shape
    rows = -(-count // columns)
    cells = np.zeros((rows * columns, height, width, channels), dtype=np.uint8)
    cells[:count] = pictures
    sheet = cells.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    return sheet.reshape(rows * height, columns * width, channels)


def encoder() -> str:
    """What beside the pixels decides the bytes."""
    versions = {name: features.version(name) for name in ("zlib", "zlib_ng", "webp")}
    return json.dumps({"pillow": PIL.__version__, **versions})


def tag(*parts: object) -> str:
    """A strong ETag over parts that JSON can write, and over the encoder."""
    text = json.dumps([*parts, encoder()], sort_keys=True)
    return f'"{hashlib.sha256(text.encode()).hexdigest()[:32]}"'


def is_known(etag: str, if_none_match: str | None) -> bool:
    """Whether the header names this tag, by RFC 9110's weak comparison."""
    known = [one.strip().removeprefix("W/") for one in (if_none_match or "").split(",")]
    return etag in known or "*" in known


def image(pixels: Pixels) -> Image.Image:
    """[H, W, C] as Pillow holds it: C is 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGB, alpha)."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
