"""Images of faces from installed packages: an astronaut and an admiral."""

from __future__ import annotations

from functools import cache

import numpy as np
from matplotlib import cbook
from PIL import Image

from tests.conftest import photo


@cache
def grace_hopper() -> Image.Image:
    """Return a photo of the admiral, 512 x 600."""
    with Image.open(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)) as file:
        return file.convert("RGB")


def side_by_side() -> Image.Image:
    """Return an image of two faces: the astronaut on the left and, larger, the admiral on the right."""
    left, right = photo("astronaut"), grace_hopper().resize((440, 512))
    return Image.fromarray(np.hstack([np.asarray(left), np.asarray(right)]))


@cache
def passer_by() -> Image.Image:
    """Return a photo of the astronaut, 1000 x 600, with a larger face of the admiral in its right corner."""
    picture = Image.new("RGB", (1000, 600), (90, 110, 120))
    picture.paste(photo("astronaut").crop((110, 0, 350, 240)).resize((300, 300)), (350, 150))
    picture.paste(grace_hopper().crop((100, 40, 420, 400)).resize((300, 338)), (700, 250))
    return picture


@cache
def small_faces() -> tuple[Image.Image, list[tuple[float, float]]]:
    """Return a photo of 3000 x 480 pixels with 32 faces of about 50 pixels in two rows, and the faces' centres."""
    faces = [photo("astronaut").crop((165, 45, 285, 165)), grace_hopper().crop((140, 90, 380, 330))]
    picture, centres = Image.new("RGB", (3000, 480), (90, 110, 120)), []
    for number in range(32):
        left, top = 60 + number % 16 * 183, 80 + number // 16 * 220
        picture.paste(faces[number % 2].resize((74, 74), Image.Resampling.LANCZOS), (left, top))
        centres.append((left + 37.0, top + 37.0))
    return picture, centres
