"""The kinds of images that the client accepts."""

from __future__ import annotations

import io
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from app.settings import PROJECT
from tests.conftest import encode, photo
from vestibule_client import File
from vestibule_client.pictures import content, parts

COFFEE = (PROJECT / "examples" / "coffee.jpg").read_bytes()


@pytest.mark.parametrize(
    "data",
    [COFFEE, bytearray(COFFEE), memoryview(COFFEE), io.BytesIO(COFFEE), File(COFFEE, "image/jpeg")],
    ids=lambda data: type(data).__name__,
)
def test_every_kind_of_bytes_is_one_image(data: Any) -> None:
    assert parts("file", data) == [("file", COFFEE)]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_pillow_image_is_sent_lossless(mode: str) -> None:
    grey = photo("coffee").convert("L").resize((33, 21))
    image = Image.fromarray(np.asarray(grey, np.uint16) * 257) if mode == "I;16" else grey.convert("RGB").convert(mode)
    with Image.open(io.BytesIO(content(image))) as sent:
        assert (sent.format, sent.size) == ("PNG", image.size)
        assert sent.mode == mode
        assert np.array_equal(np.asarray(sent), np.asarray(image))


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV"])
def test_modes_that_png_lacks_are_sent_as_rgb(mode: str) -> None:
    image = photo("coffee").resize((33, 21)).convert(mode)
    with Image.open(io.BytesIO(content(image))) as sent:
        assert np.array_equal(np.asarray(sent), np.asarray(image.convert("RGB")))
    with pytest.raises(OSError, match="mode F"):
        content(photo("coffee").convert("F"))


def test_orientation_and_profile_are_sent() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = encode(photo("coffee").resize((40, 20)), "JPEG", exif=exif, icc_profile=profile)
    with Image.open(io.BytesIO(data)) as opened, Image.open(io.BytesIO(content(opened))) as sent:
        assert sent.getexif()[0x0112] == 6
        assert sent.info["icc_profile"] == profile


def test_client_does_not_import_pillow() -> None:
    script = "import sys, vestibule_client; sys.exit('PIL' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False, cwd=PROJECT).returncode == 0
