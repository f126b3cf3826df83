"""Pictures of faces that travel in packages: an astronaut's and an admiral's."""

from __future__ import annotations

from functools import cache

import numpy as np
from matplotlib import cbook
from PIL import Image

from tests.conftest import photo


@cache
def grace_hopper() -> Image.Image:
    """The admiral, 512 x 600."""
    with Image.open(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)) as file:
        return file.convert("RGB")


def side_by_side() -> Image.Image:
    """Two faces in one picture: the astronaut's to the left, the admiral's, which is larger, to the right."""
    left, right = photo("astronaut"), grace_hopper().resize((440, 512))
    return Image.fromarray(np.hstack([np.asarray(left), np.asarray(right)]))
