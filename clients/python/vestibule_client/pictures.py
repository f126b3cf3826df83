"""How a picture is given to a call, and how it goes into a request."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeAlias, cast

from vestibule_client.files import File


class PillowImage(Protocol):
    """A `PIL.Image.Image`, described by what is needed of it: Pillow is not a dependency of this client."""

    @property
    def mode(self) -> str:
        """How a pixel is stored."""

    def save(self, fp: Any, format: str | None = None, **params: Any) -> None:
        """Write it to a file."""

    def convert(self, mode: str) -> Any:
        """A copy in another mode."""

    def getexif(self) -> Any:
        """Its EXIF data, which say which side is up."""


Picture: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | File | PillowImage
"""The path of a file; an encoded file's bytes (JPEG, PNG, WebP, BMP or GIF), an open file that has them, or the `File`
of an answer; or an image of Pillow, which is sent as PNG."""
Pictures: TypeAlias = Picture | Iterable[Picture]

Part: TypeAlias = tuple[str, bytes]

# What PNG cannot hold and RGB can.
_AS_RGB = frozenset({"CMYK", "YCbCr", "HSV"})


def content(picture: Picture) -> bytes:
    """The bytes of one picture, or of any other file.

    Raises:
        OSError: there is no such file, or Pillow cannot write the image. TypeError: it is no picture.
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
    raise TypeError("expected a path, bytes, a file opened as binary or an image of Pillow")


def parts(name: str, pictures: Pictures) -> list[Part]:
    """One picture or several as parts of a form.

    Raises:
        OSError, TypeError: as `content`. ValueError: there is no picture.
    """
    one = isinstance(pictures, str | os.PathLike | bytes | bytearray | memoryview | File)
    single = one or hasattr(pictures, "read") or _is_pillow(pictures)
    several = cast("Iterable[Picture]", [pictures] if single else pictures)
    found = [(name, content(picture)) for picture in several]
    if not found:
        raise ValueError("expected a picture")
    return found


def _is_pillow(picture: object) -> bool:
    return all(hasattr(picture, name) for name in ("mode", "save", "convert", "getexif"))


def _png(image: PillowImage) -> bytes:
    """The image without loss, with its colour profile and its orientation."""
    exif = image.getexif()
    writable = image.convert("RGB") if image.mode in _AS_RGB else image
    buffer = io.BytesIO()
    writable.save(buffer, "PNG", exif=exif, compress_level=1)
    return buffer.getvalue()
