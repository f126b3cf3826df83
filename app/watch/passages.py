"""Passages: one person who passes a camera, from the first frame to the last, possibly in several tracks."""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field

from app.watch.decisions import PassageDecision, better
from app.watch.shots import BestShots
from app.watch.source.frames import Frame
from app.watch.tracker import Track
from vestibule_client.answers import Face

# A passage with fewer detections, or without a detection of this confidence, is taken for an error of the detector.
MIN_DETECTIONS, MIN_CONFIDENCE = 3, 0.55
# A track that starts this many seconds after a passage was last in view may continue it.
GAP_S = 3.0
# How far away such a track may start, in face sizes, at once and more per second; and the largest ratio of the sizes.
NEAR, NEAR_PER_S, SIZE_RATIO = 2.0, 2.0, 2.5
# A track without a usable shot continues a passage that is nearer than this in sizes and seconds.
ADJACENT, ADJACENT_S = 1.5, 1.5
# Before the end of a passage at most this many searches, the next one when the shots have this many times the score of
# the last search's, and after this many seconds.
MAX_LOOKS, BETTER, LOOK_APART_S = 3, 1.8, 0.5


@dataclass(eq=False)
class TrackedPassage:
    """A person in view, or out of view for a short time. `detections` counts frames in which the face was detected.

    `started_at` and `ended_at` are Unix times; `began` and `last` are in seconds on the source's clock. `origin` is the
    first position: the middle (x, y) and the size, in frame widths. `usable_since` is the monotonic time of the first
    frame whose quality suffices. `compared` are the ids of passages that it does not continue.
    """

    track: Track
    started_at: float
    began: float
    origin: tuple[float, float, float]
    id: str = field(default_factory=lambda: secrets.token_hex(16))
    ended_at: float = 0.0
    last: float = 0.0
    detections: int = 0
    confidence: float = 0.0
    shots: BestShots = field(default_factory=BestShots)
    usable_since: float | None = None
    decision: PassageDecision | None = None
    looks: int = 0
    looking: bool = False
    comparing: bool = False
    announced: bool = False
    compared: set[str] = field(default_factory=set)
    _looked_at: float = -math.inf
    _looked_total: float = 0.0

    @property
    def confirmed(self) -> bool:
        """Whether it is a person, and not an error of the detector."""
        return self.detections >= MIN_DETECTIONS and self.confidence >= MIN_CONFIDENCE

    @property
    def wants_look(self) -> bool:
        """Whether a search is worthwhile: for the first usable shot, and when clearly better shots have arrived."""
        if self.looking or self.comparing or self.looks >= MAX_LOOKS or (self.decision and self.decision.matched):
            return False
        return self.shots.total > BETTER * self._looked_total and self.last - self._looked_at >= LOOK_APART_S

    def begin_look(self) -> None:
        """Note that a search with the present shots has begun."""
        self.looking = True
        self.looks += 1
        self._looked_at, self._looked_total = self.last, self.shots.total

    def fail_look(self) -> None:
        """Note that the search under way had no answer, so that it is repeated."""
        self.looking = False
        self.looks -= 1
        self._looked_total = 0.0

    def end_look(self, decision: PassageDecision) -> None:
        """Note the answer of the search under way."""
        self.looking = False
        self.decision = decision if self.decision is None else better(self.decision, decision)

    def observe(self, face: Face, frame: Frame, read_at: float) -> None:
        """Count a detection of the face in a frame that was read at the monotonic time `read_at`."""
        self.last, self.ended_at = frame.time, frame.seen_at
        self.detections += 1
        self.confidence = max(self.confidence, face.confidence)
        if self.usable_since is None and not face.reasons:
            self.usable_since = read_at

    def absorb(self, other: TrackedPassage) -> None:
        """Continue this passage by another one of the same person, which began later."""
        self.track, self.last, self.ended_at = other.track, other.last, other.ended_at
        self.detections += other.detections
        self.confidence = max(self.confidence, other.confidence)
        self.shots.merge(other.shots)
        self.compared |= other.compared
        if self.usable_since is None:
            self.usable_since = other.usable_since
        if self.decision is None or (other.decision and other.decision.matched and not self.decision.matched):
            self.decision = other.decision
        self.looks += other.looks


class Passages:
    """The passages that are in view, or may still be continued."""

    def __init__(self) -> None:
        self._passages: list[TrackedPassage] = []

    def __iter__(self) -> Iterator[TrackedPassage]:
        """Iterate over the passages, the oldest first."""
        return iter(list(self._passages))

    def of(self, track: Track, frame: Frame) -> TrackedPassage:
        """Return the track's passage, a new one if it has none."""
        for passage in self._passages:
            if passage.track is track:
                return passage
        passage = TrackedPassage(track, frame.seen_at, frame.time, (track.x, track.y, track.size))
        self._passages.append(passage)
        return passage

    def predecessor(self, passage: TrackedPassage) -> TrackedPassage | None:
        """Return the nearest passage that this one may continue, and with which it was not compared."""
        candidates = [
            (distance, other)
            for other in self._passages
            if other is not passage
            and other.id not in passage.compared
            and not other.comparing
            and (distance := _distance(other, passage)) is not None
        ]
        return min(candidates, key=lambda pair: pair[0])[1] if candidates else None

    def adjacent(self, time: float) -> tuple[TrackedPassage, TrackedPassage] | None:
        """Return an ended passage and the nearest one that continues it by place and time alone; None for none.

        The later one has no usable shot, though it has had the time until the earlier one ends, as in `take_ended`.
        """
        pairs = [
            (distance, earlier, later)
            for earlier in self._passages
            for later in self._passages
            if time - earlier.last > GAP_S
            and later.confirmed
            and later.usable_since is None
            and not (earlier.comparing or later.comparing)
            and (distance := _distance(earlier, later)) is not None
            and distance <= ADJACENT
            and later.began - earlier.last <= ADJACENT_S
        ]
        return min(pairs, key=lambda pair: pair[0])[1:] if pairs else None

    def merge(self, earlier: TrackedPassage, later: TrackedPassage) -> None:
        """Continue the earlier passage by the later one, which is removed."""
        earlier.absorb(later)
        self._passages = [passage for passage in self._passages if passage is not later]

    def take_ended(self, time: float) -> list[TrackedPassage]:
        """Remove and return the passages that cannot be continued any more at `time`, in seconds."""
        ended = [
            passage
            for passage in self._passages
            if time - passage.last > GAP_S and not passage.looking and not passage.comparing
        ]
        self._passages = [passage for passage in self._passages if passage not in ended]
        return ended

    def take_all(self) -> list[TrackedPassage]:
        """Remove and return all passages."""
        passages, self._passages = self._passages, []
        return passages


def _distance(earlier: TrackedPassage, later: TrackedPassage) -> float | None:
    """Return how far from the end of a passage another began, in face sizes; None if it cannot continue it."""
    gap = later.began - earlier.last
    if not 0 <= gap <= GAP_S:
        return None
    end, (x, y, size) = earlier.track, later.origin
    distance = math.dist((end.x, end.y), (x, y)) / ((end.size + size) / 2)
    similar = max(end.size, size) <= SIZE_RATIO * min(end.size, size)
    return distance if similar and distance <= NEAR + NEAR_PER_S * gap else None
