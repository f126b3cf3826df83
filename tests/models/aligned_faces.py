"""Aligned faces of the data set, for tests marked `data`."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from PIL import Image


def first_faces(folder: Path, count: int) -> npt.NDArray[np.uint8]:
    """The first `count` faces of the data set: uint8 [count, 112, 112, 3]."""
    shard = min(folder.glob("train*.parquet"))
    images = pq.ParquetFile(shard).read_row_group(0, columns=["image"]).column("image")[:count].to_pylist()
    assert len(images) == count, f"{shard} has fewer than {count} faces in its first row group"
    return np.stack([np.asarray(Image.open(io.BytesIO(image["bytes"])).convert("RGB")) for image in images])
