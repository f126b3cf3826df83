"""Sources that PyAV reads: video files, RTSP and HTTP streams, webcams."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, cast

from app.watch.source.frames import Frame, FrameError, SourceError, SourceUnusableError, checked_size, seen_at

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream
    from PIL import Image

OPEN_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 10.0
# A live stream that is this many seconds late is decoded at its key frames only, until it is on time again. A decoder
# that is too slow for the stream would otherwise be later with each frame.
LATE_S, ON_TIME_S = 1.0, 0.25
# Time stamps that decrease, or fall behind by more than this, mean that the camera's clock was set, not lateness.
CLOCK_STEP_S = 20.0
# This many damaged packets in a row are not a stream.
MAX_DAMAGED_PACKETS = 250

NETWORK_OPTIONS = {
    "rtsp_transport": "tcp",
    # A playlist must not make FFmpeg read local files.
    "protocol_whitelist": "rtsp,rtsps,rtp,srtp,udp,tcp,tls,http,https,httpproxy,crypto",
    "fflags": "nobuffer",
    "analyzeduration": "2000000",
}


@dataclass(frozen=True)
class Video:
    """A video that FFmpeg reads from `url`, a file or an address; `name` is shown in errors, without credentials."""

    url: str
    name: str
    live: bool = False
    format: str | None = None
    options: tuple[tuple[str, str], ...] = ()

    def frames(self) -> Generator[Frame, None, None]:
        """Yield the frames; see `Source`. Damaged packets are skipped."""
        with self._opened() as container:
            if not container.streams.video:
                raise SourceError(f"{self.name}: no video stream")
            stream = container.streams.video[0]
            # Threads that decode several frames at once delay each frame by their number.
            stream.thread_type = "SLICE" if self.live else "AUTO"
            begun_at, lateness = time.time(), Lateness()
            for frame in self._decoded(container, stream):
                media_time, now = float(frame.time or 0.0), time.monotonic()
                if self.live:
                    stream.codec_context.skip_frame = "NONKEY" if lateness.is_late(media_time, now) else "DEFAULT"
                    yield Frame(now, partial(to_image, frame))
                else:
                    yield Frame(media_time, partial(to_image, frame), seen_at(begun_at, media_time))
        if self.live:
            raise SourceError(f"{self.name}: the stream ended")

    def _decoded(self, container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
        """Yield the decoded frames of all packets that are not damaged.

        Raises:
            SourceError: MAX_DAMAGED_PACKETS in a row are damaged, or the stream cannot be read.
        """
        import av

        damaged = 0
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except av.InvalidDataError as error:
                damaged += 1
                if damaged >= MAX_DAMAGED_PACKETS:
                    raise SourceError(f"{self.name}: the stream has no readable video") from error
                continue
            if frames:
                damaged = 0
            yield from frames

    @contextmanager
    def _opened(self) -> Iterator[InputContainer]:
        """Open the video, close it at the end, and translate FFmpeg's errors, whose texts may contain a password."""
        try:
            import av
        except ImportError as error:
            raise SourceUnusableError(
                f"{self.name}: video files, streams and webcams need PyAV: pip install 'vestibule[watch]'. Animated"
                " images and folders of frames work without it"
            ) from error
        try:
            with av.open(
                self.url,
                format=self.format,
                options=dict(self.options),
                timeout=(OPEN_TIMEOUT_S, READ_TIMEOUT_S),
                metadata_errors="replace",
            ) as container:
                yield container
        except av.FFmpegError as error:
            kind = SourceError if self.live else SourceUnusableError
            raise kind(f"{self.name}: {error.strerror or type(error).__name__}") from error


class Lateness:
    """How many seconds the frames of a live stream arrive after the earliest that any arrived, by their time stamps."""

    def __init__(self) -> None:
        self._offset: float | None = None
        self._last = 0.0
        self._late = False

    def is_late(self, media_time: float, now: float) -> bool:
        """Return whether the stream is late, after a frame with this time stamp was decoded at `now`, in seconds."""
        offset = now - media_time
        restarted = media_time < self._last or (self._offset is not None and offset - self._offset > CLOCK_STEP_S)
        if self._offset is None or offset < self._offset or restarted:
            self._offset = offset
        self._last = media_time
        self._late = offset - self._offset > (ON_TIME_S if self._late else LATE_S)
        return self._late


def to_image(frame: VideoFrame) -> Image.Image:
    """Return a decoded frame as RGB.

    Raises:
        FrameError: it has too many pixels, or a pixel format that cannot be converted.
    """
    checked_size(frame.width, frame.height)
    try:
        return cast("Image.Image", frame.to_image())  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:
        raise FrameError(f"a frame of {frame.format.name} cannot be converted") from error
