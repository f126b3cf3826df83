"""The watcher on a synthetic camera: sightings per passage, identity switches, error rates, latency, cameras per core.

    python -m benchmarks.cameras.passers_by [--passages 300] [--url URL] [--bursts] [--realtime]

Needs the data set `faces` and a running service, in which it creates a collection, enrols 30 % of the people
(`synthetic_stream`), and erases it at the end. The watcher sees the stream, and the figures compare its
sightings with the known walks:

    sightings per passage   sightings by the walk that most of their detections show, divided by the walks
    switches                detections of another walk than most of their passage's, as a share of all detections
    FPIR, FNIR              of the passages of people who are not enrolled, and of those who are; a mated passage
                            without a sighting is missed. Beside it FNIR of single frames, each searched for by itself
    answer latency          from reading the first usable face to the first answer. Unless --realtime, frames are
                            processed without waiting for their time, so the time between two frames is not part of it
    cameras per core        1 / (frames per second x CPU seconds per frame), of service and watcher together, without
                            the drawing of the frames

Writes a row to benchmarks/results/passers_by.csv.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from PIL import Image

from app.watch.decisions import PassageDecision, PendingSighting
from app.watch.events import Events
from app.watch.passages import Passages, TrackedPassage
from app.watch.recognition import Recognition
from app.watch.settings import WatchSettings
from app.watch.sighting_queue import SightingQueue
from app.watch.source.frames import Frame
from app.watch.source.recordings import Playback
from app.watch.tracker import Track
from app.watch.watcher import CameraWatcher
from benchmarks import tables
from benchmarks.cameras.synthetic_stream import FPS, WIDTH, PassersBy, Walk, enrolled_photos, people_of, still
from vestibule_client import NEVER, AsyncClient

RESULTS = Path(__file__).parents[1] / "results" / "passers_by.csv"
CAMERA = "benchmark"
FPIR = 0.01
SINGLE_FRAMES = 4  # searches for single shots of each mated passage


class ObservedPassages(Passages):
    """Passages that record which walk each detection shows, by the id of the passage."""

    def __init__(self, stream: PassersBy) -> None:
        super().__init__()
        self._stream = stream
        self.walks: dict[str, list[Walk | None]] = defaultdict(list)

    def of(self, track: Track, frame: Frame) -> TrackedPassage:
        """Return the track's passage and record the walk."""
        passage = super().of(track, frame)
        index = round(frame.time * FPS)
        self.walks[passage.id].append(self._stream.walk_at(index, track.x * WIDTH, track.y * WIDTH))
        return passage

    def merge(self, earlier: TrackedPassage, later: TrackedPassage) -> None:
        """Merge the records, too."""
        super().merge(earlier, later)
        self.walks[earlier.id] += self.walks.pop(later.id)


class ObservedRecognition(Recognition):
    """Recognition that keeps the sightings it stores."""

    def __init__(self, client: AsyncClient, settings: WatchSettings) -> None:
        super().__init__(client, settings)
        self.stored: dict[str, PassageDecision] = {}

    async def store(self, sighting: PendingSighting) -> str:
        """Store a sighting and keep its decision."""
        stored = await super().store(sighting)
        assert sighting.decision is not None
        self.stored[sighting.passage] = sighting.decision
        return stored


def png(image: Image.Image) -> bytes:
    """Return an image as PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


async def enrol(client: AsyncClient, collection: str, stream: PassersBy) -> int:
    """Enrol the people, and return how many have a face in the gallery."""
    await client.create_collection(collection)
    done = 0
    for person in stream.enrolled:
        pictures = [png(still(photo)) for photo in enrolled_photos(person)]
        answer = await client.enrol(collection, person.name, pictures, quality_gate=False)
        done += bool(answer.indexed)
    return done


async def single_frames(client: AsyncClient, collection: str, walks: Sequence[Walk], draw: Any) -> tuple[int, int]:
    """Search for single frames of mated walks, at the whole FPIR: the counts of misses and of searches."""
    misses = searches = 0
    for walk in walks:
        step = max(1, (walk.stop - walk.start) // SINGLE_FRAMES)
        for index in range(walk.start + step // 2, walk.stop, step):
            left, top, right, bottom = walk.box(index)
            margin = 0.6 * (right - left)
            crop = draw(index).crop((int(left - margin), int(top - margin), int(right + margin), int(bottom + margin)))
            answer = await client.search_passage(png(crop), collection, limit=1, fpir=FPIR)
            candidate = answer.candidates[0].subject_id if answer.candidates else None
            misses += not (answer.status == "match" and candidate == walk.person.name)
            searches += 1
    return misses, searches


@dataclass
class Outcome:
    """What became of a walk: its sightings' decisions, and whether it is of somebody who is enrolled."""

    walk: Walk
    enrolled: bool
    decisions: list[PassageDecision] = field(default_factory=list)

    @property
    def false_alarm(self) -> bool:
        """Whether somebody who is not enrolled is named."""
        return not self.enrolled and any(decision.matched for decision in self.decisions)

    @property
    def found(self) -> bool:
        """Whether the person is named."""
        return any(decision.subject == self.walk.person.name for decision in self.decisions)

    @property
    def wrong_subject(self) -> bool:
        """Whether somebody who is enrolled is named as another subject."""
        named = {decision.subject for decision in self.decisions if decision.matched}
        return self.enrolled and bool(named - {self.walk.person.name})

    def __str__(self) -> str:
        """Return a line about it."""
        walk = self.walk
        person = f"{walk.person.name} ({'enrolled' if self.enrolled else 'not enrolled'})"
        decisions = "; ".join(f"{item.subject or item.status}, {item.shots} shots" for item in self.decisions)
        return f"walk {walk.number}, frames {walk.start} to {walk.stop}, {person}: {decisions or 'no sighting'}"


def outcomes(
    stream: PassersBy, owners: dict[str, int | None], stored: dict[str, PassageDecision]
) -> dict[int, Outcome]:
    """Return the outcome of each walk by its number; `owners` is the walk of each passage."""
    enrolled = {person.name for person in stream.enrolled}
    found = {walk.number: Outcome(walk, walk.person.name in enrolled) for walk in stream.walks}
    for passage, number in owners.items():
        if number is not None:
            found[number].decisions.append(stored[passage])
    return found


def figures(
    stream: PassersBy, walks: dict[str, list[Walk | None]], stored: dict[str, PassageDecision]
) -> dict[str, float | int]:
    """Return the figures of the sightings, and print the walks with errors."""
    counts = {passage: Counter(walk.number if walk else None for walk in walks[passage]) for passage in stored}
    owners = {passage: count.most_common(1)[0][0] for passage, count in counts.items()}
    results = outcomes(stream, owners, stored)
    for item in results.values():
        if len(item.decisions) != 1 or item.false_alarm or item.wrong_subject or (item.enrolled and not item.found):
            print(item)
    detections = sum(count.total() for count in counts.values())
    switched = detections - sum(max(count.values()) for count in counts.values())
    sightings = [len(item.decisions) for item in results.values()]
    mated = sum(item.enrolled for item in results.values())
    false_alarms = sum(item.false_alarm for item in results.values())
    found = sum(item.enrolled and item.found for item in results.values())
    return {
        "passages": len(results),
        "sightings": len(stored),
        "sightings_per_passage": round(sum(sightings) / len(results), 4),
        "once": sightings.count(1),
        "missed": sightings.count(0),
        "repeated": sum(count > 1 for count in sightings),
        "of_nobody": sum(owner is None for owner in owners.values()),
        "detections": detections,
        "switched": switched,
        "switch_share": round(switched / max(detections, 1), 5),
        "mixed_passages": sum(len(count) > 1 for count in counts.values()),
        "non_mated": len(results) - mated,
        "false_alarms": false_alarms,
        "fpir": round(false_alarms / max(len(results) - mated, 1), 5),
        "mated": mated,
        "found": found,
        "wrong_subject": sum(item.wrong_subject for item in results.values()),
        "fnir": round(1 - found / max(mated, 1), 4),
    }


async def run(options: argparse.Namespace) -> dict[str, Any]:
    """Enrol, watch, and return the row of figures."""
    stream = PassersBy(people_of("faces", options.split, 4), options.passages, seed=options.seed, bursts=options.bursts)
    source = Playback(stream) if options.realtime else stream
    service = psutil.Process(options.service_pid) if options.service_pid else None
    events: list[dict[str, Any]] = []
    async with AsyncClient(options.url, timeout=300, retries=NEVER) as client:
        enrolled = await enrol(client, options.collection, stream)
        print(f"{enrolled} of {len(stream.enrolled)} people enrolled, {stream.frame_count} frames", flush=True)
        recognition = ObservedRecognition(client, WatchSettings(CAMERA, options.collection, fpir=FPIR))
        with tempfile.TemporaryDirectory() as folder, SightingQueue(Path(folder)) as queue:

            def write(line: str) -> None:
                event = json.loads(line)
                events.append(event)
                if event["event"] not in {"passage", "answer"}:
                    print(line, flush=True)

            watcher = CameraWatcher(source, recognition, queue, Events(CAMERA, write, as_json=True), fps=FPS)
            observed = watcher.passages = ObservedPassages(stream)
            before = cpu(service)
            begun = time.monotonic()
            await watcher.run()
            seconds, spent = time.monotonic() - begun, cpu(service) - before - stream.drawing_s
        mated = [walk for walk in stream.walks if walk.person in stream.enrolled]
        misses, searches = await single_frames(client, options.collection, mated, stream.draw)
        await client.erase_collection(options.collection)
    summary = next(event for event in reversed(events) if event["event"] == "summary")
    frames = watcher.metrics.counts.processed
    latency = watcher.metrics.answer.summary() or {}
    return {
        "split": options.split,
        "bursts": options.bursts,
        "realtime": options.realtime,
        "seed": options.seed,
        "enrolled": enrolled,
        **figures(stream, observed.walks, recognition.stored),
        "fnir_single": round(misses / max(searches, 1), 4),
        "single_searches": searches,
        "frames": frames,
        "dropped": summary["dropped"],
        "merged": summary["merged"],
        "searches": summary["searches"],
        "answer_p50_ms": latency.get("p50_ms", ""),
        "answer_p95_ms": latency.get("p95_ms", ""),
        "seconds": round(seconds, 1),
        "cpu_s_per_frame": round(spent / max(frames, 1), 4),
        "cameras_per_core": round(frames / (FPS * spent), 2) if spent else "",
        "machine": tables.machine(),
    }


def cpu(service: psutil.Process | None) -> float:
    """Return the CPU seconds of this process and the service."""
    return sum(sum(process.cpu_times()[:2]) for process in (psutil.Process(), service) if process)


def main() -> None:
    """Run once and add a row to the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, default=300)
    parser.add_argument("--url", default=os.environ.get("VESTIBULE_URL"))
    parser.add_argument("--service-pid", type=int, help="the service's process, whose CPU time is counted")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bursts", action="store_true", help="one photo per passage instead of different ones")
    parser.add_argument(
        "--realtime", action="store_true", help="frames arrive at their time, and late ones are dropped"
    )
    parser.add_argument("--collection", default="benchmark-passers-by")
    parser.add_argument("--split", choices=("test", "calibrate"), default="test", help="the identities that are shown")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    row = asyncio.run(run(options))
    for name, value in row.items():
        print(f"{name:24} {value}")
    rows = [*tables.read(options.results), row]
    tables.write(options.results, list(row), rows)


if __name__ == "__main__":
    main()
