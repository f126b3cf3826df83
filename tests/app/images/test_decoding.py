"""Decoding: each format and mode against the picture it was made from."""

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


@pytest.fixture(autouse=True)
def _own_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # put back after the test
    disable_pillow_limit()


def difference(image: Image.Image, reference: Image.Image) -> float:
    """Mean absolute difference in grey levels."""
    a, b = (np.asarray(i.convert("RGB"), dtype=np.float64) for i in (image, reference))
    return float(np.abs(a - b).mean())


@pytest.mark.parametrize(
    ("format", "options", "tolerance"),
    [
        ("PNG", {}, 0),
        ("BMP", {}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("JPEG", {"quality": 95}, 3),
        ("JPEG", {"quality": 95, "progressive": True}, 3),
        ("GIF", {}, 8),
    ],
)
def test_formats(format: str, options: dict[str, object], tolerance: float) -> None:
    original = photo("coffee")
    image = decode(encode(original, format, **options), LIMITS)
    assert (image.mode, image.size) == ("RGB", original.size)
    assert difference(image, original) <= tolerance


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA"])
def test_png_modes(mode: str) -> None:
    original = photo("coffee").convert(mode)
    image = decode(encode(original), LIMITS)
    assert image.mode == "RGB"
    assert difference(image, original) == 0


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    levels = np.linspace(0, 65535, 256, dtype=np.uint16)[None].repeat(4, 0)
    image = decode(encode(Image.fromarray(levels)), LIMITS)
    expected = np.round(levels / 65535 * 255)
    assert np.abs(np.asarray(image)[:, :, 0] - expected).max() <= 1


def test_cmyk() -> None:
    original = photo("coffee")
    image = decode(encode(original.convert("CMYK"), "JPEG", quality=95), LIMITS)
    assert difference(image, original) < 6


def test_transparency_is_put_on_white() -> None:
    transparent = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert np.asarray(decode(encode(transparent), LIMITS)).min() == 255
    half = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    assert np.abs(np.asarray(decode(encode(half), LIMITS)).astype(int) - 127).max() <= 1


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for format in ("GIF", "WEBP"):
        data = encode(frames[0], format, save_all=True, append_images=frames[1:])
        assert difference(decode(data, LIMITS), frames[0]) < 4


UNDO = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def stored(upright: Image.Image, orientation: int, format: str) -> bytes:
    """A file whose EXIF says how its picture is to be turned to be this one."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = upright.transpose(UNDO[orientation]) if orientation in UNDO else upright
    return encode(turned, format, exif=exif, quality=95)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_comes_out_upright(orientation: int) -> None:
    original = photo("coffee")
    assert difference(decode(stored(original, orientation, "PNG"), LIMITS), original) == 0


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_reduced_jpeg_is_the_upright_picture_made_smaller(orientation: int) -> None:
    original = photo("coffee")  # 600 x 400
    reduced = decode(stored(original, orientation, "JPEG"), LIMITS, min_side=100)
    assert reduced.size == (150, 100)
    assert difference(reduced, original.reduce(4)) < 2
    assert difference(reduced, original.reduce(4).transpose(Image.Transpose.ROTATE_180)) > 20


@pytest.mark.parametrize(
    ("size", "enough", "expected"),
    [
        ((640, 480), None, (640, 480)),
        ((640, 480), 480, (640, 480)),
        ((640, 480), 241, (640, 480)),
        ((640, 480), 240, (320, 240)),
        ((640, 480), 120, (160, 120)),
        ((640, 480), 10, (80, 60)),  # libjpeg goes no further
        ((644, 484), 10, (161, 121)),  # no whole eighths
        ((641, 480), 10, (641, 480)),  # no whole halves
    ],
)
def test_a_jpeg_is_reduced_by_whole_pixels_while_enough_are_left(
    size: tuple[int, int], enough: int | None, expected: tuple[int, int]
) -> None:
    for mode in ("RGB", "L", "CMYK"):
        image = decode(encode(Image.new(mode, size), "JPEG"), LIMITS, enough)
        assert (image.mode, image.size) == ("RGB", expected)
    assert decode(encode(Image.new("RGB", size)), LIMITS, enough).size == size


def test_damaged_exif_costs_nothing() -> None:
    plain = decode(bad_inputs.coffee(), LIMITS)
    assert difference(decode(bad_inputs.damaged_exif(), LIMITS), plain) == 0


def test_limits() -> None:
    with pytest.raises(ImageTooLarge, match="bytes"):
        decode(bad_inputs.coffee(), ImageLimits(bytes=1000, pixels=10**9))
    with pytest.raises(ImageTooLarge, match="600 x 400 pixels"):
        decode(bad_inputs.coffee(), ImageLimits(bytes=2**20, pixels=239_999))
    assert decode(bad_inputs.coffee(), ImageLimits(bytes=2**20, pixels=240_000)).size == (600, 400)
    with pytest.raises(ImageTooLarge, match="600 x 400 pixels"):
        decode(bad_inputs.coffee(), ImageLimits(bytes=2**20, pixels=239_999), min_side=50)


def test_a_bomb_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(ImageTooLarge, match="30000 x 30000"):
        decode(bad_inputs.png_bomb(), ImageLimits(bytes=2**30, pixels=50_000_000))


@pytest.mark.parametrize("format", ["TIFF", "PPM", "ICO"])
def test_formats_that_are_not_read(format: str) -> None:
    with pytest.raises(UnsupportedImage):
        decode(encode(Image.new("RGB", (16, 16)), format), LIMITS)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "GIF"])
def test_every_truncation_is_a_clear_error_or_a_picture(format: str) -> None:
    data = encode(photo("coffee").resize((60, 40)), format)
    for length in range(0, len(data), max(1, len(data) // 150)):
        try:
            decode(data[:length], LIMITS, min_side=5)
        except (DamagedImage, UnsupportedImage):
            continue


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "GIF"])
def test_flipped_bytes_are_a_clear_error_or_a_picture(format: str) -> None:
    data = bytearray(encode(photo("coffee").resize((60, 40)), format))
    rng = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(data)
        for position in rng.integers(0, min(len(data), 400), 3):
            damaged[position] = rng.integers(0, 256)
        try:
            assert decode(bytes(damaged), LIMITS).mode == "RGB"
        except (DamagedImage, UnsupportedImage, ImageTooLarge):
            continue


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("options", [{"subsampling": 0}, {"subsampling": 1}, {"subsampling": 2}, {"quality": 20}])
def test_a_quick_picture_is_the_same_to_the_last_level(mode: str, options: dict[str, object]) -> None:
    for size in ((224, 224), (221, 187), (33, 17), (1, 1)):
        data = encode(photo("astronaut").resize(size).convert(mode), "JPEG", **options)
        quick = decode_fast(data, LIMITS)
        assert quick is not None
        assert np.array_equal(quick, np.asarray(decode(data, LIMITS)))


def test_only_a_small_upright_jpeg_of_one_scan_is_quick() -> None:
    picture = photo("coffee").resize((200, 200))
    turned = Image.Exif()
    turned[0x0112] = 6
    assert decode_fast(encode(picture, "JPEG"), LIMITS) is not None
    slow = [encode(picture, format) for format in ("PNG", "WEBP", "BMP", "GIF")]
    slow += [encode(picture, "JPEG", progressive=True), encode(picture, "JPEG", exif=turned)]
    slow += [encode(picture.convert("CMYK"), "JPEG"), encode(picture, "JPEG", comment=b" " * FAST_BYTES)]
    slow += [encode(picture.resize((FAST_PIXELS // 128 + 1, 128)), "JPEG"), b"", b"\xff\xd8\xff"]
    assert [decode_fast(data, LIMITS) for data in slow] == [None] * len(slow)
    assert decode_fast(encode(picture, "JPEG"), ImageLimits(bytes=2**20, pixels=200 * 200 - 1)) is None
    assert decode_fast(encode(picture, "JPEG"), ImageLimits(bytes=100, pixels=1_000_000)) is None


def test_unusual_subsampling_is_not_quick() -> None:
    data = bytearray(encode(photo("coffee").resize((64, 64)), "JPEG", subsampling=0))
    factors = data.index(b"\xff\xc0") + 11
    assert data[factors] == 0x11
    for horizontal in range(1, 5):
        for vertical in range(1, 5):
            data[factors] = 16 * horizontal + vertical
            quick = decode_fast(bytes(data), LIMITS)
            assert (quick is not None) == ((horizontal, vertical) == (1, 1))


def test_what_is_quick_though_damaged_is_what_it_is_otherwise() -> None:
    data = encode(photo("coffee").resize((60, 40)), "JPEG")
    rng = np.random.default_rng(0)
    quick = 0
    for number in range(3000):
        damaged = bytearray(data[: rng.integers(2, len(data))] if number % 3 == 0 else data)
        for position in rng.integers(0, len(damaged), rng.integers(0, 4)):
            damaged[position] = rng.integers(0, 256)
        pixels = decode_fast(bytes(damaged), LIMITS)
        if pixels is not None:
            quick += 1
            assert np.array_equal(pixels, np.asarray(decode(bytes(damaged), LIMITS)))
    assert 300 < quick < 2700


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [True, False])
def test_a_jpeg_that_lacks_only_its_end_marker_is_read(mode: str, *, progressive: bool) -> None:
    whole = encode(photo("coffee").convert(mode), "JPEG", progressive=progressive)
    for cut in (1, 2):
        assert decode(whole[:-cut], LIMITS).tobytes() == decode(whole, LIMITS).tobytes()
    for cut in (3, 4, 10, 100, 3000):
        with pytest.raises(DamagedImage):
            decode(whole[:-cut], LIMITS)
    with pytest.raises(DamagedImage):
        decode(whole[:-3000] + bytes(100), LIMITS)


def test_nothing_is_decoded_to_read_the_header_of_a_jpeg_that_lacks_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    decode_jpeg = simplejpeg.decode_jpeg

    def counting(data: bytes, *given: object, **options: object) -> object:
        decoded.append(len(data))
        return decode_jpeg(data, *given, **options)

    monkeypatch.setattr(simplejpeg, "decode_jpeg", counting)
    cut = bad_inputs.coffee()[:-2]
    assert count_pixels(cut, LIMITS) == 240_000
    assert open_image(cut, LIMITS).size == (600, 400)
    assert not decoded
    assert decode(cut, LIMITS).size == (600, 400)
    assert decoded


def test_a_jpeg_of_very_many_scans_is_refused() -> None:
    whole = encode(photo("coffee"), "JPEG", progressive=True)
    first = whole.index(b"\xff\xda")
    scan = whole[first : whole.index(b"\xff", first + 20)]
    with pytest.raises(DamagedImage, match="100 scans"):
        decode(whole[:first] + scan * 101 + whole[first:], LIMITS)


def test_a_picture_is_large_by_its_pixels_its_bytes_or_its_scans() -> None:
    limits = ImageLimits(bytes=2**25, pixels=50_000_000)

    def large(data: bytes) -> bool:
        return is_large(open_image(data, limits), data)

    assert not large(bad_inputs.coffee())
    assert not large(encode(Image.new("L", (2000, 2000))))
    assert large(encode(Image.new("L", (2001, 2000))))
    assert large(bad_inputs.coffee() + bytes(2**20))
    assert large(encode(Image.new("L", (2000, 2000)), "JPEG") + b"\xff\xda" * 20 + b"\xff\xd9")


def test_pixels_are_counted_by_the_header_and_only_of_what_is_decoded() -> None:
    assert count_pixels(bad_inputs.coffee()[:5000], LIMITS) == 240_000
    for data in (b"no picture", bad_inputs.png_bomb(), bytes(2**20 + 1)):
        assert count_pixels(data, LIMITS) == 0


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_becomes_white_in_strips_as_it_does_at_once(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = photo("coffee").convert("RGBA")
    picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    data = encode(picture.convert(mode) if mode != "P" else picture.quantize(32))
    whole = decode(data, LIMITS)
    at_once = Image.open(io.BytesIO(data)).convert("RGBA")
    white = Image.new("RGBA", at_once.size, "white")
    assert whole.tobytes() == Image.alpha_composite(white, at_once).convert("RGB").tobytes()
    for pixels in (1, 1000, 600 * 7):
        monkeypatch.setattr("models.image_decoder.STRIP_PIXELS", pixels)
        assert decode(data, LIMITS).tobytes() == whole.tobytes()
