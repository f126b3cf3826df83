"""Hostile bytes -> an upright 8-bit RGB picture, or a clear error. Nothing is decoded before its size was looked at."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image

from app.errors import DamagedImage, ImageTooLarge, UnsupportedImage, VestibuleError
from models import image_decoder
from models.image_decoder import FORMATS, JPEG_SCAN

# A picture of more bytes or pixels may take more than 0.2 s to decode, whatever its format. So may one of several
# scans that has fewer: a progressive JPEG has ten or so, each of which costs about a tenth of the whole.
LARGE_BYTES, LARGE_PIXELS, TYPICAL_SCANS = 2**20, 4_000_000, 10
# A JPEG of a few kB may have thousands, each of which costs as much as its pixels.
MAX_SCANS = 100
# A JPEG of so few bytes and pixels is decoded within a millisecond, whatever is in it.
FAST_BYTES, FAST_PIXELS = 32 * 1024, 256 * 256
_JPEG = b"\xff\xd8\xff"
# Of segments between its beginning and its scan it has fewer than so many.
MAX_SEGMENTS = 32
_APP1, _BASELINE, _SCAN = 0xE1, 0xC0, 0xDA
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # what is no frame there: tables, and one reserved
_WITHOUT_LENGTH = frozenset({0x00, 0x01, 0xFF, *range(0xD0, 0xDA)})
# A progressive frame may have a hundred scans, each of which costs as much as the whole; EXIF (APP1) may say that the
# picture does not lie upright; and what has no length of its own does not belong there.
_UNUSUAL = (_FRAMES - {_BASELINE}) | _WITHOUT_LENGTH | {_APP1}


@dataclass(frozen=True)
class ImageLimits:
    """What one picture may cost: bytes as sent, pixels once decoded."""

    bytes: int
    pixels: int


def disable_pillow_limit() -> None:
    """Turn off Pillow's process-wide pixel limit, which warns on a scale of its own; `decode` checks every picture."""
    Image.MAX_IMAGE_PIXELS = None


def decode(data: bytes, limits: ImageLimits, min_side: int | None = None, *, keep_alpha: bool = False) -> Image.Image:
    """A JPEG, PNG, WebP, BMP or GIF (its first frame) as RGB, turned upright by its EXIF, transparency on white.

    Where so many pixels of the shorter side are `min_side` (None: no fewer than there are), a JPEG may come out at a
    half, a quarter or an eighth of its size, which costs a fraction of the time. With `keep_alpha` a picture that has
    transparency comes as RGBA instead.

    Raises:
        UnsupportedImage: none of these formats. DamagedImage: broken or cut short. ImageTooLarge: over a limit.
    """
    return load(open_image(data, limits), data, min_side, keep_alpha=keep_alpha)


def is_large(image: Image.Image, data: bytes) -> bool:
    """Whether the picture, of which the header is read, may take more than a fraction of a second to decode."""
    pixels = image.width * image.height * max(1, _scans(image, data) // TYPICAL_SCANS)
    return len(data) > LARGE_BYTES or pixels > LARGE_PIXELS


def count_pixels(data: bytes, limits: ImageLimits) -> int:
    """How many pixels `decode` would decode; 0 for what it refuses."""
    try:
        image = open_image(data, limits)
    except VestibuleError:
        return 0
    return image.width * image.height


def decode_fast(data: bytes, limits: ImageLimits) -> npt.NDArray[np.uint8] | None:
    """A picture that takes less time than to have a thread decode it, as uint8 RGB [H, W, 3], the same as `decode`'s.

    None: it may be larger, or there is something about it; `decode` sees, and says what is wrong. Only a small JPEG of
    one scan that lies upright is quick for sure, and libjpeg-turbo itself looks a tenth as long for what is in its
    header as Pillow does.
    """
    if len(data) > min(FAST_BYTES, limits.bytes) or not (data.startswith(_JPEG) and _is_usual(data)):
        return None
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
        if height * width > min(FAST_PIXELS, limits.pixels) or space not in ("Gray", "YCbCr"):
            return None
        pixels: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGB")
    except Exception:  # noqa: BLE001  of unusual subsampling it is a KeyError
        return None
    return pixels


def _is_usual(jpeg: bytes) -> bool:
    """Whether a JPEG has, until its scan begins, what most have and nothing else."""
    at = 2
    for _ in range(MAX_SEGMENTS):
        if at + 4 > len(jpeg) or jpeg[at] != 0xFF or jpeg[at + 1] in _UNUSUAL:
            return False
        if jpeg[at + 1] == _SCAN:
            return True
        at += 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
    return False


def open_image(data: bytes, limits: ImageLimits) -> Image.Image:
    """The picture with its header read and nothing decoded.

    Raises:
        As `decode`.
    """
    if len(data) > limits.bytes:
        raise ImageTooLarge(f"the picture has {len(data)} bytes; at most {limits.bytes} are read")
    try:
        image = image_decoder.open_image(io.BytesIO(data), FORMATS)
    except image_decoder.UnsupportedFormatError as error:
        raise UnsupportedImage(f"accepted are {', '.join(FORMATS)}") from error
    except image_decoder.DecodeError as error:
        raise DamagedImage("the picture's header cannot be read") from error
    width, height = image.size
    if width * height > limits.pixels:
        raise ImageTooLarge(f"the picture has {width} x {height} pixels; at most {limits.pixels} are decoded")
    if _scans(image, data) > MAX_SCANS:
        raise DamagedImage(f"the JPEG has more than {MAX_SCANS} scans")
    return image


def _scans(image: Image.Image, data: bytes) -> int:
    """How many scans a JPEG has, at most; 1 for any other format. In compressed data no marker follows 0xFF."""
    return data.count(JPEG_SCAN) if image.format == "JPEG" else 1


def load(image: Image.Image, data: bytes, min_side: int | None, *, keep_alpha: bool = False) -> Image.Image:
    """Decode the picture that `open_image` made of `data`. See `decode`."""
    try:
        image = image_decoder.with_end(image, data)
        if min_side is not None:
            _reduce(image, min_side)
        return image_decoder.load(image, keep_alpha=keep_alpha)
    except Exception as error:
        raise DamagedImage(f"the {image.format} data cannot be decoded") from error


def _reduce(image: Image.Image, min_side: int) -> None:
    """Have libjpeg make fewer pixels of the same coefficients; of other formats nothing changes.

    Both sides are whole multiples of what comes out: half a pixel at an edge would move the whole picture against what
    is decoded in full, which costs a network more than the lower resolution does.
    """
    width, height = image.size
    for factor in (8, 4, 2):
        if min(width, height) >= factor * min_side and width % factor == height % factor == 0:
            image.draft("RGB", (width // factor, height // factor))
            return
