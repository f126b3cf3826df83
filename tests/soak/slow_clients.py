"""Slow clients, hundreds in a process of their own; a module of its own, which the process imports quickly."""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ctypes import c_int
from multiprocessing.sharedctypes import Synchronized

# By kind: what a client sends at once, and what it then sends a byte a second.
REQUESTS = {
    "heads": (b"", b"GET /models HTTP/1.1\r\nhost: 127.0.0.1\r\nx: " + b"x" * 10_000),
    "bodies": (
        b"POST /classify HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: image/jpeg\r\ncontent-length: 10000\r\n\r\n",
        b"x" * 10_000,
    ),
}
SETTLE_S = 3.0


async def slow_client(port: int, kind: str, held: Synchronized[int]) -> None:
    """Send a byte a second, and come back after each time that the service closes the connection.

    Clients start at different moments: 500 clients that act in the same millisecond of each second are a burst, which
    is another load (beside 500 slow bodies in lockstep the fast client's p99 was 4.85 times that alone, its p50 the
    same).
    """
    await asyncio.sleep(random.random())
    at_once, slowly = REQUESTS[kind]
    while True:
        with suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            with held.get_lock():
                held.value += 1
            try:
                writer.write(at_once)
                answered = asyncio.create_task(reader.read(1))
                for byte in slowly:
                    writer.write(bytes([byte]))
                    await asyncio.wait([answered], timeout=1)
                    if answered.done():  # refused, or closed
                        break
                answered.cancel()
                await asyncio.wait([answered])
            finally:
                with held.get_lock():
                    held.value -= 1
                writer.close()
        await asyncio.sleep(random.uniform(0.5, 1.5))


def _run(port: int, kind: str, count: int, held: Synchronized[int]) -> None:
    async def all_clients() -> None:
        await asyncio.gather(*(slow_client(port, kind, held) for _ in range(count)))

    asyncio.run(all_clients())


@contextmanager
def slow_clients(port: int, kind: str, count: int) -> Iterator[Synchronized[int]]:
    """Run `count` slow clients; yield how many of them have a connection, once half of them have."""
    context = multiprocessing.get_context("spawn")
    held: Synchronized[int] = context.Value(c_int, 0)
    process = context.Process(target=_run, args=(port, kind, count, held), daemon=True)
    process.start()
    try:
        while held.value < count * 0.5 and process.is_alive():
            time.sleep(0.1)
        time.sleep(SETTLE_S)
        yield held
    finally:
        process.kill()
        process.join()
