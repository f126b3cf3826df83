"""Do large or hostile bodies disturb others? Health probes beside each, a small JPEG beside eight large PNGs, memory.

`python -m benchmarks.serving.hostile_bodies` starts a service of its own and writes
benchmarks/results/hostile_bodies.csv.

- `live`: the slowest GET /health/live while one request is answered, against the slowest on an idle service in the same
  run. Bar: at most 250 ms more.
- `small`: latencies of a small JPEG, alone and beside one request of eight PNGs of 49 megapixels. Bar: p99 <= 1 s.
- `memory`: what 24 open bodies of 60 MiB add to the service's resident memory.

The exit status is 1 if a bar is missed.
"""

from __future__ import annotations

import gzip
import io
import json
import multiprocessing
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated

import httpx
import numpy as np
import psutil
import typer
from PIL import Image

from benchmarks import tables

RESULTS = Path("benchmarks/results/hostile_bodies.csv")
COLUMNS = ["what", "case", "status", "seconds", "count", "p50_ms", "p99_ms", "max_ms", "mib"]
MIB = 2**20
BODY = 64 * MIB - 64  # bytes, the most that a request may have, less what is around the repeated piece
MOST_MORE_MS, MOST_P99_MS = 250.0, 1000.0
JSON = {"content-type": "application/json"}
INFER = "/v2/models/efficientnet-lite0/infer"
NUMBERS = 6 * 3 * 224 * 224

Make = Callable[[], bytes]
Case = tuple[str, str, str, dict[str, str], Make]


def repeated(before: bytes, piece: bytes, after: bytes, size: int = BODY) -> Make:
    """A body of about `size` bytes."""
    return lambda: before + piece * ((size - len(before) - len(after)) // len(piece)) + after


def tensor(data: str) -> Make:
    """A message of the Open Inference Protocol with these numbers."""
    text = '{"inputs":[{"name":"pictures","shape":[6,3,224,224],"datatype":"FP32","data":[%s]}]}'
    return (text % data).encode


def png(mode: str, side: int = 7000) -> bytes:
    """A PNG of 49 megapixels with a pattern in it."""
    tile = np.random.default_rng(0).integers(0, 256, (50, 100, 4), np.uint8)
    image = Image.fromarray(np.tile(tile, (side // 50, side // 100, 1)))
    if mode == "I;16":
        grey = np.asarray(image.convert("L")).astype(np.uint16) * 257
        image = Image.fromarray(grey)
    elif mode != "RGBA":
        image = image.convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def flat_png(side: int = 7000) -> bytes:
    """A PNG of 49 megapixels that has few bytes."""
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (1, 2, 3)).save(buffer, "PNG")
    return buffer.getvalue()


def cases() -> Iterator[Case]:
    """Name, method, path, headers and body of requests at the limits."""
    part = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    form = {"content-type": "multipart/form-data; boundary=x"}
    raw = {"content-type": "image/png"}
    text = {"input": b'{"input": "', "list": b'{"input": ["'}
    for name, piece in (
        ("letters", b"A"),
        ("escaped letters", rb"\u0041"),
        ("escaped line ends", rb"\n"),
        ("accents", "é".encode()),
        ("escaped quotes", rb"\""),
    ):
        yield f"JSON string of {name}", "POST", "/classify", JSON, repeated(text["input"], piece, b'"}')
    yield "JSON list of 60 strings", "POST", "/classify", JSON, repeated(text["list"], b"A" * MIB + b'","', b'"]}')
    yield "JSON list of empty strings", "POST", "/classify", JSON, repeated(text["list"], b'","', b'"]}')
    yield "JSON spaces", "POST", "/classify", JSON, repeated(b'{"input": ', b" ", b'"" }')
    yield "multipart of empty files", "POST", "/classify", form, repeated(b"", part + b"\r\n", b"--x--\r\n")
    yield "multipart of line ends", "POST", "/classify", form, repeated(part, b"\r\n", b"\r\n--x--\r\n")
    yield "raw zeros", "POST", "/classify", raw, repeated(b"", b"\0", b"")
    yield "gzip bomb", "POST", "/classify", {**raw, "content-encoding": "gzip"}, lambda: gzip.compress(bytes(BODY))
    yield "tensor of 903,168 numbers", "POST", INFER, JSON, tensor("0.1234567890123," * (NUMBERS - 1) + "1")
    yield "tensor of long numbers", "POST", INFER, JSON, tensor(("9" * 399 + ",") * 41_000 + "1")
    yield "tensor of lists", "POST", INFER, JSON, tensor("[]," * 65_000 + "1")
    yield "tensor of objects", "POST", INFER, JSON, tensor("{}," * 65_000 + "1")
    vector = json.dumps([0.5] * 4000).encode()
    pair = b'{"source": [1], "targets": ['
    small = MIB - 1000
    yield "embeddings", "POST", "/verify/embeddings", JSON, repeated(pair, vector + b",", vector + b"]}", small)
    yield "embeddings of text", "POST", "/verify/embeddings", JSON, repeated(pair, b'["a"],', b'["a"]]}', 110_000)
    metadata = b'{"metadata": {"a": ['
    path = "/collections/none/subjects/none"
    yield "metadata of lists", "PUT", path, JSON, repeated(metadata, b"[],", b"[]]}}", 57_000)
    yield "metadata of numbers", "PUT", path, JSON, repeated(metadata, b"1,", b"1]}}", small)
    yield "unknown keys", "PUT", path, JSON, lambda: json.dumps(dict.fromkeys(map(str, range(19_000)))).encode()
    for mode in ("RGBA", "P", "I;16"):
        yield f"PNG {mode} of 49 megapixels", "POST", "/classify", raw, lambda mode=mode: png(mode)  # type: ignore[misc]


def probe(port: int, pipe: Connection) -> None:
    """In a process of its own: latencies of probes in ms, sent whenever they are asked for."""
    times: list[float] = []
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=600, trust_env=False) as client:
        while True:
            started = time.perf_counter()
            client.get("/health/live")
            times.append((time.perf_counter() - started) * 1000)
            time.sleep(0.01)
            if pipe.poll():
                if pipe.recv() is None:
                    return
                pipe.send(times)
                times = []


@contextmanager
def probing(port: int) -> Iterator[Callable[[], list[float]]]:
    """A function that returns the latencies since its last call."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=probe, args=(port, theirs), daemon=True)
    process.start()

    def take() -> list[float]:
        ours.send(True)
        found: list[float] = ours.recv()
        return found

    take()
    try:
        yield take
    finally:
        ours.send(None)
        process.join()


@contextmanager
def serving() -> Iterator[tuple[int, psutil.Process]]:
    """The port and process of a service with the shipped settings."""
    with tempfile.TemporaryDirectory() as state:
        command = [sys.executable, "-m", "app.cli.main", "serve", "--port", "0"]
        environment = os.environ | {"VESTIBULE_STATE": state, "VESTIBULE_RUNTIME": "torch"}
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
        )
        try:
            assert process.stdout is not None
            found = next(filter(None, (re.search(r"ready on http://\S+:(\d+)", line) for line in process.stdout)))
            threading.Thread(target=process.stdout.read, daemon=True).start()
            yield int(found[1]), psutil.Process(process.pid)
        finally:
            process.kill()
            process.wait()


def row(what: str, case: str, times: list[float], **more: object) -> dict[str, object]:
    """A line of the table."""
    p50, p99 = np.quantile(times, [0.5, 0.99]) if times else (0.0, 0.0)
    figures = {"p50_ms": round(p50, 1), "p99_ms": round(p99, 1), "max_ms": round(max(times, default=0.0), 1)}
    found = {"what": what, "case": case, "count": len(times), **figures, **more}
    print("  ".join(f"{name} {found[name]}" for name in COLUMNS if name in found), flush=True)
    return found


def measure_live(port: int, only: str) -> Iterator[dict[str, object]]:
    """Probes alone, and beside each case."""
    with (
        probing(port) as take,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=600, trust_env=False) as client,
    ):
        time.sleep(5)
        yield row("live", "idle", take())
        for name, method, path, headers, make in cases():
            if only in name:
                body = make()
                take()
                started = time.perf_counter()
                answer = client.request(method, path, content=body, headers=headers)
                seconds = round(time.perf_counter() - started, 2)
                yield row("live", name, take(), status=answer.status_code, seconds=seconds)
        time.sleep(5)
        yield row("live", "idle", take())


def measure_small(port: int) -> Iterator[dict[str, object]]:
    """A small JPEG alone, and beside eight large PNGs."""
    buffer = io.BytesIO()
    Image.open("examples/coffee.jpg").resize((320, 240)).save(buffer, "JPEG")
    large = flat_png()
    statuses: list[int] = []

    def send_large() -> None:
        files = [("file", (f"{number}.png", large)) for number in range(8)]
        answer = httpx.post(f"http://127.0.0.1:{port}/classify", files=files, timeout=600, trust_env=False)
        statuses.append(answer.status_code)

    def until(over: Callable[[], bool]) -> list[float]:
        times = []
        while not over():
            started = time.perf_counter()
            answer = client.post("/classify", content=buffer.getvalue(), headers={"content-type": "image/jpeg"})
            assert answer.status_code == 200, answer.text
            times.append((time.perf_counter() - started) * 1000)
            time.sleep(0.02)
        return times

    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=600, trust_env=False) as client:
        end = time.perf_counter() + 10
        yield row("small", "alone", until(lambda: time.perf_counter() > end))
        thread = threading.Thread(target=send_large)
        started = time.perf_counter()
        thread.start()
        times = until(lambda: not thread.is_alive())
        seconds = round(time.perf_counter() - started, 2)
        yield row("small", "beside eight PNGs of 49 megapixels", times, status=statuses[0], seconds=seconds)


def measure_memory(port: int, process: psutil.Process) -> dict[str, object]:
    """What open bodies add."""
    size = 60 * MIB
    head = f"POST /classify HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: image/png\r\ncontent-length: {size}\r\n\r\n"
    before = process.memory_info().rss
    with ExitStack() as stack:
        connections = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(24)]

        def send(connection: socket.socket) -> None:
            with suppress(OSError):
                connection.sendall(head.encode() + bytes(size - 1))

        threads = [threading.Thread(target=send, args=(connection,)) for connection in connections]
        for thread in threads:
            thread.start()
        most = 0
        for _ in range(100):
            most = max(most, process.memory_info().rss)
            time.sleep(0.1)
        for connection in connections:
            connection.close()
    return row("memory", "24 open bodies of 60 MiB", [], mib=round((most - before) / MIB))


def main(only: Annotated[str, typer.Option(help="Cases whose name contains this.")] = "") -> None:
    """Measure all three and write the table."""
    rows: list[dict[str, object]] = []
    with serving() as (port, process):
        rows += measure_live(port, only)
        rows += measure_small(port)
        rows.append(measure_memory(port, process))
    if not only:
        tables.write(RESULTS, COLUMNS, rows)
    live = [(str(found["case"]), float(str(found["max_ms"]))) for found in rows if found["what"] == "live"]
    idle = max(most for case, most in live if case == "idle")
    worst, most = max(live, key=lambda pair: pair[1])
    p99 = float(str(next(found["p99_ms"] for found in rows if str(found["case"]).startswith("beside"))))
    print(f"live: at most {most - idle:.0f} ms slower than on an idle loop ({worst}); small: p99 {p99:.0f} ms")
    if most - idle > MOST_MORE_MS or p99 > MOST_P99_MS:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
