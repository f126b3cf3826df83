"""The kinds of images that a call accepts, and their conversion to parts of a request."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeAlias, cast

from vestibule_client.files import File


class PillowImage(Protocol):
    """The used attributes of a `PIL.Image.Image`; Pillow is not a dependency of this client."""

    @property
    def mode(self) -> str:
        """The pixel format."""

    def save(self, fp: Any, format: str | None = None, **params: Any) -> None:
        """Write the image to a file."""

    def convert(self, mode: str) -> Any:
        """Return a copy in another mode."""

    def getexif(self) -> Any:
        """Return the EXIF data, which contain the orientation."""


Picture: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | File | PillowImage
"""The path of a file; an encoded file's bytes (JPEG, PNG, WebP, BMP or GIF); an open binary file; the `File` of a
response; or a Pillow image, which is sent as PNG."""
Pictures: TypeAlias = Picture | Iterable[Picture]

Part: TypeAlias = tuple[str, bytes]

# Modes that PNG does not support, but that convert to RGB.
_AS_RGB = frozenset({"CMYK", "YCbCr", "HSV"})


def content(picture: Picture) -> bytes:
    """The bytes of an image, or of any other file.

    Raises:
        OSError: the file does not exist, or Pillow cannot write the image. TypeError: not an image.
    """
    if isinstance(picture, bytes | bytearray | memoryview):
        return bytes(picture)
    if isinstance(picture, str | os.PathLike):
        return Path(picture).read_bytes()
    if isinstance(picture, File):
        return picture.content
    if _is_pillow(picture):
        return _png(cast("PillowImage", picture))
    if hasattr(picture, "read") and isinstance(data := picture.read(), bytes):
        return data
    raise TypeError("expected a path, bytes, a file opened in binary mode or a Pillow image")


def parts(name: str, pictures: Pictures) -> list[Part]:
    """An image, or several, as parts of a form.

    Raises:
        OSError, TypeError: see `content`. ValueError: there is no image.
    """
    is_data = isinstance(pictures, str | os.PathLike | bytes | bytearray | memoryview | File)
    single = is_data or hasattr(pictures, "read") or _is_pillow(pictures)
    images = cast("Iterable[Picture]", [pictures] if single else pictures)
    parts = [(name, content(image)) for image in images]
    if not parts:
        raise ValueError("expected an image")
    return parts


def _is_pillow(picture: object) -> bool:
    return all(hasattr(picture, name) for name in ("mode", "save", "convert", "getexif"))


def _png(image: PillowImage) -> bytes:
    """The image as PNG, lossless, with its colour profile and orientation."""
    exif = image.getexif()
    writable = image.convert("RGB") if image.mode in _AS_RGB else image
    buffer = io.BytesIO()
    writable.save(buffer, "PNG", exif=exif, compress_level=1)
    return buffer.getvalue()
