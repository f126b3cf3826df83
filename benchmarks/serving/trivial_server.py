"""A server that computes nothing: what the load generator can do by itself.

`python -m benchmarks.serving.trivial_server PORT`
"""

from __future__ import annotations

import asyncio
import sys

import uvloop

HOST = "127.0.0.1"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n[]"


class Trivial(asyncio.Protocol):
    """Answers each request when the last byte of its body is there; the head must come in one piece."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client."""
        self._transport, self._missing = transport, 0

    def data_received(self, data: bytes) -> None:
        """Of one request at a time."""
        if not self._missing:
            head, _, body = data.partition(b"\r\n\r\n")
            self._missing = length(head) - len(body)
        else:
            self._missing -= len(data)
        if self._missing <= 0:
            self._missing = 0
            self._transport.write(ANSWER)  # type: ignore[attr-defined]


def length(head: bytes) -> int:
    """What the head says that the body has; 0 where it says nothing."""
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    return 0


async def serve(port: int) -> None:
    """Until told to stop."""
    server = await asyncio.get_running_loop().create_server(Trivial, HOST, port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
