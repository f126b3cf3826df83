"""Hostile bytes -> an upright 8-bit RGB picture, or a clear error. Nothing is decoded before its size was looked at."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from app.errors import DamagedImage, ImageTooLarge, UnsupportedImage

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")


@dataclass(frozen=True)
class Limits:
    """What one picture may cost: bytes as sent, pixels once decoded."""

    bytes: int
    pixels: int


def own_limits() -> None:
    """Turn off Pillow's process-wide pixel limit, which warns on a scale of its own; `decode` checks every picture."""
    Image.MAX_IMAGE_PIXELS = None


def decode(data: bytes, limits: Limits) -> Image.Image:
    """A JPEG, PNG, WebP, BMP or GIF (its first frame) as RGB, turned upright by its EXIF, transparency on white.

    Raises:
        UnsupportedImage: none of these formats. DamagedImage: broken or cut short. ImageTooLarge: over a limit.
    """
    if len(data) > limits.bytes:
        raise ImageTooLarge(f"the picture has {len(data)} bytes; at most {limits.bytes} are read")
    image = _open(data)
    width, height = image.size
    if width * height > limits.pixels:
        raise ImageTooLarge(f"the picture has {width} x {height} pixels; at most {limits.pixels} are decoded")
    try:
        image.load()
        return _rgb(_upright(image))
    except Exception as error:
        raise DamagedImage(f"the {image.format} data cannot be decoded") from error


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise UnsupportedImage(f"accepted are {', '.join(FORMATS)}") from error
    except Exception as error:
        raise DamagedImage("the picture's header cannot be read") from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # noqa: BLE001  damaged EXIF raises anything, and the picture itself is fine
        return image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits a pixel; `convert` would clip where it must scale
        grey = np.asarray(image, dtype=np.float32) * (255 / 65535)
        return Image.fromarray(grey.round().clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
