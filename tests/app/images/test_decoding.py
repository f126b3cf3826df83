"""Decoding: each format and mode compared with the image it was encoded from, limits, damaged files, the fast path."""

from __future__ import annotations

import io

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from app.errors import DamagedImage, ImageTooLarge, UnsupportedImage
from app.images.decoding import (
    FAST_BYTES,
    FAST_PIXELS,
    ImageLimits,
    count_pixels,
    decode,
    decode_fast,
    disable_pillow_limit,
    is_large,
    open_image,
)
from tests.app import bad_inputs
from tests.conftest import encode, photo

LIMITS = ImageLimits(bytes=2**20, pixels=1_000_000)
FORMATS = ["JPEG", "PNG", "WEBP", "BMP", "GIF"]


@pytest.fixture(autouse=True)
def _no_pillow_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # restored after the test
    disable_pillow_limit()


def difference(image: Image.Image, reference: Image.Image) -> float:
    """Return the mean absolute difference in grey levels."""
    a, b = (np.asarray(i.convert("RGB"), dtype=np.float64) for i in (image, reference))
    return float(np.abs(a - b).mean())


@pytest.mark.parametrize(
    ("format", "options", "mode", "tolerance"),
    [
        ("BMP", {}, "RGB", 0),
        ("WEBP", {"lossless": True}, "RGB", 0),
        ("JPEG", {"quality": 95}, "RGB", 3),
        ("JPEG", {"quality": 95, "progressive": True}, "RGB", 3),
        ("JPEG", {"quality": 95}, "CMYK", 6),
        ("GIF", {}, "RGB", 8),
        *(("PNG", {}, mode, 0) for mode in ("RGB", "1", "L", "LA", "P", "RGBA")),
    ],
)
def test_formats_and_modes_become_rgb(format: str, options: dict[str, object], mode: str, tolerance: float) -> None:
    original = photo("coffee").convert(mode)
    image = decode(encode(original, format, **options), LIMITS)
    assert (image.mode, image.size) == ("RGB", original.size)
    assert difference(image, original if mode != "CMYK" else photo("coffee")) <= tolerance


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_blending_in_strips_equals_blending_at_once(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image = photo("coffee").convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    data = encode(image.convert(mode) if mode != "P" else image.quantize(32))
    decoded = decode(data, LIMITS)
    at_once = Image.open(io.BytesIO(data)).convert("RGBA")
    white = Image.new("RGBA", at_once.size, "white")
    assert decoded.tobytes() == Image.alpha_composite(white, at_once).convert("RGB").tobytes()
    for pixels in (1, 1000, 600 * 7):
        monkeypatch.setattr("models.image_decoder.STRIP_PIXELS", pixels)
        assert decode(data, LIMITS).tobytes() == decoded.tobytes()


@pytest.mark.parametrize("format", ["GIF", "WEBP"])
def test_first_frame_of_an_animation_is_decoded(format: str) -> None:
    red, blue = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    assert difference(decode(encode(red, format, save_all=True, append_images=[blue]), LIMITS), red) < 4


UNDO = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_image_is_upright_by_its_exif_orientation_in_full_and_reduced_size(orientation: int) -> None:
    original = photo("coffee")  # 600 x 400
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = original.transpose(UNDO[orientation]) if orientation in UNDO else original
    assert difference(decode(encode(stored, "PNG", exif=exif), LIMITS), original) == 0
    reduced = decode(encode(stored, "JPEG", exif=exif, quality=95), LIMITS, min_side=100)
    assert reduced.size == (150, 100)
    assert difference(reduced, original.reduce(4)) < 2


@pytest.mark.parametrize(
    ("size", "min_side", "expected"),
    [
        ((640, 480), None, (640, 480)),
        ((640, 480), 480, (640, 480)),
        ((640, 480), 241, (640, 480)),
        ((640, 480), 240, (320, 240)),
        ((640, 480), 120, (160, 120)),
        ((640, 480), 10, (80, 60)),  # an eighth is libjpeg's minimum
        ((644, 484), 10, (161, 121)),  # not divisible by 8
        ((641, 480), 10, (641, 480)),  # not divisible by 2
    ],
)
def test_jpeg_is_reduced_by_divisors_of_its_sides(
    size: tuple[int, int], min_side: int | None, expected: tuple[int, int]
) -> None:
    for mode in ("RGB", "L", "CMYK"):
        image = decode(encode(Image.new(mode, size), "JPEG"), LIMITS, min_side)
        assert (image.mode, image.size) == ("RGB", expected)
    assert decode(encode(Image.new("RGB", size)), LIMITS, min_side).size == size


def test_limits_of_bytes_and_pixels() -> None:
    with pytest.raises(ImageTooLarge, match="bytes"):
        decode(bad_inputs.coffee(), ImageLimits(bytes=1000, pixels=10**9))
    for min_side in (None, 50):
        with pytest.raises(ImageTooLarge, match="600 x 400 pixels"):
            decode(bad_inputs.coffee(), ImageLimits(bytes=2**20, pixels=239_999), min_side)
    assert decode(bad_inputs.coffee(), ImageLimits(bytes=2**20, pixels=240_000)).size == (600, 400)


@pytest.mark.parametrize(
    ("format", "message"),
    [
        ("TIFF", "this is TIFF; supported are JPEG, PNG, WEBP, BMP, GIF"),
        ("AVIF", "this is AVIF; supported are JPEG, PNG, WEBP, BMP, GIF"),
        ("PDF", "this is PDF; supported are JPEG, PNG, WEBP, BMP, GIF"),
        ("PPM", "supported are JPEG, PNG, WEBP, BMP, GIF"),
        ("ICO", "supported are JPEG, PNG, WEBP, BMP, GIF"),
    ],
)
def test_other_formats_are_refused_and_named_if_they_are_known(format: str, message: str) -> None:
    with pytest.raises(UnsupportedImage) as raised:
        decode(encode(Image.new("RGB", (16, 16)), format), LIMITS)
    assert raised.value.detail == message


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),  # of a phone
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x0cJXL \x0d\x0a\x87\x0a", "JPEG XL"),
        (b"\xff\x0a\xfa\x1f", "JPEG XL"),
        (b"MM\0*\0\0\0\x08", "TIFF"),
    ],
)
def test_formats_without_a_decoder_are_named(head: bytes, name: str) -> None:
    with pytest.raises(UnsupportedImage) as raised:
        decode(head + bytes(100), LIMITS)
    assert raised.value.detail == f"this is {name}; supported are JPEG, PNG, WEBP, BMP, GIF"


@pytest.mark.parametrize("format", FORMATS)
def test_damaged_file_is_an_image_or_a_clear_error(format: str) -> None:
    data = encode(photo("coffee").resize((60, 40)), format)
    rng = np.random.default_rng(0)
    files = [(data[:length], 5) for length in range(0, len(data), max(1, len(data) // 150))]
    for _ in range(300):
        damaged = bytearray(data)
        for position in rng.integers(0, min(len(data), 400), 3):
            damaged[position] = rng.integers(0, 256)
        files.append((bytes(damaged), 40))
    for file, min_side in files:
        try:
            assert decode(file, LIMITS, min_side).mode == "RGB"
        except (DamagedImage, UnsupportedImage, ImageTooLarge):
            continue


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("options", [{"subsampling": 0}, {"subsampling": 1}, {"subsampling": 2}, {"quality": 20}])
def test_fast_path_equals_decode(mode: str, options: dict[str, object]) -> None:
    for size in ((224, 224), (221, 187), (33, 17), (1, 1)):
        data = encode(photo("astronaut").resize(size).convert(mode), "JPEG", **options)
        pixels = decode_fast(data, LIMITS)
        assert pixels is not None
        assert np.array_equal(pixels, np.asarray(decode(data, LIMITS)))
        luminance = decode_fast(data, LIMITS, grey=True)
        assert luminance is not None
        assert luminance.shape == (size[1], size[0], 1)
        assert np.array_equal(np.repeat(luminance, 3, axis=2), np.asarray(decode(data, LIMITS, grey=True)))


@pytest.mark.parametrize("min_side", [None, 50])
@pytest.mark.parametrize("options", [{"quality": 95}, {"quality": 60, "progressive": True}])
def test_grey_is_the_luminance_of_the_colours(min_side: int | None, options: dict[str, object]) -> None:
    data = encode(photo("astronaut").resize((200, 200)), "JPEG", **options)
    luminance = np.asarray(decode(data, LIMITS, min_side, grey=True))
    assert (luminance == luminance[:, :, :1]).all()
    # ITU-R BT.601, as JFIF defines it; decoded colours are rounded and clipped before this sum.
    expected = np.asarray(decode(data, LIMITS, min_side)) @ np.array([0.299, 0.587, 0.114])
    difference = np.abs(luminance[:, :, 0] - expected)
    assert difference.mean() < 0.5
    assert np.quantile(difference, 0.99) < 4


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_grey_changes_no_other_image(format: str, mode: str) -> None:
    image = photo("coffee").resize((60, 40)).convert(mode)
    data = encode(image.convert("CMYK") if format == "JPEG" and mode == "RGB" else image, format)
    assert np.array_equal(np.asarray(decode(data, LIMITS, grey=True)), np.asarray(decode(data, LIMITS)))


def test_fast_path_accepts_only_small_upright_baseline_jpegs() -> None:
    image = photo("coffee").resize((200, 200))
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_fast(encode(image, "JPEG"), LIMITS) is not None
    slow = [encode(image, format) for format in FORMATS if format != "JPEG"]
    slow += [encode(image, "JPEG", progressive=True), encode(image, "JPEG", exif=exif)]
    slow += [encode(image.convert("CMYK"), "JPEG"), encode(image, "JPEG", comment=b" " * FAST_BYTES)]
    slow += [encode(image.resize((FAST_PIXELS // 128 + 1, 128)), "JPEG"), b"", b"\xff\xd8\xff"]
    assert [decode_fast(data, LIMITS) for data in slow] == [None] * len(slow)
    for limits in (ImageLimits(bytes=2**20, pixels=200 * 200 - 1), ImageLimits(bytes=100, pixels=1_000_000)):
        assert decode_fast(encode(image, "JPEG"), limits) is None


def test_fast_path_rejects_unusual_subsampling() -> None:
    data = bytearray(encode(photo("coffee").resize((64, 64)), "JPEG", subsampling=0))
    factors = data.index(b"\xff\xc0") + 11
    assert data[factors] == 0x11
    for horizontal in range(1, 5):
        for vertical in range(1, 5):
            data[factors] = 16 * horizontal + vertical
            assert (decode_fast(bytes(data), LIMITS) is not None) == ((horizontal, vertical) == (1, 1))


def test_fast_path_equals_decode_for_damaged_files() -> None:
    data = encode(photo("coffee").resize((60, 40)), "JPEG")
    rng = np.random.default_rng(0)
    fast = 0
    for number in range(3000):
        damaged = bytearray(data[: rng.integers(2, len(data))] if number % 3 == 0 else data)
        for position in rng.integers(0, len(damaged), rng.integers(0, 4)):
            damaged[position] = rng.integers(0, 256)
        for grey in (False, True):
            pixels = decode_fast(bytes(damaged), LIMITS, grey=grey)
            if pixels is not None:
                fast += 1
                expected = np.asarray(decode(bytes(damaged), LIMITS, grey=grey))
                assert np.array_equal(np.broadcast_to(pixels, expected.shape), expected)
    assert 600 < fast < 5400


def test_header_of_a_jpeg_without_end_marker_is_read_without_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    decode_jpeg = simplejpeg.decode_jpeg

    def record(data: bytes, *arguments: object, **options: object) -> object:
        decoded.append(len(data))
        return decode_jpeg(data, *arguments, **options)

    monkeypatch.setattr(simplejpeg, "decode_jpeg", record)
    cut = bad_inputs.coffee()[:-2]
    assert count_pixels(cut, LIMITS) == 240_000
    assert open_image(cut, LIMITS).size == (600, 400)
    assert not decoded
    assert decode(cut, LIMITS).size == (600, 400)
    assert decoded


def test_jpeg_of_too_many_scans_is_refused() -> None:
    whole = encode(photo("coffee"), "JPEG", progressive=True)
    first = whole.index(b"\xff\xda")
    scan = whole[first : whole.index(b"\xff", first + 20)]
    with pytest.raises(DamagedImage, match="100 scans"):
        decode(whole[:first] + scan * 101 + whole[first:], LIMITS)


def test_image_is_large_by_pixels_bytes_or_scans() -> None:
    square = Image.new("L", (2000, 2000))
    files = {
        bad_inputs.coffee(): False,
        encode(square): False,
        encode(Image.new("L", (2001, 2000))): True,
        bad_inputs.coffee() + bytes(2**20): True,
        encode(square, "JPEG") + b"\xff\xda" * 20 + b"\xff\xd9": True,
    }
    for data, expected in files.items():
        assert is_large(open_image(data, ImageLimits(bytes=2**25, pixels=50_000_000)), data) == expected


def test_pixels_are_counted_by_the_header_of_images_that_are_decoded() -> None:
    assert count_pixels(bad_inputs.coffee()[:5000], LIMITS) == 240_000
    for data in (b"no image", bad_inputs.png_bomb(), bytes(2**20 + 1)):
        assert count_pixels(data, LIMITS) == 0
