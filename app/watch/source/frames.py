"""Frames, the sources that they come from, and the errors of a source."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from functools import cached_property
from time import monotonic
from time import time as unix_time
from typing import Protocol

from PIL import Image

# Camera and animation frames beyond this are refused: 8K has 33 million pixels.
MAX_PIXELS = 50_000_000


class SourceError(Exception):
    """The source cannot be opened or read; a live source is opened again later."""


class SourceUnusableError(SourceError):
    """The source can never be read, so opening it again is of no use."""


class FrameError(Exception):
    """One frame cannot be decoded; the source goes on."""


@dataclass(frozen=True)
class Frame:
    """A frame of a source.

    `time` is in seconds on the source's clock: the media time of a recording, the monotonic clock for a live source.
    `read_at` is the monotonic time at which the frame was read, `seen_at` the Unix time. `load` decodes the pixels.
    """

    time: float
    load: Callable[[], Image.Image]
    seen_at: float = field(default_factory=unix_time)
    read_at: float = field(default_factory=monotonic)

    @cached_property
    def image(self) -> Image.Image:
        """The pixels as RGB, decoded at the first access.

        Raises:
            FrameError: the pixels are damaged, or too many.
        """
        return self.load()


class Source(Protocol):
    """A sequence of frames."""

    @property
    def live(self) -> bool:
        """Whether frames arrive at their own rate: then late frames are dropped, and a broken source is reopened."""
        ...

    def frames(self) -> Generator[Frame, None, None]:
        """Open the source, yield its frames in order of time until its end, and close it.

        Raises:
            SourceError: it cannot be opened or read.
        """
        ...


def seen_at(begun_at: float, media_time: float) -> float:
    """Return the Unix time of a frame of a recording that is played from `begun_at` on.

    A recording that is read faster than it was recorded has no frame in the future.
    """
    return min(begun_at + media_time, unix_time())


def checked_size(width: int, height: int) -> tuple[int, int]:
    """Return the size of a frame in pixels.

    Raises:
        FrameError: it is empty or has more than MAX_PIXELS.
    """
    if width < 1 or height < 1 or width * height > MAX_PIXELS:
        raise FrameError(f"a frame of {width} x {height} pixels; at most {MAX_PIXELS:,} pixels are read")
    return width, height
