"""Processes of `vestibule watch` that are killed, and a comparison of their passages with the stored sightings."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from app.settings import PROJECT
from vestibule_client.sighting_answers import Sighting

EXAMPLES = PROJECT / "examples"
COLLECTION, ENROLLED = "people", "astronaut"
# Five seconds between two walks: the watcher continues a passage within three.
WALKS, WALK_FRAMES, EMPTY_FRAMES, FPS = 2, 4, 4, 1


@dataclass
class WatcherRun:
    """One process of a watcher: its life in Unix times, its events, and the passages in its queue at the end.

    `queued` has the start of each passage by its id.
    """

    camera: str
    process: subprocess.Popen[bytes]
    output: Path
    began: float
    ended: float = math.inf
    events: list[dict[str, Any]] = field(default_factory=list)
    queued: dict[str, float] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether it has processed the whole recording and sent all sightings."""
        return self.process.returncode == 0

    def passages(self, event: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield id and event of the passages."""
        return ((item["passage"], item) for item in self.events if item["event"] == event)

    def is_of(self, sighting: Sighting) -> bool:
        """Return whether it has seen the beginning of the sighting."""
        return sighting.camera == self.camera and self.began <= sighting.started_at.timestamp() <= self.ended


class WatcherProcess:
    """Starts `vestibule watch` again and again for one camera, in a folder of its own."""

    def __init__(self, folder: Path, recording: Path, url: str) -> None:
        self.runs: list[WatcherRun] = []
        self._folder, self._queue = folder, folder / "queue"
        self._folder.mkdir()
        self._command = [sys.executable, "-m", "app.cli.main", "watch", str(recording), "--camera", folder.name]
        self._command += ["--collection", COLLECTION, "--folder-fps", str(FPS), "--timeout", "60", "--url", url]
        self._command += ["--queue", str(self._queue), "--json"]

    def ensure_running(self) -> WatcherRun:
        """Return the process that runs, a new one if it has ended."""
        if self.runs and self.runs[-1].process.poll() is None:
            return self.runs[-1]
        if self.runs:
            self._note_end(self.runs[-1])
        output = self._folder / f"watcher-{len(self.runs)}.jsonl"
        began = time.time()
        with output.open("wb") as file, (self._folder / "watcher.log").open("ab") as log:
            process = subprocess.Popen(self._command, stdout=file, stderr=log, cwd=PROJECT, start_new_session=True)
        self.runs.append(WatcherRun(self._folder.name, process, output, began))
        return self.runs[-1]

    @property
    def reported(self) -> int:
        """The number of events of all processes so far."""
        return sum(output.read_bytes().count(b"\n") for output in self._folder.glob("*.jsonl"))

    def kill(self) -> bool:
        """Kill the process that runs; return whether it had not ended by itself."""
        run = self.runs[-1]
        if run.process.poll() is not None:
            return False
        os.killpg(run.process.pid, signal.SIGKILL)
        run.process.wait()
        self._note_end(run)
        return True

    def finish(self, deadline: float) -> None:
        """Wait until a process has processed a whole recording and sent all sightings, at most until the deadline."""
        run = self.runs[-1]
        while time.monotonic() < deadline:
            with suppress(subprocess.TimeoutExpired):
                run.process.wait(deadline - time.monotonic())
            if run.complete:
                break
            run = self.ensure_running()
        self._note_end(run)

    def _note_end(self, run: WatcherRun) -> None:
        if run.ended < math.inf:
            return
        run.ended = time.time()
        for line in run.output.read_text().splitlines():
            with suppress(ValueError):  # the last line of a killed process may be incomplete
                run.events.append(json.loads(line))
        for path in self._queue.glob("*.json"):
            pending = json.loads(path.read_bytes())
            run.queued[pending["passage"]] = pending["started_at"]


def draw(folder: Path) -> None:
    """Write the frames: an enrolled and an unknown person walk by in turn, WALKS times in all."""
    with Image.open(EXAMPLES / "astronaut.jpg") as image:
        enrolled = image.convert("RGB").crop((150, 0, 310, 200)).resize((128, 160))
    with Image.open(EXAMPLES / "hopper.jpg") as image:
        unknown = image.convert("RGB").resize((128, 128))
    folder.mkdir()
    for walk in range(WALKS):
        for step in range(WALK_FRAMES + EMPTY_FRAMES):
            frame = Image.new("RGB", (480, 270), (110, 120, 130))
            if step < WALK_FRAMES:
                frame.paste((enrolled, unknown)[walk % 2], (100 + 20 * step, 60))
            frame.save(folder / f"{walk:02d}-{step:02d}.png")


def judge(runs: Sequence[WatcherRun], sightings: Sequence[Sighting]) -> dict[str, int]:
    """Compare the stored sightings with the passages that had ended."""
    reported: dict[str, set[str]] = defaultdict(set)
    for run in runs:
        for passage, event in run.passages("sighting"):
            reported[passage].add(event["sighting"])
    queued = {passage: (run.camera, round(began, 3)) for run in runs for passage, began in run.queued.items()}
    starts = [(sighting.camera, round(sighting.started_at.timestamp(), 3)) for sighting in sightings]
    stored = {sighting.id for sighting in sightings}
    missing = {passage for passage, ids in reported.items() if not ids <= stored}
    missing |= {passage for passage, start in queued.items() if start not in starts}
    known_starts = set(queued.values())
    known_ids = {id for ids in reported.values() for id in ids}
    expected = [ENROLLED, None] * (WALKS // 2)
    complete = [run for run in runs if run.complete]
    seen = {passage for run in runs for passage, _ in run.passages("passage")}
    unreported = sum(
        sighting.id not in known_ids and start not in known_starts
        for sighting, start in zip(sightings, starts, strict=True)
    )
    return {
        "recordings": len(complete),
        "ended": len(reported.keys() | queued.keys()),
        "sightings": len(sightings),
        "unreported": unreported,
        "in_view": len(seen - reported.keys() - queued.keys()) - unreported,
        "lost": len(missing),
        "doubled": len(starts) - len(set(starts)),
        "wrong_recordings": sum(
            [sighting.subject_id for sighting in sightings if run.is_of(sighting)] != expected for run in complete
        ),
        "wrong_ids": sum(len(ids) > 1 for ids in reported.values()),
    }
