"""How a picture is given to a call, and how it goes into a request."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, TypeAlias, cast

Picture: TypeAlias = str | os.PathLike[str] | bytes | BinaryIO
"""The path of a file, an encoded file's bytes (JPEG, PNG, WebP, BMP or GIF), or an open file that has them."""
Pictures: TypeAlias = Picture | Iterable[Picture]

Part: TypeAlias = tuple[str, bytes]


def content(picture: Picture) -> bytes:
    """The bytes of one picture, or of any other file.

    Raises:
        OSError: there is no such file. TypeError: it is none of what a picture may be.
    """
    if isinstance(picture, bytes):
        return picture
    if isinstance(picture, str | os.PathLike):
        return Path(picture).read_bytes()
    if hasattr(picture, "read") and isinstance(data := picture.read(), bytes):
        return data
    raise TypeError("expected a path, bytes or a file opened as binary")


def parts(name: str, pictures: Pictures) -> list[Part]:
    """One picture or several as parts of a form.

    Raises:
        OSError, TypeError: as `content`. ValueError: there is no picture.
    """
    single = isinstance(pictures, str | os.PathLike | bytes) or hasattr(pictures, "read")
    several = cast("Iterable[Picture]", [pictures] if single else pictures)
    found = [(name, content(picture)) for picture in several]
    if not found:
        raise ValueError("expected a picture")
    return found
