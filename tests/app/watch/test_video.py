"""Video files and streams: frames and times, and streams that stall, break, change, or send garbage."""

from __future__ import annotations

import builtins
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest

pytest.importorskip("av", reason="PyAV is in the extra `watch`")

from app.watch.source import reader as reader_module
from app.watch.source import video
from app.watch.source.frames import FrameError, SourceError, SourceUnusableError
from app.watch.source.reader import FrameReader
from app.watch.source.selection import open_source
from app.watch.source.video import Lateness
from tests.app.conftest import until
from tests.app.watch.streams import encode_video, pictures, streaming

WAIT_S = 60.0


@pytest.fixture(autouse=True)
def _short_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "READ_TIMEOUT_S", 1.0)
    monkeypatch.setattr(reader_module, "FIRST_WAIT_S", 0.02)
    monkeypatch.setattr(reader_module, "LONGEST_WAIT_S", 0.05)


def taken(url: str, enough: Callable[[list[tuple[int, int]]], bool]) -> tuple[list[tuple[int, int]], list[str]]:
    """Read a stream until there are enough sizes of frames; return them and the problems."""
    problems: list[str] = []
    reader = FrameReader(open_source(url), fps=60, lost=lambda problem, _: problems.append(problem), found=lambda: None)
    reader.start()
    sizes: list[tuple[int, int]] = []
    deadline = time.monotonic() + WAIT_S
    while not enough(sizes):
        assert time.monotonic() < deadline, (sizes, problems)
        if frame := reader.take(0.1):
            sizes.append(frame.image.size)
    reader.stop()
    return sizes, problems


@pytest.mark.parametrize("format", ["mp4", "matroska", "avi"])
def test_a_video_file_has_its_frames_at_their_times(tmp_path: Path, format: str) -> None:
    images = pictures(12)
    path = tmp_path / f"clip.{format}"
    path.write_bytes(encode_video(images, format=format))
    source = open_source(str(path))
    frames = list(source.frames())
    assert [frame.time for frame in frames] == pytest.approx([index / 10 for index in range(12)], abs=0.011)
    for frame, image in zip(frames, images, strict=True):
        difference = np.abs(np.asarray(frame.image, np.int16) - np.asarray(image, np.int16))
        assert difference.mean() < 6
    assert not source.live


def test_a_file_that_is_no_video_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"no video" * 100)
    with pytest.raises(SourceUnusableError, match=r"clip\.mp4"):
        list(open_source(str(path)).frames())


def test_a_file_with_sound_only_is_an_error(tmp_path: Path) -> None:
    import wave

    path = tmp_path / "sound.wav"
    with wave.open(str(path), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(8000))
    with pytest.raises(SourceError, match="no video stream"):
        list(open_source(str(path)).frames())


def test_without_pyav_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_av(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "av":
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without_av)
    with pytest.raises(SourceUnusableError, match=r"rtsp://camera/live: .*pip install 'vestibule\[watch\]'"):
        list(open_source("rtsp://me:secret@camera/live").frames())


def test_errors_do_not_contain_credentials() -> None:
    with pytest.raises(SourceError) as caught:
        list(open_source("http://me:secret@127.0.0.1:1/live?token=secret").frames())
    assert "secret" not in str(caught.value)
    assert "http://127.0.0.1:1/live" in str(caught.value)


def test_a_stream_that_ends_is_opened_again() -> None:
    data = encode_video(pictures(10))

    numbers: list[int] = []

    def send(file: BinaryIO, number: int) -> None:
        numbers.append(number)
        file.write(data)

    with streaming(send) as url:
        sizes, problems = taken(url, lambda _: len(numbers) >= 3)
    assert set(sizes) == {(160, 120)}
    assert len(problems) >= 2


def test_a_stream_that_stalls_is_opened_again() -> None:
    data = encode_video(pictures(20))
    over = threading.Event()

    def send(file: BinaryIO, number: int) -> None:
        file.write(data[: len(data) // 2] if number == 0 else data)
        file.flush()
        if number == 0:
            over.wait(WAIT_S)

    with streaming(send) as url:
        problems: list[str] = []
        reader = FrameReader(
            open_source(url), fps=60, lost=lambda problem, _: problems.append(problem), found=lambda: None
        )
        reader.start()
        until(lambda: len(problems) >= 2)  # the stall of the first connection, and the end of the second
        over.set()
        reader.stop()
    assert reader.counts.read > 5


def test_a_stream_of_garbage_is_opened_again_until_it_is_a_video() -> None:
    data = encode_video(pictures(10))
    garbage = np.random.default_rng(0).bytes(400_000)

    def send(file: BinaryIO, number: int) -> None:
        file.write(garbage if number < 2 else data)

    with streaming(send) as url:
        sizes, problems = taken(url, lambda sizes: len(sizes) >= 3)
    assert set(sizes) == {(160, 120)}
    assert len(problems) >= 2


def test_a_damaged_part_of_a_stream_is_skipped() -> None:
    data = bytearray(encode_video(pictures(60)))
    random = np.random.default_rng(1)
    middle = slice(len(data) // 3, len(data) // 2)
    data[middle] = random.bytes(middle.stop - middle.start)

    def send(file: BinaryIO, number: int) -> None:
        file.write(bytes(data))

    with streaming(send) as url:
        sizes, _ = taken(url, lambda sizes: len(sizes) >= 8)
    assert set(sizes) == {(160, 120)}


def test_a_stream_may_change_its_resolution() -> None:
    small, large = encode_video(pictures(15)), encode_video(pictures(15, (320, 240)))

    def send(file: BinaryIO, number: int) -> None:
        file.write(small if number % 2 == 0 else large)

    with streaming(send) as url:
        sizes, _ = taken(url, lambda sizes: len(set(sizes)) == 2)
    assert set(sizes) == {(160, 120), (320, 240)}


def test_frames_with_too_many_pixels_are_errors_of_one_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.watch.source.frames.MAX_PIXELS", 1000)
    path = tmp_path / "clip.mp4"
    path.write_bytes(encode_video(pictures(3), format="mp4"))
    frame = next(open_source(str(path)).frames())
    with pytest.raises(FrameError, match="160 x 120"):
        _ = frame.image


def test_a_stream_is_late_if_its_time_stamps_fall_behind_and_on_time_when_they_have_caught_up() -> None:
    lateness = Lateness()
    assert not lateness.is_late(media_time=0.0, now=100.0)
    assert not lateness.is_late(1.0, 101.5)
    assert lateness.is_late(2.0, 103.5)
    assert lateness.is_late(3.0, 103.5)
    assert not lateness.is_late(4.0, 104.1)
    # A camera's clock that was set is no lateness, in either direction.
    assert not lateness.is_late(2.0, 105.1)
    assert not lateness.is_late(3.0, 106.1)
    assert not lateness.is_late(5000.0, 107.0)
    assert not lateness.is_late(5001.0, 200.0)
