"""Do hundreds of slow clients disturb a fast one? One classifies, alone and beside clients that send a byte a second.

`python -m tests.soak.slow_clients` starts a service of its own, prints a table and writes
benchmarks/results/slow_clients.csv. Each round measures the fast client alone, beside slow heads, and beside slow
bodies; it opens a connection for each request, since that is what slow clients compete for. Slow clients that are
turned away come back after a second, more or less. The exit status is 1 if a fast request failed.
"""

from __future__ import annotations

import asyncio
import http.client
import multiprocessing
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ctypes import c_int
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Annotated

import httpx
import numpy as np
import typer

from benchmarks import tables

RESULTS = Path("benchmarks/results/slow_clients.csv")
PICTURE = Path("examples/coffee.jpg")
COLUMNS = ["round", "slow", "of", "held", "seconds", "requests", "failed", "p50_ms", "p99_ms"]
# Of which a byte a second is sent.
HEADS = {
    "heads": b"GET /models HTTP/1.1\r\nhost: 127.0.0.1\r\nx: " + b"x" * 10_000,
    "bodies": b"x" * 10_000,
}
BEFORE = {
    "heads": b"",
    "bodies": b"POST /classify HTTP/1.1\r\nhost: 127.0.0.1\r\n"
    b"content-type: image/jpeg\r\ncontent-length: 10000\r\n\r\n",
}
SETTLE_S = 3.0


async def slow_client(port: int, kind: str, held: Synchronized[int]) -> None:
    """Never in a hurry, and back after each time that it is turned away.

    It begins at a moment of its own: 500 who act in the same millisecond of each second are a burst, which is another
    thing (beside 500 slow bodies in lockstep the fast client's p99 was 4.85 times that alone, its p50 the same).
    """
    await asyncio.sleep(random.random())
    while True:
        with suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            with held.get_lock():
                held.value += 1
            try:
                writer.write(BEFORE[kind])
                answered = asyncio.create_task(reader.read(1))
                for byte in HEADS[kind]:
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


def crowd(port: int, kind: str, count: int, held: Synchronized[int]) -> None:
    """Many of them, in a process of their own."""

    async def all_of_them() -> None:
        await asyncio.gather(*(slow_client(port, kind, held) for _ in range(count)))

    asyncio.run(all_of_them())


def ask(port: int, picture: bytes) -> bool:
    """One request on a connection of its own; whether it was answered right."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("POST", "/classify?top_k=1", picture, {"content-type": "image/jpeg"})
        answer = connection.getresponse()
        return b"espresso" in answer.read() and answer.status == 200
    except OSError:
        return False
    finally:
        connection.close()


def chooses(port: int) -> bool:
    """Whether a loaded model still looks for the runtime that answers for it."""
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
        loaded = [row["name"] for row in client.get("/models").json()["data"] if row["loaded"]]
        return any(client.get(f"/models/{name}").json()["choosing"] for name in loaded)


def measure(port: int, seconds: float) -> dict[str, float]:
    """The fast client's latencies in ms, one request after the other."""
    picture, times, failed = PICTURE.read_bytes(), [], 0
    end = time.perf_counter() + seconds
    while (started := time.perf_counter()) < end:
        failed += not ask(port, picture)
        times.append((time.perf_counter() - started) * 1000)
    p50, p99 = np.quantile(times, [0.5, 0.99])
    return {"requests": len(times), "failed": failed, "p50_ms": round(p50, 2), "p99_ms": round(p99, 2)}


@contextmanager
def disturbed(port: int, kind: str, count: int) -> Iterator[Synchronized[int]]:
    """While so many slow clients are at it; how many of them have a connection."""
    context = multiprocessing.get_context("spawn")
    held: Synchronized[int] = context.Value(c_int, 0)
    process = context.Process(target=crowd, args=(port, kind, count, held), daemon=True)
    process.start()
    try:
        while held.value < count * 0.5 and process.is_alive():
            time.sleep(0.1)
        time.sleep(SETTLE_S)
        yield held
    finally:
        process.kill()
        process.join()


@contextmanager
def serving() -> Iterator[int]:
    """The port of a service with the shipped settings, warm."""
    with tempfile.TemporaryDirectory() as state:
        command = [sys.executable, "-m", "app.cli.main", "serve", "--port", "0"]
        environment = os.environ | {"VESTIBULE_STATE": state}
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
        )
        try:
            assert process.stdout is not None
            found = next(filter(None, (re.search(r"ready on http://\S+:(\d+)", line) for line in process.stdout)))
            port = int(found[1])
            while not ask(port, PICTURE.read_bytes()) or chooses(port):
                time.sleep(1)
            yield port
        finally:
            process.kill()
            process.wait()


def main(
    slow: Annotated[int, typer.Option(min=1)] = 500,
    seconds: Annotated[float, typer.Option(help="Of each measurement.")] = 20.0,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
) -> None:
    """Measure alone, beside slow heads, beside slow bodies, in turn."""
    rows: list[dict[str, object]] = []
    with serving() as port:
        measure(port, seconds / 4)
        for round_ in range(1, rounds + 1):
            figures = {"slow": "nobody", "of": 0, "held": 0, **measure(port, seconds)}
            rows.append({"round": round_, "seconds": seconds, **figures})
            for kind in BEFORE:
                with disturbed(port, kind, slow) as held:
                    figures = {"slow": kind, "of": slow, **measure(port, seconds), "held": held.value}
                rows.append({"round": round_, "seconds": seconds, **figures})
            for row in rows[-3:]:
                typer.echo("  ".join(f"{name} {row[name]}" for name in COLUMNS))
    tables.write(RESULTS, COLUMNS, rows)
    alone = [float(str(row["p99_ms"])) for row in rows if row["slow"] == "nobody"]
    for kind in BEFORE:
        beside = [float(str(row["p99_ms"])) for row in rows if row["slow"] == kind]
        ratio = statistics.median(b / a for a, b in zip(alone, beside, strict=True))
        typer.echo(f"p99 beside {slow} slow {kind}: {ratio:.2f} times that alone (median of {rounds} rounds)")
    if any(row["failed"] for row in rows):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
