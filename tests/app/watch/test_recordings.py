"""Animated images, folders of frames, and playback at their own rate; the choice of a source."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from app.watch.source import frames as frames_module
from app.watch.source.frames import FrameError, SourceUnusableError
from app.watch.source.recordings import AnimatedImage, FrameFolder, Playback
from app.watch.source.selection import display_name, open_source
from app.watch.source.video import Video

COLOURS = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]


def animation(path: Path, durations: list[int]) -> Path:
    stills = [Image.new("RGB", (64, 48), colour) for colour in COLOURS]
    options: dict[str, Any] = {"quality": 100} if path.suffix == ".webp" else {}
    stills[0].save(path, save_all=True, append_images=stills[1:], duration=durations, loop=0, **options)
    return path


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_animated_images_have_their_frames_at_their_times(tmp_path: Path, suffix: str) -> None:
    source = open_source(str(animation(tmp_path / f"clip{suffix}", [100, 250, 100])))
    frames = list(source.frames())
    assert [frame.time for frame in frames] == pytest.approx([0, 0.1, 0.35])
    for frame, colour in zip(frames, COLOURS, strict=True):
        assert frame.image.mode == "RGB"
        np.testing.assert_allclose(np.asarray(frame.image).mean((0, 1)), colour, atol=12)
    assert not source.live


def test_an_image_that_is_not_animated_is_one_frame(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "one.png")
    assert [frame.time for frame in AnimatedImage(tmp_path / "one.png").frames()] == [0]


def test_a_truncated_animation_ends_with_an_error(tmp_path: Path) -> None:
    path = animation(tmp_path / "clip.gif", [100, 100, 100])
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(SourceUnusableError, match=r"clip[.]gif"):
        list(AnimatedImage(path).frames())
    path.write_bytes(b"GIF89a")
    with pytest.raises(SourceUnusableError, match=r"clip[.]gif"):
        list(AnimatedImage(path).frames())


def test_frames_with_too_many_pixels_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames_module, "MAX_PIXELS", 64 * 48 - 1)
    with pytest.raises(SourceUnusableError, match=r"64 x 48"):
        list(AnimatedImage(animation(tmp_path / "clip.gif", [100] * 3)).frames())


def test_a_folder_is_read_in_the_order_of_names_and_damaged_files_are_errors_of_one_frame(tmp_path: Path) -> None:
    for name, colour in zip(["b.png", "a.jpg", "c.bmp"], COLOURS, strict=True):
        Image.new("RGB", (16, 16), colour).save(tmp_path / name)
    (tmp_path / "bb.jpg").write_bytes(b"no image")
    (tmp_path / "notes.txt").write_text("text")
    source = open_source(str(tmp_path), folder_fps=5)
    frames = list(source.frames())
    assert [frame.time for frame in frames] == pytest.approx([0, 0.2, 0.4, 0.6])
    np.testing.assert_allclose(np.asarray(frames[0].image).mean((0, 1)), COLOURS[1], atol=3)
    with pytest.raises(FrameError, match=r"bb[.]jpg"):
        _ = frames[2].image
    np.testing.assert_allclose(np.asarray(frames[3].image).mean((0, 1)), COLOURS[2], atol=3)


def test_a_folder_without_images_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceUnusableError, match="no image"):
        list(FrameFolder(tmp_path).frames())


def test_playback_takes_as_long_as_the_recording(tmp_path: Path) -> None:
    source = open_source(str(animation(tmp_path / "clip.gif", [100, 100, 100])), realtime=True)
    assert isinstance(source, Playback)
    assert source.live
    begun = time.monotonic()
    frames = list(source.frames())
    assert time.monotonic() - begun >= 0.2
    assert [frame.read_at - begun for frame in frames][1:] >= [0.1, 0.2]


@pytest.mark.parametrize(
    ("source", "url", "name"),
    [
        (
            "rtsp://me:secret@camera:554/live?token=1",
            "rtsp://me:secret@camera:554/live?token=1",
            "rtsp://camera:554/live",
        ),
        ("http://camera/video.mjpg", "http://camera/video.mjpg", "http://camera/video.mjpg"),
        ("0", "/dev/video0", "/dev/video0"),
        ("/dev/video12", "/dev/video12", "/dev/video12"),
    ],
)
def test_live_sources(source: str, url: str, name: str) -> None:
    video = open_source(source)
    assert isinstance(video, Video)
    assert (video.url, video.name, video.live) == (url, name, True)


def test_other_schemes_and_missing_files_are_refused() -> None:
    with pytest.raises(SourceUnusableError, match=r"file://.*one of http, https, rtsp, rtsps"):
        open_source("file:///etc/passwd")
    with pytest.raises(SourceUnusableError, match="no such file"):
        open_source("missing.mp4")


def test_names_never_contain_credentials() -> None:
    assert display_name("rtsp://user:p@ss@camera/a?key=secret#x") == "rtsp://camera/a"
    assert display_name("folder/clip.gif") == "folder/clip.gif"
