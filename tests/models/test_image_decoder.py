"""The decoder shared by serving and training: formats by content, transparency, 16 bits, EXIF, damage."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from app.errors import VestibuleError
from app.images.decoding import ImageLimits, decode
from models import image_decoder
from tests.conftest import encode, photo
from training.core.errors import DataError
from training.datasets import images as data
from training.prepare.face_photos import read_photo

LIMITS = ImageLimits(2**24, 10**7)


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    photo("coffee").resize((60, 40)).save(buffer, "PNG", exif=exif)
    return buffer.getvalue()


def faded() -> Image.Image:
    image = photo("coffee").resize((48, 32)).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize((48, 32)))
    return image


IMAGES = {
    "jpeg": encode(photo("coffee").resize((48, 32)), "JPEG"),
    "without end marker": encode(photo("coffee").resize((48, 32)), "JPEG")[:-2],
    "transparent": encode(faded()),
    "grey with alpha": encode(faded().convert("LA")),
    "palette with transparency": encode(faded().quantize(16)),
    "16 bits": encode(Image.fromarray(np.linspace(0, 65535, 48 * 32).astype(np.uint16).reshape(32, 48))),
    "print colours": encode(photo("coffee").resize((48, 32)).convert("CMYK"), "JPEG"),
    "bitmap": encode(photo("coffee").resize((48, 32)).convert("1")),
    "turned": turned(),
    "gif": encode(photo("coffee").resize((48, 32)), "GIF"),
    "webp": encode(faded(), "WEBP"),
}


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("suffix", [".jpg", ".txt", ""])
def test_serving_and_training_decode_to_the_same_pixels(name: str, suffix: str, tmp_path: Path) -> None:
    """For any file name."""
    served = np.asarray(decode(IMAGES[name], LIMITS))
    path = tmp_path / f"a{suffix}"
    path.write_bytes(IMAGES[name])
    for trained in (data.decoded("here", path), data.decoded("here", io.BytesIO(IMAGES[name])), read_photo(path)):
        assert isinstance(trained, Image.Image)
        assert (trained.mode, trained.size) == ("RGB", served.shape[1::-1])
        assert np.array_equal(np.asarray(trained), served)


def test_alpha_is_kept_on_request() -> None:
    rgba = image_decoder.load(image_decoder.open_image(io.BytesIO(IMAGES["transparent"]), ("PNG",)), keep_alpha=True)
    assert rgba.mode == "RGBA"
    assert np.array_equal(np.asarray(rgba), np.asarray(faded()))
    assert image_decoder.composite_on_white(rgba).tobytes() == decode(IMAGES["transparent"], LIMITS).tobytes()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"text",
        IMAGES["jpeg"][:400],
        IMAGES["transparent"][:200],
        IMAGES["transparent"][:60],
        b"BM" + b"\xff" * 60,
    ],
    ids=["empty", "text", "cut JPEG", "cut PNG", "cut header", "bad BMP"],
)
def test_error_names_the_path_of_a_corrupt_file(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.jpg: cannot be decoded: "):
        data.decoded(str(path), path)
    assert isinstance(read_photo(path), str)
    with pytest.raises(VestibuleError):
        decode(content, LIMITS)


def test_any_decoder_error_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(IMAGES["transparent"])

    def fails(*_: object) -> None:
        raise IndexError("of some plugin")

    for method in ("load", "convert"):
        with monkeypatch.context() as patched:
            patched.setattr(Image.Image, method, fails)
            patched.setattr("PIL.ImageFile.ImageFile.load", fails)
            with pytest.raises(DataError, match=r"a\.png: cannot be decoded: .*of some plugin"):
                data.decoded(str(path), path)


def test_images_are_recognised_by_content(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(IMAGES["gif"])
    (tmp_path / "b.jfif").write_bytes(IMAGES["jpeg"])
    (tmp_path / "c").write_bytes(IMAGES["webp"])
    (tmp_path / "d.heic").write_bytes(IMAGES["jpeg"])
    (tmp_path / "e.doc").write_text("no image")
    (tmp_path / "f.png").symlink_to("nowhere")
    (tmp_path / "g").mkdir()
    (tmp_path / ".h").write_text("hidden")
    messages: list[str] = []
    assert [path.name for path in data.image_files(tmp_path, messages.append)] == ["a.txt", "b.jfif", "c", "d.heic"]
    assert messages == [
        f"left out: {tmp_path / 'e.doc'}: supported are JPEG, PNG, WEBP, BMP, GIF, PPM",
        f"left out: {tmp_path / 'f.png'}: a broken link",
    ]
    (tmp_path / "i.heic").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(DataError, match=r"i\.heic: \.heic is not supported"):
        data.image_files(tmp_path, messages.append)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize("is_animated", [False, True])
def test_long_compressed_texts_are_dropped(*, is_animated: bool) -> None:
    options: dict[str, Any] = (
        {"save_all": True, "append_images": [Image.new("RGB", (8, 8), "red")]} if is_animated else {}
    )
    plain = encode(Image.new("RGB", (8, 8)), **options)
    packed = zlib.compress(b"a" * 2**20, 9)
    leading, trailing = (
        b"".join(_chunk(b"zTXt", b"%s%d\0\0" % (name, n) + packed) for n in range(3)) for name in (b"a", b"b")
    )
    texts = plain[:33] + _chunk(b"tEXt", b"Title\0cup") + leading + plain[33:-12] + trailing + plain[-12:]
    opened = image_decoder.open_image(io.BytesIO(texts), ("PNG",))
    assert isinstance(opened, PngImagePlugin.PngImageFile)
    assert opened.png is not None
    assert opened.png.im_text == {"Title": "cup"}
    loaded = image_decoder.load(opened)
    assert loaded.info["Title"] == "cup"
    assert not [value for value in loaded.info.values() if isinstance(value, str) and len(value) > 3]
    assert opened.text == {"Title": "cup"}
