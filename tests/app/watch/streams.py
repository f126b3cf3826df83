"""Videos and an HTTP server of streams, for tests and measurements of bad streams."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import BinaryIO, cast

import av
import numpy as np
from PIL import Image

# Writes a stream to a client, connection after connection; `number` counts from 0.
Send = Callable[[BinaryIO, int], None]


def encode_video(images: list[Image.Image], *, fps: int = 10, format: str = "mpegts", codec: str = "mpeg4") -> bytes:
    """Return the images, all of one size, as the bytes of a video."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=format) as container:
        stream = container.add_stream(codec, rate=fps)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height = images[0].size
        stream.pix_fmt = "yuv420p"
        stream.gop_size = 5
        stream.bit_rate = 4_000_000
        for image in images:
            frame = av.VideoFrame.from_image(image)  # type: ignore[no-untyped-call]
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def pictures(count: int, size: tuple[int, int] = (160, 120)) -> list[Image.Image]:
    """Return pictures with a bar that moves to the right."""
    found = []
    for index in range(count):
        pixels = np.full((size[1], size[0], 3), 60, np.uint8)
        left = index * size[0] // (count + 1)
        pixels[:, left : left + size[0] // 8] = 220
        found.append(Image.fromarray(pixels))
    return found


@contextmanager
def streaming(send: Send, media_type: str = "video/mp2t") -> Iterator[str]:
    """Serve a stream on loopback and yield its address; each connection is one call of `send`."""
    numbers = iter(range(1_000_000))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", media_type)
            self.end_headers()
            try:
                send(cast("BinaryIO", self.wfile), next(numbers))
            except (BrokenPipeError, ConnectionResetError):
                return

        def log_message(self, *_: object) -> None:
            return

    class Server(ThreadingHTTPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/stream"
        finally:
            server.shutdown()
            thread.join()
