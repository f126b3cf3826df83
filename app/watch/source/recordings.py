"""Sources that Pillow reads: animated images and folders of frames; and the playback of a recording at its own rate."""

from __future__ import annotations

import struct
import time
from collections.abc import Generator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from PIL import Image

from app.watch.source.frames import Frame, FrameError, Source, SourceUnusableError, checked_size, seen_at

ANIMATED = {".gif": "GIF", ".webp": "WEBP", ".png": "PNG", ".apng": "PNG"}
STILLS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".bmp": "BMP"}
# The duration of frames whose file states none, as browsers show them.
DEFAULT_DURATION_S = 0.1
FOLDER_FPS = 10.0

# The exceptions that Pillow raises for damaged files.
DAMAGED = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    ArithmeticError,
    LookupError,
    struct.error,
    Image.DecompressionBombError,
)


@dataclass(frozen=True)
class AnimatedImage:
    """The frames of a GIF, WebP or APNG file at its own rate; an image that is not animated is one frame."""

    path: Path
    live: bool = False

    def frames(self) -> Generator[Frame, None, None]:
        """Yield the frames; see `Source`."""
        begun_at, elapsed = time.time(), 0.0
        try:
            image = Image.open(self.path, formats=[ANIMATED[self.path.suffix.lower()]])
        except DAMAGED as error:
            raise SourceUnusableError(f"{self.path}: {error}") from error
        with image:
            for position in range(getattr(image, "n_frames", 1)):
                try:
                    checked_size(*image.size)
                    image.seek(position)
                    pixels = image.convert("RGB")
                except (*DAMAGED, FrameError) as error:
                    raise SourceUnusableError(f"{self.path}, frame {position}: {error}") from error
                yield Frame(elapsed, partial(_identity, pixels), seen_at(begun_at, elapsed))
                elapsed += (image.info.get("duration") or DEFAULT_DURATION_S * 1000) / 1000


@dataclass(frozen=True)
class FrameFolder:
    """The images of a folder in the order of their names, `fps` of them per second."""

    path: Path
    fps: float = FOLDER_FPS
    live: bool = False

    def frames(self) -> Generator[Frame, None, None]:
        """Yield the frames; see `Source`."""
        try:
            files = sorted(path for path in self.path.iterdir() if path.suffix.lower() in STILLS)
        except OSError as error:
            raise SourceUnusableError(f"{self.path}: {error.strerror}") from error
        if not files:
            raise SourceUnusableError(f"{self.path}: the folder has no image ({', '.join(sorted(STILLS))})")
        begun_at = time.time()
        for position, file in enumerate(files):
            elapsed = position / self.fps
            yield Frame(elapsed, partial(read_still, file), seen_at(begun_at, elapsed))


def read_still(file: Path) -> Image.Image:
    """Return an image file as RGB.

    Raises:
        FrameError: it cannot be read.
    """
    try:
        with Image.open(file, formats=[STILLS[file.suffix.lower()]]) as image:
            checked_size(*image.size)
            return image.convert("RGB")
    except DAMAGED as error:
        raise FrameError(f"{file}: {error}") from error


@dataclass(frozen=True)
class Playback:
    """A recording whose frames arrive at its own rate, as from a camera."""

    recording: Source
    live: bool = True

    def frames(self) -> Generator[Frame, None, None]:
        """Yield the frames, each at its time; see `Source`."""
        begun = time.monotonic()
        for frame in self.recording.frames():
            time.sleep(max(0.0, begun + frame.time - time.monotonic()))
            yield replace(frame, read_at=time.monotonic(), seen_at=time.time())


def _identity(image: Image.Image) -> Image.Image:
    return image
