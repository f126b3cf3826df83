"""Decode an image to upright 8-bit RGB. Serving and training share this decoder.

The format is detected by content, not by a file's name. Transparency is composited on white, 16-bit grey is scaled to
8 bits, and the EXIF orientation is applied. Of an animation the first frame is decoded.
"""

from __future__ import annotations

import io
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, ImageFile, ImageOps, PngImagePlugin, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
# Data sets also contain PGM and PPM.
FILE_FORMATS = (*FORMATS, "PPM")
# Formats that are recognised only to be named in an error. Pillow could decode AVIF, but not within limits: the header
# need not have the size of the frame that is decoded (docs/security.md).
_OTHER_FORMATS = (
    ("AVIF", 4, (b"ftypavif", b"ftypavis")),
    ("HEIC", 4, (b"ftyphei", b"ftyphev", b"ftypmif1", b"ftypmsf1")),
    ("JPEG XL", 0, (b"\xff\x0a", b"\0\0\0\x0cJXL ")),
    ("TIFF", 0, (b"II*\0", b"MM\0*")),
    ("PDF", 0, (b"%PDF-",)),
)
STRIP_PIXELS = 2**20
# Characters of a PNG's texts that are kept. XMP, which may contain the orientation, is usually shorter.
MAX_TEXT = 2**16
JPEG_SCAN, JPEG_END = b"\xff\xda", b"\xff\xd9"
# Increased when the decoded pixels of any file change. Decoded copies of other versions are not used.
VERSION = 3


class DecodeError(ValueError):
    """The image cannot be decoded; the message is the reason."""


class UnsupportedFormatError(DecodeError):
    """The content has none of the supported formats; the message names those, and its own if it is known."""


class TooManyPixelsError(DecodeError):
    """The image has more pixels than the limit."""


class DamagedError(DecodeError):
    """The content has a supported format but cannot be decoded; `__cause__` is the decoder's error."""


def open_image(source: BinaryIO | Path, formats: tuple[str, ...]) -> Image.Image:
    """Return the image with only its header read.

    Raises:
        UnsupportedFormatError, DamagedError. TooManyPixelsError: by Pillow's limit, unless it is turned off.
    """
    try:
        image = Image.open(source, formats=formats)
        _drop_texts(image)
    except UnidentifiedImageError as error:
        raise UnsupportedFormatError(f"{_own_format(source)}supported are {', '.join(formats)}") from error
    except Image.DecompressionBombError as error:
        raise TooManyPixelsError("too many pixels") from error
    except Exception as error:
        raise DamagedError(f"the header cannot be read: {error}") from error
    return image


def _own_format(source: BinaryIO | Path) -> str:
    """Return the format of an unsupported file as the beginning of a message; empty if it is not known."""
    if isinstance(source, Path):
        with source.open("rb") as file:
            return _own_format(file)
    source.seek(0)
    head = source.read(16)
    names = [name for name, offset, marks in _OTHER_FORMATS if head[offset:].startswith(marks)]
    return f"this is {names[0]}; " if names else ""


def _drop_texts(image: Image.Image) -> None:
    """Delete a PNG's texts beyond MAX_TEXT characters.

    Pillow keeps up to 64 Mi characters of up to 4 bytes, to which 70 kB of chunks may unpack.
    """
    if not isinstance(image, PngImagePlugin.PngImageFile):
        return
    texts = image.text if image.png is None else image.png.im_text
    total = 0
    for key, text in [*texts.items()]:
        total += len(text)
        if total > MAX_TEXT:
            total -= len(text)
            del texts[key]
            image.info.pop(key, None)
            if image.png is not None:  # from which an animation restarts
                image.png.rewind_state.info.pop(key, None)


def load(image: Image.Image, *, keep_alpha: bool = False) -> Image.Image:
    """The decoded image, upright, RGB; with `keep_alpha` RGBA if it has transparency.

    An embedded ICC profile is in the result's `info["icc_profile"]`, unless transparency was composited; pixel values
    are not converted.

    Raises:
        DamagedError.
    """
    try:
        image = _load_pixels(image)
        _drop_texts(image)  # those that follow the pixels
        # Damaged EXIF may raise any exception, although the image itself is intact.
        with suppress(Exception):
            ImageOps.exif_transpose(image, in_place=True)
        return _rgb(image, keep_alpha=keep_alpha)
    except Exception as error:
        raise DamagedError(f"the data cannot be decoded: {error}") from error


def _load_pixels(image: Image.Image) -> Image.Image:
    """Decode the pixels; return RGBA for a 16-bit RGB PNG with a transparent colour (tRNS).

    Pillow keeps the high bytes of such an image but all 16 bits of its transparent colour, which then matches no pixels
    or the wrong ones.
    """
    low = _low_bytes(image)
    image.load()
    if low is None:
        return image
    values = np.asarray(image, np.uint16) * 256 + low
    opaque = (values != np.array(image.info.pop("transparency"))).any(axis=-1)
    image.putalpha(Image.fromarray(np.where(opaque, 255, 0).astype(np.uint8)))
    return image


def _low_bytes(image: Image.Image) -> npt.NDArray[np.uint8] | None:
    """Return the low bytes [H, W, 3] of a 16-bit RGB PNG with a transparent colour, not yet decoded; else None."""
    if not isinstance(image, PngImagePlugin.PngImageFile) or image.fp is None or "transparency" not in image.info:
        return None
    if not image.tile or image.tile[0].args != "RGB;16B":
        return None
    start = image.fp.tell()
    image.fp.seek(0)
    again = PngImagePlugin.PngImageFile(image.fp)
    again.tile = [again.tile[0]._replace(args="RGB;16L")]  # a little-endian value's high byte
    low = np.asarray(again, np.uint8)
    image.fp.seek(start)
    return low


def with_end_marker(image: Image.Image, data: bytes) -> Image.Image:
    """The opened image of these bytes; a JPEG that lacks only its end marker is opened again with an end marker.

    Some cameras and downloads write such files. Pillow refuses them, but with the marker it would decode any truncated
    file, the missing part grey; libjpeg-turbo detects that.
    """
    if image.format != "JPEG" or data.rfind(JPEG_END) > data.rfind(JPEG_SCAN):
        return image
    if data.endswith(b"\0\0"):  # a truncated download in a file of full size, whose zeros decode without an error
        return image
    try:
        simplejpeg.decode_jpeg(data + JPEG_END, "CMYK" if image.mode == "CMYK" else "RGB", strict=True)
    except Exception:  # noqa: BLE001  unusual subsampling raises KeyError
        return image
    return Image.open(io.BytesIO(data + JPEG_END), formats=("JPEG",))


def load_file(image: Image.Image) -> Image.Image:
    """Return `load` of an image from `open_image` whose file is still open; see `with_end_marker`.

    Raises:
        DamagedError.
    """
    if isinstance(image, ImageFile.ImageFile) and image.format == "JPEG" and image.fp is not None:
        try:
            image.fp.seek(0)
            return load(with_end_marker(image, image.fp.read()))
        except OSError as error:
            raise DamagedError(f"the file cannot be read: {error}") from error
    return load(image)


def read(source: BinaryIO | Path) -> Image.Image:
    """The image in a file, upright, RGB.

    Raises:
        DecodeError: see `open_image` and `load`. DamagedError, too, if the path cannot be opened.
    """
    with open_image(source, FILE_FORMATS) as image:
        return load_file(image)


def why_not_supported(path: Path) -> str | None:
    """Return why the content of a file has none of FILE_FORMATS, or None if it has one."""
    try:
        open_image(path, FILE_FORMATS).close()
    except TooManyPixelsError:
        return None
    except DecodeError as error:
        return str(error)
    return None


def _rgb(image: Image.Image, *, keep_alpha: bool) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits a pixel; `convert` would clip the values instead of scaling them
        values = np.asarray(image)
        grey = Image.fromarray((values * np.float32(255 / 65535)).round().clip(0, 255).astype(np.uint8))
        grey.info = image.info.copy()
        if (transparent := grey.info.pop("transparency", None)) is not None:
            grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
        image = grey
    if image.has_transparency_data:
        return image.convert("RGBA") if keep_alpha else composite_on_white(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def composite_on_white(image: Image.Image) -> Image.Image:
    """An image with transparency composited on white, RGB.

    In strips, because Pillow holds the interpreter lock during a composition: 0.4 s for 49 megapixels.
    """
    result = Image.new("RGB", image.size)
    rows = max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height))).convert("RGBA")
        white = Image.new("RGBA", strip.size, "white")
        result.paste(Image.alpha_composite(white, strip).convert("RGB"), (0, top))
    return result
