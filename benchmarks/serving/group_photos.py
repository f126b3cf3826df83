"""What a group photo costs the service, and how long another user's small photo waits beside two of them.

    python -m benchmarks.serving.group_photos --pid PID [--url http://127.0.0.1:8000] [--seconds 20]

The group photo is a mosaic of the photos in examples/: 52 faces, 4000 x 3000 pixels, JPEG. First the CPU seconds of the
service's process (user and system, from /proc) for one `POST /faces/detect` at a time, after one that does not count:
OpenVINO plans the sizes of its tiles then. Then two clients send it without a pause, and a third one a 256 x 256 photo,
20 times a second; the latencies of that one are shown beside those without the two.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import threading
import time
from pathlib import Path

import httpx
from PIL import Image

from benchmarks.proxies import uses_proxies

EXAMPLES = Path(__file__).parents[2] / "examples"
COLUMNS, ROWS, FACES = 9, 6, 52
SIZE = (4000, 3000)
PAUSE_S = 0.05
JPEG = {"content-type": "image/jpeg"}


def encoded(picture: Image.Image) -> bytes:
    """A JPEG of quality 90."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def faces() -> list[Image.Image]:
    """The two people of examples/, cut out as squares."""
    boxes = {"astronaut": (110, 20, 350, 260), "hopper": (60, 40, 460, 440)}
    found = []
    for name, box in boxes.items():
        with Image.open(EXAMPLES / f"{name}.jpg") as picture:
            scale = picture.width / 512
            left, top, right, bottom = (round(edge * scale) for edge in box)
            found.append(picture.convert("RGB").crop((left, top, right, bottom)))
    return found


def group_photo() -> bytes:
    """The mosaic."""
    people, photo = faces(), Image.new("RGB", SIZE, (90, 110, 120))
    width, height = SIZE[0] // COLUMNS, SIZE[1] // ROWS
    side = int(0.9 * min(width, height))
    for number in range(FACES):
        place = (number % COLUMNS * width + (width - side) // 2, number // COLUMNS * height + (height - side) // 2)
        photo.paste(people[number % len(people)].resize((side, side), Image.Resampling.BICUBIC), place)
    return encoded(photo)


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def latencies(client: httpx.Client, photo: bytes, seconds: float) -> list[float]:
    """Seconds of each request for a photo, sent every PAUSE_S or as soon as the last one is answered."""
    taken, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        started = time.perf_counter()
        client.post("/faces/detect", content=photo, headers=JPEG).raise_for_status()
        taken.append(time.perf_counter() - started)
        time.sleep(max(0.0, PAUSE_S - taken[-1]))
    return taken


def told(name: str, taken: list[float]) -> None:
    """A line with the median, the 99th percentile and the longest."""
    p99 = statistics.quantiles(taken, n=100, method="inclusive")[98] if len(taken) > 1 else taken[0]
    print(
        f"{name}: {len(taken)} requests, p50 {statistics.median(taken):.3f} s, p99 {p99:.3f} s, max {max(taken):.3f} s"
    )


def main() -> None:
    """Measure a service that runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pid", type=int, required=True)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    large, small = group_photo(), encoded(faces()[0].resize((256, 256)))
    with httpx.Client(base_url=options.url, timeout=120, trust_env=uses_proxies(options.url)) as client:
        for number in range(4):
            before = cpu_seconds(options.pid)
            answer = client.post("/faces/detect", content=large, headers=JPEG).raise_for_status().json()["data"][0]
            spent = cpu_seconds(options.pid) - before
            print(f"group photo {number}: {len(answer['faces'])} faces of {FACES}, {spent:.2f} s of CPU")
        told("small photo alone", latencies(client, small, options.seconds / 4))
        stop = threading.Event()

        def crowd() -> None:
            with httpx.Client(base_url=options.url, timeout=120, trust_env=uses_proxies(options.url)) as other:
                while not stop.is_set():
                    other.post("/faces/detect", content=large, headers=JPEG)

        threads = [threading.Thread(target=crowd) for _ in range(2)]
        for thread in threads:
            thread.start()
        time.sleep(1)
        told("small photo beside two group photos", latencies(client, small, options.seconds))
        stop.set()
        for thread in threads:
            thread.join()


if __name__ == "__main__":
    main()
