"""How a picture may be given to the client."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from app.settings import PROJECT
from tests.conftest import encode, photo
from vestibule_client import Client, File
from vestibule_client.pictures import content, parts

COFFEE = (PROJECT / "examples" / "coffee.jpg").read_bytes()


@pytest.mark.parametrize(
    "given",
    [COFFEE, bytearray(COFFEE), memoryview(COFFEE), io.BytesIO(COFFEE), File(COFFEE, "image/jpeg")],
    ids=lambda given: type(given).__name__,
)
def test_bytes_of_every_kind_are_one_picture(given: Any) -> None:
    assert parts("file", given) == [("file", COFFEE)]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_an_image_of_pillow_is_sent_without_loss(mode: str) -> None:
    grey = photo("coffee").convert("L").resize((33, 21))
    image = Image.fromarray(np.asarray(grey, np.uint16) * 257) if mode == "I;16" else grey.convert("RGB").convert(mode)
    with Image.open(io.BytesIO(content(image))) as sent:
        assert (sent.format, sent.size) == ("PNG", image.size)
        assert sent.mode == mode
        assert np.array_equal(np.asarray(sent), np.asarray(image))


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV"])
def test_what_png_cannot_hold_is_sent_as_rgb(mode: str) -> None:
    image = photo("coffee").resize((33, 21)).convert(mode)
    with Image.open(io.BytesIO(content(image))) as sent:
        assert np.array_equal(np.asarray(sent), np.asarray(image.convert("RGB")))
    with pytest.raises(OSError, match="mode F"):
        content(photo("coffee").convert("F"))


def test_the_orientation_and_the_profile_of_an_image_are_kept() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = encode(photo("coffee").resize((40, 20)), "JPEG", exif=exif, icc_profile=profile)
    with Image.open(io.BytesIO(data)) as opened, Image.open(io.BytesIO(content(opened))) as sent:
        assert sent.getexif()[0x0112] == 6
        assert sent.info["icc_profile"] == profile


def test_classify_them(live: str, tmp_path: Path) -> None:
    (tmp_path / "coffee.jpg").write_bytes(COFFEE)
    with Client(live) as client, Image.open(tmp_path / "coffee.jpg") as image:
        asked: list[Any] = [COFFEE, bytearray(COFFEE), memoryview(COFFEE), image]
        alone = [client.classify(picture, top_k=1).first.predictions[0] for picture in asked]
        together = [item.predictions[0] for item in client.classify(asked, top_k=1).data]  # type: ignore[union-attr]
    assert [one.class_ for one in alone] == [one.class_ for one in together] == ["espresso"] * 4


def test_what_is_no_picture() -> None:
    for given in (3, None, io.StringIO("text"), object()):
        with pytest.raises(TypeError, match="expected a path"):
            content(given)  # type: ignore[arg-type]


def test_the_client_does_not_import_pillow() -> None:
    script = "import sys, vestibule_client; sys.exit('PIL' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False, cwd=PROJECT).returncode == 0
