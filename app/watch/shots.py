"""The best shots of a passage: the few crops of a face that are worth a search."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from app.watch.tracker import Box
from vestibule_client.answers import Face

# The most shots of a passage, and the time in seconds of which the best is kept: neighbouring frames are almost the
# same picture, and a second one adds nothing to a decision. The times are fixed, and do not begin at a shot: else a
# face that comes nearer, each frame better than the one before, would replace its only shot again and again.
MOST_SHOTS, SLOT_S = 8, 0.25
# The crop has this share of the box's sides on each side, so that the service detects the face again and aligns it.
MARGIN = 0.6
# A larger crop is reduced, since detection takes a time proportional to its pixels. The face then has 116 pixels; the
# aligned face, of 112 pixels, shows it with about 80.
LARGEST_CROP = 256
JPEG_QUALITY = 95
# Measures at which a face is as good as it can be, and the factor for a face that should not be enrolled.
FULL_SIDE, FULL_SHARPNESS, FULL_YAW, UNUSABLE = 112.0, 0.05, 0.7, 0.1


@dataclass(frozen=True)
class Shot:
    """A face: the JPEG of its crop, the score 0..1, the time in seconds, and whether its quality suffices."""

    jpeg: bytes
    score: float
    time: float
    usable: bool


class BestShots:
    """At most MOST_SHOTS shots, each the best of its time."""

    def __init__(self) -> None:
        self._shots: list[Shot] = []

    @property
    def best_first(self) -> list[Shot]:
        """The shots by descending score; only usable ones if there are any."""
        usable = [shot for shot in self._shots if shot.usable]
        return sorted(usable or self._shots, key=lambda shot: shot.score, reverse=True)

    @property
    def total(self) -> float:
        """The sum of the usable shots' scores."""
        return sum(shot.score for shot in self._shots if shot.usable)

    def offer(self, face: Face, time: float, crop: Callable[[], bytes]) -> None:
        """Keep a shot of the face if it is better than the one it would replace; only then is `crop` called."""
        score, slot = score_of(face), _slot(time)
        near = [shot for shot in self._shots if _slot(shot.time) == slot]
        if not near and len(self._shots) >= MOST_SHOTS:
            near = [min(self._shots, key=lambda shot: shot.score)]
        if near and max(shot.score for shot in near) >= score:
            return
        self._shots = [shot for shot in self._shots if shot not in near]
        self._shots.append(Shot(crop(), score, time, not face.reasons))

    def merge(self, other: BestShots) -> None:
        """Take over the shots of another passage of the same person."""
        shots = sorted([*self._shots, *other._shots], key=lambda shot: shot.score, reverse=True)
        self._shots = shots[:MOST_SHOTS]


def _slot(time: float) -> int:
    return math.floor(time / SLOT_S)


def score_of(face: Face) -> float:
    """Return how good a face is for a search, 0..1.

    The product of the detector's confidence, the size, the sharpness and the pose, each 1 if it is as good as it can
    be; a tenth of it for a face of insufficient quality.
    """
    quality = face.quality
    frontal = 0.5 if quality.yaw is None else max(0.0, 1 - abs(quality.yaw) / FULL_YAW)
    size = min(1.0, quality.side / FULL_SIDE)
    sharp = min(1.0, quality.sharpness / FULL_SHARPNESS)
    return float(face.confidence * size * sharp * frontal * (UNUSABLE if face.reasons else 1.0))


def crop_jpeg(image: Image.Image, box: Box) -> bytes:
    """Return the face in `box` (left, top, right, bottom, in pixels) with its surroundings as JPEG."""
    left, top, right, bottom = box
    across, down = MARGIN * (right - left), MARGIN * (bottom - top)
    corners = (left - across, top - down, right + across, bottom + down)
    limits = (0, 0, image.width, image.height)
    x0, y0, x1, y1 = (round(corner) for corner in corners)
    crop = image.crop((max(x0, limits[0]), max(y0, limits[1]), min(x1, limits[2]), min(y1, limits[3])))
    crop.thumbnail((LARGEST_CROP, LARGEST_CROP), Image.Resampling.LANCZOS, reducing_gap=3.0)
    buffer = io.BytesIO()
    crop.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()
