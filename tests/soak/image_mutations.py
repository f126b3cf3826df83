"""Small pictures of every format and form that is read, and ways to spoil their bytes; all of it repeatable by seed."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable, Mapping
from functools import cache

import numpy as np
from PIL import Image

from tests.app.bad_inputs import png_bomb, text_bomb
from tests.conftest import encode, photo

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
ORIENTATION, TURNED = 0x0112, 6  # of EXIF: to be turned by 90 degrees
# First row, first column, and steps of Adam7's seven passes.
ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
SIZES = (0, 1, 2, 17, 255, 256, 4000, 7000, 16383, 32767, 65535, 2**24, 2**31 - 1, 2**32 - 1)


@cache
def good(side: int) -> Mapping[str, bytes]:
    """A face, side x side pixels, in every form, by its name. Read right by any decoder."""
    face = photo("astronaut").crop((150, 0, 300, 150)).resize((side, side), Image.Resampling.LANCZOS)
    deep = Image.fromarray(np.asarray(face.convert("L")).astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[ORIENTATION] = TURNED
    turned = face.transpose(Image.Transpose.ROTATE_90)
    frames = [face.transpose(Image.Transpose.FLIP_LEFT_RIGHT), face.rotate(20)]
    see_through = face.copy()
    see_through.putalpha(Image.radial_gradient("L").resize((side, side)).point(lambda value: 255 - value // 2))
    return {
        "JPEG": encode(face, "JPEG", quality=90),
        "JPEG progressive": encode(face, "JPEG", quality=90, progressive=True),
        "JPEG grey": encode(face.convert("L"), "JPEG", quality=90),
        "JPEG CMYK": encode(face.convert("CMYK"), "JPEG", quality=90),
        "JPEG EXIF-rotated": encode(turned, "JPEG", quality=90, exif=exif),
        "PNG": encode(face),
        "PNG 16-bit": encode(deep),
        "PNG palette": encode(face.quantize(64)),
        "PNG interlaced": interlaced_png(np.asarray(face)),
        "PNG alpha": encode(see_through),
        "WebP lossy": encode(face, "WEBP", quality=90),
        "WebP lossless": encode(face, "WEBP", lossless=True),
        "WebP animated": encode(face, "WEBP", save_all=True, append_images=frames, quality=90),
        "BMP": encode(face, "BMP"),
        "BMP palette": encode(face.quantize(64), "BMP"),
        "GIF": encode(face, "GIF"),
        "GIF animated": encode(face, "GIF", save_all=True, append_images=frames),
    }


def interlaced_png(pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> bytes:
    """8-bit RGB [H, W, 3] as an interlaced PNG, which Pillow reads but does not write."""
    height, width, _ = pixels.shape
    rows = bytearray()
    for top, left, down, right in ADAM7:
        for row in pixels[top::down, left::right]:
            rows += b"\0" + row.tobytes()
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 1)
    return PNG_MAGIC + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(bytes(rows))) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_sums(data: bytes) -> bytes:
    """A PNG whose chunks have right checksums, as far as they can be told apart: what is spoilt is read, then."""
    made, at = bytearray(data[:8]), 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        end = at + 8 + length
        if end + 4 > len(data):
            break
        made += data[at:end] + struct.pack(">I", zlib.crc32(data[at + 4 : end]))
        at = end + 4
    return bytes(made + data[at:])


def flip_bits(rng: random.Random, data: bytes) -> bytes:
    """1 to 32 bits anywhere, or all near the beginning; half of the PNGs with right checksums."""
    spoilt = bytearray(data)
    end = len(data) if rng.random() < 0.7 else min(200, len(data))
    for _ in range(2 ** rng.randrange(6)):
        spoilt[rng.randrange(end)] ^= 1 << rng.randrange(8)
    sums = data.startswith(PNG_MAGIC) and rng.random() < 0.5
    return with_sums(bytes(spoilt)) if sums else bytes(spoilt)


def truncate(rng: random.Random, data: bytes) -> bytes:
    """The first bytes only; of some, noise or zeros follow, up to the length it had."""
    kept = data[: rng.randrange(1, len(data))]
    rest = len(data) - len(kept)
    return kept + rng.choice((b"", b"", rng.randbytes(rest), bytes(rest)))


def splice(rng: random.Random, data: bytes) -> bytes:
    """The beginning of this file and the end of another, of any format, cut at the same share or anywhere."""
    other = rng.choice(list(good(48).values()))
    share = rng.random()
    cut, resumed = int(share * len(data)), int((share if rng.random() < 0.5 else rng.random()) * len(other))
    return data[:cut] + other[resumed:]


def lie(rng: random.Random, data: bytes) -> bytes:
    """Other dimensions in the header, or another byte beside them."""
    spoilt = bytearray(data)
    at, form = _dimensions(data)
    most = 2 ** (8 * struct.calcsize(form)) - 1
    if rng.random() < 0.8:
        for place in rng.choice(((0,), (1,), (0, 1))):
            struct.pack_into(form, spoilt, at + place * struct.calcsize(form), rng.choice(SIZES) & most)
    else:
        spoilt[at + rng.randrange(-4, 13)] = rng.randrange(256)
    return with_sums(bytes(spoilt)) if data.startswith(PNG_MAGIC) else bytes(spoilt)


def _dimensions(data: bytes) -> tuple[int, str]:
    """Where the two dimensions stand in a good file, and how one of them is packed."""
    if data.startswith(PNG_MAGIC):
        return 16, ">I"
    if data.startswith(b"BM"):
        return 18, "<I"
    if data.startswith(b"GIF"):
        return (6, "<H") if len(data) % 2 else (data.index(b",", 13 + 3 * 2 ** ((data[10] & 7) + 1)) + 5, "<H")
    if data.startswith(b"RIFF"):
        return {b"VP8X": 24, b"VP8 ": 26, b"VP8L": 21}[data[12:16]], "<H"
    at = next(place for mark in (b"\xff\xc0", b"\xff\xc2") if (place := data.find(mark)) > 0)
    return at + 5, ">H"


def bomb(rng: random.Random, data: bytes) -> bytes:
    """Some kilobytes that want a hundred megabytes or more; one within the limits is rare, since it is answered."""
    if rng.random() < 0.02:
        return within_limits()
    return rng.choice(bombs())


@cache
def within_limits() -> bytes:
    """A PNG of 49 million black pixels: just what is still decoded."""
    return png_bomb(7000)


@cache
def bombs() -> tuple[bytes, ...]:
    """PNGs of too many pixels, too much text, too large a profile; a BMP of runs; a GIF of a thousand frames."""
    profile = _chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(50_000_000), 9))
    plain = encode(Image.new("RGB", (8, 8)))
    return (
        png_bomb(),
        text_bomb(),
        plain[:33] + profile + plain[33:],
        _bmp_of_runs(6000),
        _gif_of_frames(1000),
    )


def _bmp_of_runs(side: int) -> bytes:
    """A run-length coded BMP that says it has side x side pixels and ends after a few."""
    palette = bytes(1024)
    runs = bytes((255, 7)) * 2000 + b"\0\1"
    offset = 14 + 40 + len(palette)
    info = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, len(runs), 0, 0, 256, 0)
    return struct.pack("<2sIHHI", b"BM", offset + len(runs), 0, 0, offset) + info + palette + runs


def _gif_of_frames(count: int) -> bytes:
    """A GIF of many large frames, of which the first is read."""
    buffer = io.BytesIO()
    first = Image.new("P", (1000, 1000))
    first.save(buffer, "GIF")
    still = buffer.getvalue()
    frame = still[still.index(b",") : -1]
    return still[:-1] + frame * count + b";"


MUTATIONS: Mapping[str, Callable[[random.Random, bytes], bytes]] = {
    "bit flips": flip_bits,
    "truncation": truncate,
    "splice": splice,
    "header lie": lie,
    "bomb": bomb,
}
SHARES = (40, 15, 15, 25, 5)  # of the mutations above, in percent
