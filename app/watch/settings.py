"""The settings of a watcher."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

CAMERA = re.compile(r"[0-9A-Za-z_-]{1,64}")


@dataclass(frozen=True)
class WatchSettings:
    """Settings of one camera.

    It searches the subjects of `collection` that `where` selects, at the false positive identification rate `fpir` per
    passage. At most `fps` frames per second are processed. `min_face`: the side in pixels of the smallest face; None
    for the service's default. `keep_shot`: store the best shot with each sighting.
    """

    camera: str
    collection: str
    where: Mapping[str, Any] | None = None
    fpir: float = 0.01
    fps: float = 10.0
    min_face: float | None = None
    keep_shot: bool = False

    def __post_init__(self) -> None:
        """Raise ValueError if the camera's name or the rate is invalid."""
        if not CAMERA.fullmatch(self.camera):
            raise ValueError("the camera's name has 1 to 64 letters, digits, - or _")
        if not 0 < self.fpir < 1:
            raise ValueError("the false positive identification rate is above 0 and below 1")
