"""Contact sheets: images side by side, as a PNG."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from models.checkpoint import bytes_of

# Between grey and white, so that the edges of black and of white images are visible.
_BACKGROUND = 225
_GAP = 2  # pixels between images, before enlargement


def sheet(pixels: npt.NDArray[np.uint8], columns: int, scale: int = 1) -> bytes:
    """Return images uint8 [N, H, W, 1 or 3] as a PNG with `columns` columns, enlarged `scale` times.

    Raises:
        ValueError: no images, or another shape.
    """
    if pixels.ndim != 4 or not len(pixels) or pixels.shape[-1] not in {1, 3}:
        raise ValueError(f"expected images of shape [N >= 1, H, W, 1 or 3], got {list(pixels.shape)}")
    count, height, width, channels = pixels.shape
    rows = -(-count // columns)
    canvas = np.full(
        (rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, channels), _BACKGROUND, dtype=np.uint8
    )
    for position, image in enumerate(pixels):
        top, left = (height + _GAP) * (position // columns), (width + _GAP) * (position % columns)
        canvas[top : top + height, left : left + width] = image
    enlarged = canvas.repeat(scale, axis=0).repeat(scale, axis=1)
    image = Image.fromarray(enlarged[..., 0] if channels == 1 else enlarged)
    return bytes_of(lambda file: image.save(file, "PNG", optimize=True))
