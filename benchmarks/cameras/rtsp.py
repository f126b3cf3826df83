"""A camera that sends H.264 over RTSP, changes its resolution, and breaks: does the watcher see each walk once?

    python -m benchmarks.cameras.rtsp [--connections 4] [--fps 10] [--url URL]

Needs the extra `watch`, what `rtsp_server` names, and a running service, in which it creates the collection
`benchmark-rtsp` and erases it at the end. A person who is enrolled walks by again and again; every second walk has
another resolution, within the same connection. While nobody is in view the server is killed, and is started again
three seconds later. Writes a row for each connection to benchmarks/results/rtsp.csv.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks import tables
from benchmarks.cameras.bad_streams import ASTRONAUT, follow, watch, watch_parser
from benchmarks.cluster.servers import free_port
from vestibule_client import Client

RESULTS = Path(__file__).parents[1] / "results" / "rtsp.csv"
SERVER = Path(__file__).parent / "rtsp_server.py"
COLLECTION, SUBJECT = "benchmark-rtsp", "astronaut"
FPS = 10  # of the camera
SIZES = ((640, 360), (1280, 720))
WALK_S, EMPTY_S = 4, 5  # the watcher continues a passage within three seconds
WALKS = 3  # in each connection
DOWN_S = 3.0


def draw(folder: Path) -> None:
    """Write the frames: for each size a walk, and then nobody."""
    with Image.open(ASTRONAUT) as image:
        person = image.convert("RGB").crop((130, 0, 330, 250))
    folder.mkdir()
    number = 0
    for width, height in SIZES:
        face = person.resize((height // 2 * 4 // 5, height // 2))
        for step in range((WALK_S + EMPTY_S) * FPS):
            frame = Image.new("RGB", (width, height), (100, 110, 120))
            if step < WALK_S * FPS:
                frame.paste(face, (width // 8 + step * width // 80, height // 4))
            frame.save(folder / f"{number:04d}.jpg", quality=92)
            number += 1


def connect(port: int, frames: Path) -> float:
    """Serve the frames to one client, kill the server after WALKS walks, and return when the client connected."""
    command = ["/usr/bin/python3", str(SERVER), str(port), str(frames), str(FPS)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == "connected\n"
        begun = time.time()
        time.sleep(WALKS * (WALK_S + EMPTY_S) - 1)
    finally:
        server.kill()
        server.wait()
    return begun


def main() -> None:
    """Run, print, and write the rows."""
    parser = watch_parser(__doc__, RESULTS)
    parser.add_argument("--connections", type=int, default=4)
    options = parser.parse_args()
    events, port, begun = list[dict[str, Any]](), free_port(), list[float]()
    with Client(options.url, timeout=60) as client, tempfile.TemporaryDirectory() as folder:
        client.create_collection(COLLECTION)
        client.enrol(COLLECTION, SUBJECT, ASTRONAUT)
        draw(Path(folder) / "frames")
        address = f"rtsp://127.0.0.1:{port}/door"
        process = watch(options, address, COLLECTION, str(Path(folder) / "queue"))
        thread = follow(process, events)
        for _ in range(options.connections):
            begun.append(connect(port, Path(folder) / "frames"))
            time.sleep(DOWN_S)
        process.terminate()
        status = process.wait(120)
        thread.join()
        stored = client.sightings(COLLECTION).data
        client.erase_collection(COLLECTION)
    rows = []
    for number, (since, until) in enumerate(zip(begun, [*begun[1:], float("inf")], strict=True), 1):
        mine = [sighting for sighting in stored if since <= sighting.started_at.timestamp() < until]
        problems = [event for event in events if since <= datetime.fromisoformat(event["time"]).timestamp() < until]
        rows.append(
            {
                "connection": number,
                "walks": WALKS,
                "sightings": len(mine),
                "named": sum(sighting.subject_id == SUBJECT for sighting in mine),
                "frames": sum(sighting.frames for sighting in mine),
                "source_lost": sum(event["event"] == "source_lost" for event in problems),
            }
        )
        print(rows[-1])
    tables.write(options.results, list(rows[0]), rows)
    summary = next(event for event in reversed(events) if event["event"] == "summary")
    print(f"exit status {status}; {summary}")


if __name__ == "__main__":
    main()
