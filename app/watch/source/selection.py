"""Choose the source for SOURCE, the argument of `vestibule watch`."""

from __future__ import annotations

import re
from pathlib import Path

from app.watch.source.frames import Source, SourceUnusableError
from app.watch.source.recordings import ANIMATED, FOLDER_FPS, AnimatedImage, FrameFolder, Playback
from app.watch.source.video import NETWORK_OPTIONS, Video

SCHEMES = frozenset({"rtsp", "rtsps", "http", "https"})
ADDRESS = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?:[^/?#]*@)?(?P<rest>[^?#]*)", re.IGNORECASE)
WEBCAM = re.compile(r"(?:/dev/video)?(\d{1,2})")


def open_source(source: str, *, folder_fps: float = FOLDER_FPS, realtime: bool = False) -> Source:
    """Return the source: an address, a webcam (its number, or /dev/videoN), a folder of frames, or a file.

    `realtime`: play a recording at its own rate and drop frames as from a camera; else every frame is processed.

    Raises:
        SourceUnusableError: there is no such file, or an address has an unsupported scheme.
    """
    if address := ADDRESS.match(source):
        if address["scheme"].lower() not in SCHEMES:
            raise SourceUnusableError(
                f"{display_name(source)}: the scheme of a stream is one of {', '.join(sorted(SCHEMES))}"
            )
        return Video(source, display_name(source), live=True, options=tuple(NETWORK_OPTIONS.items()))
    path = Path(source)
    if (webcam := WEBCAM.fullmatch(source)) and not path.is_file():
        device = f"/dev/video{webcam[1]}"
        return Video(device, device, live=True, format="v4l2")
    recording = _recording(path, folder_fps)
    return Playback(recording) if realtime else recording


def _recording(path: Path, folder_fps: float) -> Source:
    if path.is_dir():
        return FrameFolder(path, folder_fps)
    if not path.is_file():
        raise SourceUnusableError(f"{path}: no such file or folder")
    if path.suffix.lower() in ANIMATED:
        return AnimatedImage(path)
    # FFmpeg reads "name:..." as a protocol, which a file's name must not be.
    return Video(f"file:{path}", str(path), options=(("protocol_whitelist", "file"),))


def display_name(source: str) -> str:
    """Return the source without credentials: an address without user, password, query and fragment."""
    address = ADDRESS.match(source)
    return f"{address['scheme']}://{address['rest']}" if address else source
