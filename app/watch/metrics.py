"""What the watcher counts, and the latencies that it measures."""

from __future__ import annotations

from collections import deque
from dataclasses import asdict, dataclass, field

import numpy as np

# Percentiles are of the newest values, so that memory stays bounded and a summary shows the present state.
NEWEST = 1000


class Latencies:
    """Percentiles of the newest durations in seconds."""

    def __init__(self) -> None:
        self._values: deque[float] = deque(maxlen=NEWEST)

    def add(self, seconds: float) -> None:
        """Add a duration."""
        self._values.append(seconds)

    def summary(self) -> dict[str, float] | None:
        """Return the median, the 95th percentile and the longest duration in milliseconds; None without any."""
        if not self._values:
            return None
        values = np.array(self._values) * 1000
        p50, p95 = np.percentile(values, (50, 95))
        return {"p50_ms": round(float(p50), 1), "p95_ms": round(float(p95), 1), "max_ms": round(float(values.max()), 1)}


@dataclass
class Counts:
    """Counts since the start.

    `processed`: frames in which faces were detected. `failed`: frames that could not be decoded, or that the service
    did not process. `merged`: passages that continued another. `discarded`: passages that were too short. `searches`
    include those at the end of passages. `refused`: sightings that the service will never store. `lost`: sightings
    deleted because the queue was full or they were too old.
    """

    processed: int = 0
    failed: int = 0
    faces: int = 0
    passages: int = 0
    merged: int = 0
    discarded: int = 0
    searches: int = 0
    comparisons: int = 0
    stored: int = 0
    refused: int = 0
    lost: int = 0


@dataclass
class WatchMetrics:
    """Counts and latencies of a watcher.

    `frame`: from reading a frame to its faces. `answer`: from reading the first frame with a usable face of a passage
    to the first answer of a search.
    """

    counts: Counts = field(default_factory=Counts)
    frame: Latencies = field(default_factory=Latencies)
    answer: Latencies = field(default_factory=Latencies)

    def summary(self) -> dict[str, object]:
        """Return the counts and latencies for an event."""
        return {**asdict(self.counts), "frame_latency": self.frame.summary(), "answer_latency": self.answer.summary()}
