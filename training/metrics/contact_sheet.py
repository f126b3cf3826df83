"""Pictures side by side, as a PNG."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image

# Between grey and white: the edge of a black picture and of a white one can be seen on it.
_PAPER = 225
_GAP = 2  # pixels between pictures, before they are enlarged


def sheet(pixels: npt.NDArray[np.uint8], columns: int, scale: int = 1) -> bytes:
    """uint8 [N, H, W, 1 or 3] in rows of `columns` from the left and from above, each pixel `scale` x `scale`.

    Raises:
        ValueError: no pictures, or another shape.
    """
    if pixels.ndim != 4 or not len(pixels) or pixels.shape[-1] not in {1, 3}:
        raise ValueError(f"expected pictures of shape [N >= 1, H, W, 1 or 3], got {list(pixels.shape)}")
    count, height, width, channels = pixels.shape
    rows = -(-count // columns)
    paper = np.full((rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, channels), _PAPER, dtype=np.uint8)
    for place, picture in enumerate(pixels):
        top, left = (height + _GAP) * (place // columns), (width + _GAP) * (place % columns)
        paper[top : top + height, left : left + width] = picture
    enlarged = paper.repeat(scale, axis=0).repeat(scale, axis=1)
    buffer = io.BytesIO()
    Image.fromarray(enlarged[..., 0] if channels == 1 else enlarged).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
