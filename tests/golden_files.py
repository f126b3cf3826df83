"""Golden files: what commit 3efbd78 wrote (tests/golden/write_3efbd78.py says what is in them), copied before use."""

from __future__ import annotations

import base64
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from index.types import Floats

GOLDEN = Path(__file__).parent / "golden" / "3efbd78"
KEY = b"k" * 32  # the operator's


def unpack(name: str, folder: Path) -> Path:
    """A copy of the golden folder `name`, in `folder`, which may be changed."""
    with tarfile.open(GOLDEN / f"{name}.tar.xz") as archive:
        # Before Python 3.11.4 there are no filters.
        archive.extraction_filter = getattr(tarfile, "data_filter", None)
        archive.extractall(folder)
    return folder


def expected(name: str) -> dict[str, Any]:
    """The inputs and the answers of 3efbd78."""
    return dict(json.loads((GOLDEN / f"{name}.json").read_text()))


def vector(text: str) -> Floats:
    """A vector [D] that is stored as base64 of little-endian float32."""
    return np.frombuffer(base64.b64decode(text), "<f4").astype(np.float32)


def fields(thing: object, stored: Mapping[str, Any]) -> dict[str, Any]:
    """Those attributes of a thing that 3efbd78 stored; later versions may have more."""
    return {name: getattr(thing, name) for name in stored}
