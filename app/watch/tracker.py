"""Follow faces from frame to frame: which detections are the same face.

The association has the two stages of ByteTrack (Y. Zhang et al., "ByteTrack: Multi-Object Tracking by Associating Every
Detection Box", ECCV 2022): confident detections are assigned to all tracks first, then uncertain detections to the
rest; only confident ones start a track. Two deviations, for faces and for streams whose frames are dropped:

- The cost is the distance of the centres in face sizes, with the change of size, and not the overlap of the boxes: a
  face has 16 cm, and at ten frames per second somebody who walks past moves by about that much between two frames.
- Times are in seconds, and not in frames: a frame is dropped while the service is busy, and the prediction and the end
  of a track must not depend on how many were. docs/adr/0005-own-face-tracker.md compares the published trackers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]

# Detections of at least this confidence start a track; the others, above the detector's threshold, only continue one.
CONFIDENT = 0.5
# The largest cost of an assignment, in face sizes, for a detection at the time of the last one, and its growth per
# second, because the prediction becomes uncertain.
GATE, GATE_PER_S = 0.8, 1.5
# The natural logarithm of the ratio of two sizes counts as this many face sizes.
SIZE_WEIGHT = 2.0
# A track ends after this time without a detection if it was also missed in this many frames, which a stream of few
# frames per second has later; and after the longest time in any case. Where people hide each other, a face that appears
# after a longer time at the same place is often another person's: the watcher compares the two faces. Of 120 synthetic
# walks of calibration identities, 1.2 % of the detections are in another person's passage with 0.35 s, and 0.7 % with
# 0.25 s.
LOST_S, LOST_FRAMES, LONGEST_LOST_S = 0.25, 2, 2.0
# The share of the newest speed in a track's speed.
SMOOTHING = 0.5
# A track's movement is predicted for at most this time; the position stays after it.
PREDICTED_S = 0.5
# Assigning this cost means: not assigned.
IMPOSSIBLE = 1e6

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Detection:
    """A face of a frame: its box (left, top, right, bottom) in widths of the frame, and the detector's confidence.

    In widths of the frame, because a camera may change its resolution.
    """

    box: Box
    confidence: float


@dataclass
class Track:
    """A face that is followed: the middle of its last box, its size, and its speed per second, in frame widths."""

    x: float
    y: float
    size: float
    seen: float
    speed: tuple[float, float] = (0.0, 0.0)
    missed: int = 0

    def cost(self, box: Box, time: float) -> float:
        """Return the cost of the assignment of a box at this time, or IMPOSSIBLE."""
        gap = time - self.seen
        x, y, size = centre_and_size(box)
        ahead = min(gap, PREDICTED_S)
        predicted = math.dist((self.x + ahead * self.speed[0], self.y + ahead * self.speed[1]), (x, y))
        # The position without the movement is also likely: people stop.
        distance = min(predicted, math.dist((self.x, self.y), (x, y))) / ((self.size + size) / 2)
        cost = distance + SIZE_WEIGHT * abs(math.log(size / self.size))
        return cost if cost <= GATE + GATE_PER_S * gap else IMPOSSIBLE

    def observe(self, box: Box, time: float) -> None:
        """Take over the position of a detection."""
        x, y, size = centre_and_size(box)
        if (gap := time - self.seen) > 0:
            newest = (x - self.x) / gap, (y - self.y) / gap
            self.speed = (
                SMOOTHING * newest[0] + (1 - SMOOTHING) * self.speed[0],
                SMOOTHING * newest[1] + (1 - SMOOTHING) * self.speed[1],
            )
        self.x, self.y, self.size, self.seen, self.missed = x, y, size, time, 0


class Tracker:
    """The faces that are in view."""

    def __init__(self) -> None:
        self._tracks: list[Track] = []

    def update(self, detections: Sequence[Detection], time: float) -> list[Track | None]:
        """Assign the detections of a frame to tracks; None for an uncertain detection that continues no track.

        `time` is in seconds and does not decrease.
        """
        self._tracks = [track for track in self._tracks if not _is_lost(track, time)]
        assigned: list[Track | None] = [None] * len(detections)
        free = list(self._tracks)
        for confident in (True, False):
            stage = [row for row, item in enumerate(detections) if (item.confidence >= CONFIDENT) is confident]
            for row, continued in _assign([detections[row].box for row in stage], free, time):
                assigned[stage[row]] = continued
            free = [track for track in free if not any(track is taken for taken in assigned)]
        for missed in free:
            missed.missed += 1
        for position, (detection, track) in enumerate(zip(detections, assigned, strict=True)):
            if track is not None:
                track.observe(detection.box, time)
            elif detection.confidence >= CONFIDENT:
                x, y, size = centre_and_size(detection.box)
                assigned[position] = started = Track(x, y, size, time)
                self._tracks.append(started)
        return assigned

    def follows(self, track: Track) -> bool:
        """Return whether the track has not ended."""
        return any(track is followed for followed in self._tracks)


def _is_lost(track: Track, time: float) -> bool:
    gap = time - track.seen
    return gap > LONGEST_LOST_S or (gap > LOST_S and track.missed >= LOST_FRAMES)


def _assign(boxes: Sequence[Box], tracks: Sequence[Track], time: float) -> list[tuple[int, Track]]:
    """Return the pairs of a box's position and a track of the assignment with the least sum of costs."""
    if not boxes or not tracks:
        return []
    costs = np.array([[track.cost(box, time) for track in tracks] for box in boxes])
    rows, columns = linear_sum_assignment(costs)
    return [
        (row, tracks[column])
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True)
        if costs[row, column] < IMPOSSIBLE
    ]


def centre_and_size(box: Box) -> tuple[float, float, float]:
    """Return the middle (x, y) of a box and its size, the geometric mean of its sides."""
    left, top, right, bottom = box
    return (left + right) / 2, (top + bottom) / 2, math.sqrt(max((right - left) * (bottom - top), 1e-12))
