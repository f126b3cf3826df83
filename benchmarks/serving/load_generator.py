"""Load: wrk for as many clients as it takes, each with one request at a time; and clients in Python.

wrk is a program in C, which leaves nearly all of the machine to the server; what it takes is measured with it.
"""

from __future__ import annotations

import asyncio
import json
import resource
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.serving.servers import HOST, Request

TIMEOUT_S = 120

_SCRIPT = """
wrk.method = "POST"
local file = io.open("{body}", "rb")
wrk.body = file:read("*a")
file:close()
{headers}
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    '\\nresult {{"requests": %d, "us": %d, "status": %d, "broken": %d, "p50": %f, "p99": %f}}\\n',
    summary.requests, summary.duration, e.status, e.connect + e.read + e.write + e.timeout,
    latency:percentile(50), latency:percentile(99)))
end
"""


@dataclass(frozen=True)
class Load:
    """What so many clients saw, and how much of a core the generator took meanwhile."""

    requests: int
    failed: int
    seconds: float
    p50_ms: float
    p99_ms: float
    generator_cores: float

    @property
    def per_s(self) -> float:
        """Answers that say 200, a second."""
        return (self.requests - self.failed) / self.seconds


def script(request: Request, body: Path) -> str:
    """What wrk is to send; the body is in a file."""
    headers = [f"wrk.headers[{json.dumps(name)}] = {json.dumps(value)}" for name, value in request.headers.items()]
    return _SCRIPT.format(body=body, headers="\n".join(headers))


def parsed(output: str, cores: float) -> Load:
    """What wrk printed.

    Raises:
        ValueError: it did not get to its end.
    """
    line = next((line for line in output.splitlines() if line.startswith("result ")), None)
    if line is None:
        raise ValueError(f"wrk said: {output.strip()[-300:]}")
    said = json.loads(line.removeprefix("result "))
    failed = said["status"] + said["broken"]
    seconds = said["us"] / 1e6
    return Load(said["requests"], failed, seconds, said["p50"] / 1000, said["p99"] / 1000, cores)


def closed(port: int, request: Request, clients: int, seconds: float, folder: Path) -> Load:
    """So many clients, each of which sends its next request when the last is answered.

    Raises:
        ValueError: wrk is not installed, or failed.
    """
    wrk = shutil.which("wrk")
    if wrk is None:
        raise ValueError("wrk is not installed: apt-get install wrk")
    body, lua = folder / "body", folder / "request.lua"
    body.write_bytes(request.body)
    lua.write_text(script(request, body))
    command = [wrk, "--threads=1", f"--connections={clients}", f"--duration={seconds:g}s", "--timeout=60s"]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    url = f"http://{HOST}:{port}{request.path}"
    ran = subprocess.run([*command, f"--script={lua}", url], capture_output=True, text=True, check=False)
    after, took = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - began
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return parsed(ran.stdout + ran.stderr, cpu / took)


@dataclass(frozen=True)
class Reply:
    """An answer, or none (status 0), the seconds from the first byte sent to the last received, and headers."""

    status: int
    seconds: float
    headers: dict[str, str]
    body: bytes = b""


class Clients:
    """Connections to one server, kept open and used again; a request that finds none free opens one more."""

    def __init__(self, port: int):
        self._port = port
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def send(self, request: bytes) -> Reply:
        """The reply to an encoded request."""
        began = time.perf_counter()
        try:
            async with asyncio.timeout(TIMEOUT_S):
                line = self._idle() or await asyncio.open_connection(HOST, self._port)
                try:
                    line[1].write(request)
                    status, headers, body = await _read(line[0])
                except BaseException:
                    line[1].close()
                    raise
        except (OSError, TimeoutError, asyncio.IncompleteReadError, ValueError):
            return Reply(0, time.perf_counter() - began, {})
        if headers.get("connection", "").lower() == "close":
            line[1].close()
        else:
            self._free.append(line)
        return Reply(status, time.perf_counter() - began, headers, body)

    def _idle(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """A connection that the server has not closed meanwhile; None: there is none."""
        while self._free:
            reader, writer = self._free.pop()
            if not reader.at_eof():
                return reader, writer
            writer.close()
        return None

    def close(self) -> None:
        """Leave."""
        for _, writer in self._free:
            writer.close()


async def _read(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
    if "content-length" in headers:
        body = await reader.readexactly(int(headers["content-length"]))
    else:
        body = await _chunks(reader)
    return int(head[0].split()[1]), headers, body


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    parts = []
    while size := int(await reader.readuntil(b"\r\n"), 16):
        parts.append(await reader.readexactly(size))
        await reader.readexactly(2)
    await reader.readexactly(2)
    return b"".join(parts)


async def at_once(port: int, requests: Sequence[bytes]) -> list[Reply]:
    """The replies to requests that are all sent at one moment, each by a connection of its own."""
    clients = Clients(port)
    replies = await asyncio.gather(*(clients.send(request) for request in requests))
    clients.close()
    return replies


async def in_turn(port: int, requests: Sequence[bytes], clients: int) -> list[Reply]:
    """The replies to all requests in order, by so many clients, each of which waits for its answer."""
    replies: list[Reply] = [Reply(0, 0.0, {})] * len(requests)
    rows, lines = iter(range(len(requests))), Clients(port)

    async def one() -> None:
        for row in rows:
            replies[row] = await lines.send(requests[row])

    await asyncio.gather(*(one() for _ in range(clients)))
    lines.close()
    return replies
