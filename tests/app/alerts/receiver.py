"""A receiver of webhooks: an HTTP server on loopback that answers as a test says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

Answer = int | bytes | None


@dataclass
class Received:
    """A request: its path, its headers by lower-case name, and its body."""

    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    """`answer`: a status, the bytes of a whole response, or None for no answer at all, for each request."""

    answer: Callable[[Received], Answer] = lambda request: 204
    requests: list[Received] = field(default_factory=list)
    connections: int = 0
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook?door=1"

    @property
    def ids(self) -> list[str]:
        return [request.headers["webhook-id"] for request in self.requests]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while line := await reader.readline():
                path = line.decode().split(" ")[1]
                headers: dict[str, str] = {}
                while field_ := (await reader.readline()).strip():
                    name, _, value = field_.decode().partition(":")
                    headers[name.lower()] = value.strip()
                request = Received(path, headers, await reader.readexactly(int(headers.get("content-length", 0))))
                self.requests.append(request)
                answer = self.answer(request)
                if answer is None:
                    await reader.read()  # until the client gives up
                    return
                writer.write(
                    b"HTTP/1.1 %d x\r\ncontent-length: 0\r\n\r\n" % answer if isinstance(answer, int) else answer
                )
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def receiver(
    answer: Callable[[Received], Answer] = lambda request: 204, port: int = 0
) -> AsyncIterator[Receiver]:
    """Serve on a free port, or on this one."""
    running = Receiver(answer)
    server = await asyncio.start_server(running.serve, "127.0.0.1", port)
    running.port = server.sockets[0].getsockname()[1]
    async with server:
        yield running
