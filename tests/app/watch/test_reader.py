"""The thread that reads a source: the newest frame, the rate, reopening, and the end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass, field

import pytest
from PIL import Image

from app.watch.source import reader as reader_module
from app.watch.source.frames import Frame, SourceError, SourceUnusableError
from app.watch.source.reader import FrameReader, backoff
from tests.app.conftest import until

WAIT_S = 60.0


@dataclass
class Scripted:
    """A source whose openings each yield the times of a list, and then end or raise."""

    openings: list[tuple[list[float], Exception | None]]
    live: bool = True
    opened: int = 0
    proceed: threading.Event = field(default_factory=threading.Event)

    def frames(self) -> Generator[Frame, None, None]:
        times, error = self.openings[min(self.opened, len(self.openings) - 1)]
        self.opened += 1
        for time in times:
            yield Frame(time, lambda: Image.new("RGB", (4, 4)))
        self.proceed.wait(WAIT_S)
        if error:
            raise error


@pytest.fixture
def events() -> list[object]:
    return []


@pytest.fixture
def read(events: list[object], monkeypatch: pytest.MonkeyPatch) -> Callable[..., FrameReader]:
    monkeypatch.setattr(reader_module, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(reader_module, "LONGEST_WAIT_S", 0.02)

    def start(source: Scripted, fps: float = 10.0) -> FrameReader:
        reader = FrameReader(
            source, fps=fps, lost=lambda problem, _: events.append(problem), found=lambda: events.append("found")
        )
        reader.start()
        return reader

    return start


def test_a_live_source_hands_over_the_newest_frame_and_drops_the_others(read: Callable[..., FrameReader]) -> None:
    source = Scripted([([0.0, 0.1, 0.2, 0.3], SourceUnusableError("gone"))])
    reader = read(source)
    until(lambda: reader.counts.read == 4)
    until(lambda: reader.counts.dropped == 3)
    frame = reader.take(WAIT_S)
    assert frame is not None
    assert frame.time == 0.3
    assert reader.take(0.01) is None
    assert not reader.ended
    source.proceed.set()
    with pytest.raises(SourceUnusableError, match="gone"):
        reader.take(WAIT_S)
    assert reader.ended


def test_a_recording_waits_until_each_frame_is_taken(read: Callable[..., FrameReader]) -> None:
    source = Scripted([([0.0, 0.1, 0.2, 0.3], None)], live=False)
    source.proceed.set()
    reader = read(source)
    times = []
    while not reader.ended:
        if frame := reader.take(0.05):
            times.append(frame.time)
    assert times == [0.0, 0.1, 0.2, 0.3]
    assert (reader.counts.read, reader.counts.dropped, reader.counts.skipped) == (4, 0, 0)


def test_frames_beyond_the_requested_rate_are_skipped(read: Callable[..., FrameReader]) -> None:
    # 30 frames per second whose times vary by a few milliseconds.
    times = [index / 30 + (index % 3) * 0.002 for index in range(90)]
    source = Scripted([(times, None)], live=False)
    source.proceed.set()
    reader = read(source, fps=10)
    taken = []
    while not reader.ended:
        if frame := reader.take(0.05):
            taken.append(frame.time)
    assert len(taken) == pytest.approx(30, abs=1)
    assert reader.counts.skipped == 90 - len(taken)


def test_a_live_source_is_reopened_after_errors(read: Callable[..., FrameReader], events: list[object]) -> None:
    broken = SourceError("broken")
    source = Scripted([([], broken), ([], broken), ([1.0], SourceUnusableError("end"))])
    source.proceed.set()
    reader = read(source)
    until(lambda: reader.ended or reader.counts.read == 1)
    assert events == ["broken", "broken", "found"]
    assert source.opened == 3


def test_a_recording_that_breaks_is_not_reopened(read: Callable[..., FrameReader], events: list[object]) -> None:
    source = Scripted([([], SourceError("damaged"))], live=False)
    source.proceed.set()
    reader = read(source)
    with pytest.raises(SourceError, match="damaged"):
        reader.take(WAIT_S)
    assert (source.opened, events) == (1, [])


def test_stop_ends_a_wait(read: Callable[..., FrameReader]) -> None:
    source = Scripted([([], SourceError("broken"))])
    reader = read(source)
    threading.Timer(0.05, reader.stop).start()
    assert reader.take(WAIT_S) is None
    assert reader.ended
    source.proceed.set()


def test_the_wait_doubles_up_to_its_limit_and_half_of_it_is_random() -> None:
    waits = [[backoff(attempt) for _ in range(200)] for attempt in (0, 1, 3, 20, 10_000)]
    for values, longest in zip(waits, (0.5, 1, 4, 30, 30), strict=True):
        assert longest / 2 <= min(values) < 0.6 * longest
        assert 0.9 * longest < max(values) <= longest
