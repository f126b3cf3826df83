"""Kill the real service and the real watcher in turn, with kill -9 at random moments, while sightings cause alerts.

    python -m benchmarks.cameras.process_kills [--kills 100] [--minutes 15]

`vestibule serve` (embedded engine) and `vestibule watch` run as processes of their own, and are started again when they
have ended. The watcher processes a folder of frames, in which WALKS times a person walks by, alternately one who is
enrolled and one who is not; it waits while the service is down, and starts from the first frame after a kill. Some
processes are killed before they are ready. Two rules send alerts to webhooks that answer badly (`receivers`).

A passage counts as ended when it is in the watcher's queue or reported as a sighting. At the end there must be:

- one stored sighting for each passage that had ended, whichever process was killed then;
- WALKS sightings of each recording that a watcher has processed to its end, with the right names, however often the
  service was killed meanwhile;
- one alert for each sighting, accepted by its target at least once with one id, and in the order of the sightings.

What the watcher has in view when it is killed is lost, since a new process does not know it; `in_view` counts it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks import tables
from benchmarks.cameras.receivers import SECRET, Receivers, alert_faults
from benchmarks.cluster.servers import PROJECT, Replica
from vestibule_client import Client
from vestibule_client.alert_answers import Alert
from vestibule_client.alert_calls import Trigger
from vestibule_client.sighting_answers import Sighting

RESULTS = Path(__file__).parents[1] / "results" / "process_kills.csv"
EXAMPLES = PROJECT / "examples"
COLLECTION, CAMERA, ENROLLED = "people", "door", "astronaut"
# Five seconds between two walks: the watcher continues a passage within three.
WALKS, WALK_FRAMES, EMPTY_FRAMES, FPS = 4, 4, 4, 1
LIFE_S, EARLY = 15.0, 0.15  # the longest life of a process that is ready; the share that is killed before
START_S = 10.0  # an early kill comes within this time after the start
FINISH_S = 600.0  # how long the last processes may take for what is left
TARGETS: dict[Trigger, str] = {"match": "a", "unknown": "b"}


@dataclass
class Result:
    """One run. All counts after `repeats` must be 0.

    `recordings`: processed to the end by one watcher. `ended`: passages that had ended. `unreported`: sightings whose
    watcher was killed after it had stored them and before it reported them, at most one for each kill. `in_view`:
    passages that the watcher had in view when it was killed. `lost`, `doubled`: passages that had ended without a
    stored sighting, or with several. `wrong_recordings`: without the expected sightings. `wrong_ids`: passages that
    were reported as several sightings. `alert_...` are of `AlertFaults`.
    """

    service_kills: int
    watcher_kills: int
    recordings: int
    ended: int
    sightings: int
    unreported: int
    in_view: int
    alerts: int
    alert_repeats: int
    lost: int
    doubled: int
    wrong_recordings: int
    wrong_ids: int
    alert_lost: int
    alert_doubled: int
    alert_wrong_ids: int
    alert_overtaken: int
    seconds: float


@dataclass
class WatcherRun:
    """One process of the watcher: its life in Unix times, its events, and the passages in its queue at the end.

    `queued` has the start of each passage by its id.
    """

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
        return self.began <= sighting.started_at.timestamp() <= self.ended


class WatcherProcess:
    """Starts `vestibule watch` again and again."""

    def __init__(self, folder: Path, recording: Path, url: str) -> None:
        self.runs: list[WatcherRun] = []
        self._folder, self._queue = folder, folder / "queue"
        self._command = [sys.executable, "-m", "app.cli.main", "watch", str(recording), "--camera", CAMERA]
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
        self.runs.append(WatcherRun(process, output, began))
        return self.runs[-1]

    def kill(self) -> bool:
        """Kill the process that runs; return whether it had not ended by itself."""
        run = self.runs[-1]
        if run.process.poll() is not None:
            return False
        os.killpg(run.process.pid, signal.SIGKILL)
        run.process.wait()
        self._note_end(run)
        return True

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


def prepare(url: str, port: int) -> None:
    """Create the collection with its subject, and the rules."""
    with Client(url, timeout=120) as client:
        client.create_collection(COLLECTION)
        assert client.enrol(COLLECTION, ENROLLED, EXAMPLES / "astronaut.jpg").indexed
        for trigger, target in TARGETS.items():
            webhook = {"kind": "webhook", "url": f"http://127.0.0.1:{port}/{target}", "secret": SECRET}
            client.create_alert_rule(COLLECTION, trigger, trigger, cooldown_s=0, targets=[webhook])


def kill_in_turn(
    service: Replica, watcher: WatcherProcess, kills: int, minutes: float, random: random.Random
) -> tuple[int, int]:
    """Kill the processes until there were `kills`, or `minutes` have passed; return the counts of both."""
    counts = [0, 0]
    deadline = time.monotonic() + 60 * minutes
    while sum(counts) < kills and time.monotonic() < deadline:
        service.start(wait=random.random() >= EARLY)
        pause(watcher, random.uniform(0, LIFE_S))
        counts[1] += watcher.kill()
        pause(watcher, random.uniform(0, LIFE_S))
        service.kill()
        counts[0] += 1
        pause(watcher, random.uniform(0, START_S / 2))
        if sum(counts) % 10 == 0:
            print(f"{counts[0]} kills of the service, {counts[1]} of the watcher", flush=True)
    return counts[0], counts[1]


def pause(watcher: WatcherProcess, seconds: float) -> None:
    """Wait, and meanwhile start the watcher again whenever it has ended."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        watcher.ensure_running()
        time.sleep(min(left, 0.5))


def finish(client: Client, watcher: WatcherProcess) -> tuple[list[Sighting], list[Alert]]:
    """Let a watcher process a whole recording and the service send all alerts; return what is stored."""
    deadline = time.monotonic() + FINISH_S
    while not watcher.ensure_running().complete and time.monotonic() < deadline:
        time.sleep(0.5)
    while client.alerts(state="pending", limit=1).data and time.monotonic() < deadline:
        time.sleep(0.5)
    sightings: list[Sighting] = []
    while (page := client.sightings(COLLECTION, limit=100, after=sightings[-1].position if sightings else 0)).data:
        sightings += page.data
    alerts: list[Alert] = []
    after: int | None = 0
    while after is not None:
        found = client.alerts(limit=100, after=after)
        alerts += found.data
        after = found.next
    return sightings, alerts


def judge(runs: Sequence[WatcherRun], sightings: Sequence[Sighting]) -> dict[str, int]:
    """Compare the stored sightings with the passages that had ended."""
    reported: dict[str, set[str]] = defaultdict(set)
    for run in runs:
        for passage, event in run.passages("sighting"):
            reported[passage].add(event["sighting"])
    queued = {passage: began for run in runs for passage, began in run.queued.items()}
    starts = [round(sighting.started_at.timestamp(), 3) for sighting in sightings]
    stored = {sighting.id for sighting in sightings}
    missing = {passage for passage, ids in reported.items() if not ids <= stored}
    missing |= {passage for passage, began in queued.items() if round(began, 3) not in starts}
    known_starts = {round(began, 3) for began in queued.values()}
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


def measure(kills: int, minutes: float, seed: int) -> Result:
    """Kill the processes, let them finish, and return what was found."""
    began = time.monotonic()
    receivers = Receivers(seed)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vestibule-kills-")))
        service = Replica(folder, "service", None, {"VESTIBULE_ALERT_PRIVATE_TARGETS": "127.0.0.0/8"})
        stack.callback(service.kill)
        service.start()
        prepare(service.url, receivers.port)
        service.kill()
        draw(folder / "frames")
        watcher = WatcherProcess(folder, folder / "frames", service.url)
        stack.callback(lambda: watcher.runs and watcher.kill())
        service_kills, watcher_kills = kill_in_turn(service, watcher, kills, minutes, random.Random(seed))
        receivers.is_calm = True
        service.start()
        with Client(service.url, timeout=120) as client:
            sightings, alerts = finish(client, watcher)
        expected = {(TARGETS["match" if one.subject_id else "unknown"], one.id) for one in sightings}
        faults = alert_faults(receivers.accepted, [(alert.id, alert.sighting) for alert in alerts], expected)
        return Result(
            service_kills=service_kills,
            watcher_kills=watcher_kills,
            **judge(watcher.runs, sightings),
            alerts=len(alerts),
            **{f"alert_{name}": count for name, count in asdict(faults).items()},
            seconds=round(time.monotonic() - began, 1),
        )


def main() -> None:
    """Measure, print and store the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=math.inf, help="kill no more after so many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    result = measure(options.kills, options.minutes, options.seed)
    for name, value in asdict(result).items():
        print(f"{name:18} {value}")
    tables.write(options.results, list(asdict(result)), [asdict(result)])


if __name__ == "__main__":
    main()
