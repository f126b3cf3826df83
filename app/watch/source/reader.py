"""Read a source in a thread of its own, and hand over one frame at a time."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

from app.watch.source.frames import Frame, Source, SourceError, SourceUnusableError

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
# The wait starts from FIRST_WAIT_S again after a source has worked for this long.
WORKED_S = 60.0


def backoff(attempt: int) -> float:
    """Return the seconds to wait before attempt `attempt` + 1, counted from 0.

    The wait doubles with each attempt, and half of it is random, so that the watchers that lost the same network or
    service do not all return at the same moment.
    """
    longest = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(attempt, 16))
    return longest * random.uniform(0.5, 1)  # noqa: S311  not a secret


@dataclass
class FrameCounts:
    """Frames that were read, left out to keep the requested rate, and dropped because a newer one had arrived."""

    read: int = 0
    skipped: int = 0
    dropped: int = 0


class FrameReader:
    """Reads a source in a thread and keeps one frame.

    The frame of a live source is replaced by the next, so that the newest is processed and none waits in a queue; a
    recording is read as fast as its frames are taken. At most `fps` frames per second of the source's clock are kept.
    `lost(problem, wait)` is called in the thread when a live source breaks, `found()` when it works again.
    """

    def __init__(
        self, source: Source, *, fps: float, lost: Callable[[str, float], None], found: Callable[[], None]
    ) -> None:
        self.counts = FrameCounts()
        self._source = source
        self._interval = 1 / fps
        self._lost, self._found = lost, found
        self._frame: Frame | None = None
        self._ended = False
        self._failure: SourceError | None = None
        self._changed = threading.Condition()
        self._stopped = threading.Event()
        self._due = float("-inf")
        self._thread = threading.Thread(target=self._run, name="frames", daemon=True)

    def start(self) -> None:
        """Start to read."""
        self._thread.start()

    def stop(self) -> None:
        """Stop reading; `take` returns None. A read in progress ends in the background, within its timeout."""
        self._stopped.set()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def take(self, timeout: float) -> Frame | None:
        """Wait at most `timeout` seconds for a frame and return it; None if there is none.

        Raises:
            SourceError: the source cannot be read, and will not be opened again.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._frame is not None or self._ended, timeout)
            frame, self._frame = self._frame, None
            self._changed.notify_all()
            if frame is None and self._failure is not None:
                raise self._failure
            return frame

    @property
    def ended(self) -> bool:
        """Whether no further frame will be taken."""
        with self._changed:
            return self._ended and self._frame is None

    def _run(self) -> None:
        attempt = 0
        while not self._stopped.is_set():
            begun, read = time.monotonic(), self.counts.read
            try:
                self._read(recovered=attempt > 0)
                break
            except SourceError as error:
                if not self._source.live or isinstance(error, SourceUnusableError):
                    self._failure = error
                    break
                attempt = 0 if self.counts.read > read and time.monotonic() - begun > WORKED_S else attempt
                wait = backoff(attempt)
                attempt += 1
                self._lost(str(error), wait)
                self._stopped.wait(wait)
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _read(self, *, recovered: bool) -> None:
        """Read the source once; `recovered`: an earlier attempt failed.

        Raises:
            SourceError.
        """
        with closing(self._source.frames()) as frames:
            for position, frame in enumerate(frames):
                if position == 0 and recovered:
                    self._found()
                if self._stopped.is_set():
                    return
                self.counts.read += 1
                self._put(frame)

    def _put(self, frame: Frame) -> None:
        # A quarter of the interval of tolerance: the times of a stream at exactly the requested rate vary.
        if frame.time < self._due - self._interval / 4:
            self.counts.skipped += 1
            return
        self._due = max(self._due + self._interval, frame.time)
        with self._changed:
            if not self._source.live:
                self._changed.wait_for(lambda: self._frame is None or self._stopped.is_set())
            self.counts.dropped += self._frame is not None
            self._frame = frame
            self._changed.notify_all()
