"""A camera that stalls, breaks, changes its resolution, sends garbage, or is 4K at 30 frames/s: does the watcher go on?

    python -m benchmarks.cameras.bad_streams [--minutes 10] [--url URL]

Needs the extra `watch` and a running service, in which it creates the collection `benchmark-bad-streams` and erases it
at the end. Each connection of the watcher, a process of its own, gets the next of these streams, in turn:

    stall        720p, then nothing for 60 s
    4k           2160p at 30 frames/s for 30 s, then the connection breaks within a frame
    garbage      2 MB of random bytes
    resolution   480p, then 1080p in the same stream
    damage       720p, of which one byte in 2,000 is another

Writes the watcher's memory and its counts, by the minute, to benchmarks/results/bad_streams.csv. Memory is flat if the
median of the last third of the minutes is at most 5 % above that of the second.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any, BinaryIO

import numpy as np
import psutil
from PIL import Image

from benchmarks import tables
from tests.app.watch.streams import encode_video, streaming
from vestibule_client import Client

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results" / "bad_streams.csv"
ASTRONAUT = HERE.parents[1] / "examples" / "astronaut.jpg"
COLLECTION = "benchmark-bad-streams"
SECONDS = 20.0
FLAT = 1.05


def clip(width: int, height: int, fps: int, seconds: float = 1.0) -> bytes:
    """Return a video in which a face walks to the right."""
    with Image.open(ASTRONAUT) as image:
        face = image.convert("RGB").resize((height // 2, height // 2))
    frames = []
    for index in range(round(fps * seconds)):
        frame = Image.new("RGB", (width, height), (100, 110, 120))
        frame.paste(face, (width // 8 + index * width // (2 * fps), height // 4))
        frames.append(frame)
    return encode_video(frames, fps=fps)


class BadCamera:
    """Sends the streams in turn."""

    def __init__(self) -> None:
        self.sd, self.hd, self.full_hd = clip(640, 480, 10), clip(1280, 720, 10), clip(1920, 1080, 10)
        self.uhd = clip(3840, 2160, 30)
        random = np.random.default_rng(0)
        self.garbage = random.bytes(2_000_000)
        damaged = np.frombuffer(self.hd, np.uint8).copy()
        rows = random.integers(0, len(damaged), len(damaged) // 2000)
        damaged[rows] = random.integers(0, 256, len(rows))
        self.damaged = damaged.tobytes()
        self.connections: Counter[str] = Counter()
        self.over = threading.Event()

    def send(self, file: BinaryIO, number: int) -> None:
        """Send the stream of connection `number`."""
        streams = (self.stall, self.uhd_break, self.noise, self.resolution, self.damage)
        stream = streams[number % len(streams)]
        self.connections[stream.__name__] += 1
        stream(file)

    def repeat(self, file: BinaryIO, data: bytes, seconds: float) -> None:
        """Send a clip of one second again and again, at its rate."""
        begun, pieces = time.monotonic(), 30
        size = -(-len(data) // pieces)
        for index in range(round(seconds * pieces)):
            piece = index % pieces
            file.write(data[piece * size : (piece + 1) * size])
            file.flush()
            if self.over.wait(max(0.0, begun + (index + 1) / pieces - time.monotonic())):
                return

    def stall(self, file: BinaryIO) -> None:
        """Send nothing any more, without closing the connection."""
        self.repeat(file, self.hd, SECONDS)
        self.over.wait(60)

    def uhd_break(self, file: BinaryIO) -> None:
        """Break within a frame of 4K."""
        self.repeat(file, self.uhd, 1.5 * SECONDS + 0.5)

    def noise(self, file: BinaryIO) -> None:
        """Send random bytes."""
        file.write(self.garbage)

    def resolution(self, file: BinaryIO) -> None:
        """Change the resolution."""
        self.repeat(file, self.sd, SECONDS / 2)
        self.repeat(file, self.full_hd, SECONDS / 2)

    def damage(self, file: BinaryIO) -> None:
        """Send damaged bytes."""
        self.repeat(file, self.damaged, SECONDS)


def watch(options: argparse.Namespace, address: str, collection: str, folder: str) -> subprocess.Popen[str]:
    """Start the watcher, whose queue is in `folder`."""
    command = [sys.executable, "-m", "app.cli.main", "watch", address, "--camera", "bad", "--collection", collection]
    command += ["--fps", str(options.fps), "--queue", folder, "--timeout", "60", "--url", options.url]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def follow(process: subprocess.Popen[str], events: list[dict[str, Any]]) -> threading.Thread:
    """Collect the watcher's events in a thread."""

    def run() -> None:
        assert process.stdout is not None
        events.extend(map(json.loads, process.stdout))

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def watch_parser(description: str | None, results: Path) -> argparse.ArgumentParser:
    """Return a parser with the options of an experiment that starts the watcher."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fps", type=float, default=10.0)
    parser.add_argument("--url", default=os.environ.get("VESTIBULE_URL", "http://127.0.0.1:8000"))
    parser.add_argument("--results", type=Path, default=results)
    return parser


def main() -> None:
    """Run, print, and write the rows."""
    parser = watch_parser(__doc__, RESULTS)
    parser.add_argument("--minutes", type=int, default=10)
    options = parser.parse_args()
    camera, events, rows = BadCamera(), list[dict[str, Any]](), list[dict[str, object]]()
    with Client(options.url) as client, tempfile.TemporaryDirectory() as folder, streaming(camera.send) as address:
        client.create_collection(COLLECTION)
        process = watch(options, address, COLLECTION, folder)
        thread = follow(process, events)
        for minute in range(1, options.minutes + 1):
            time.sleep(60)
            memory = psutil.Process(process.pid).memory_info().rss / 1e6
            kinds = Counter(event["event"] for event in events)
            latest: dict[str, Any] = next((event for event in reversed(events) if event["event"] == "summary"), {})
            rows.append(
                {
                    "minute": minute,
                    "rss_mb": round(memory, 1),
                    **{name: latest.get(name, 0) for name in ("read", "skipped", "dropped", "processed", "stored")},
                    **{name: kinds[name] for name in ("source_lost", "source_found", "service_failed")},
                    **{stream: camera.connections[stream] for stream in ("stall", "uhd_break", "noise", "resolution")},
                }
            )
            print(rows[-1], flush=True)
        process.terminate()
        status = process.wait(120)
        camera.over.set()
        thread.join()
        client.erase_collection(COLLECTION)
    tables.write(options.results, list(rows[0]), rows)
    third = len(rows) // 3
    memories = [float(str(row["rss_mb"])) for row in rows]
    if third:
        before, after = median(memories[third : 2 * third]), median(memories[2 * third :])
        verdict = "flat" if after <= FLAT * before else "NOT flat"
        print(f"exit status {status}; memory is {verdict}: {before:.1f} MB, then {after:.1f} MB")


if __name__ == "__main__":
    main()
