"""Kill the real service and real watchers with kill -9 at random moments, while sightings cause alerts.

    python -m benchmarks.cameras.process_kills [--kills 300] [--minutes 45]

`vestibule serve` (embedded engine) and CAMERAS processes `vestibule watch` run, and are started again when they have
ended. In each life of the service every watcher is killed once, in a random order, and then the service. A watcher
processes a folder of frames, in which WALKS times a person walks by, alternately one who is enrolled and one who is
not; it waits while the service is down, and starts from the first frame after a kill. Some processes are killed before
they are ready. Two rules send alerts to webhooks that answer badly (`receivers`).

A passage counts as ended when it is in the watcher's queue or reported as a sighting. At the end there must be:

- one stored sighting for each passage that had ended, whichever process was killed then;
- WALKS sightings of each recording that a watcher has processed to its end, with the right names, however often the
  service was killed meanwhile;
- one alert for each sighting, accepted by its target at least once with one id, and in the order of the sightings.

What the watcher has in view when it is killed is lost, since a new process does not know it; `in_view` counts it.
"""

from __future__ import annotations

import argparse
import math
import random
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import tables
from benchmarks.cameras.receivers import SECRET, Receivers, alert_faults
from benchmarks.cameras.watcher_processes import (
    COLLECTION,
    ENROLLED,
    EXAMPLES,
    WatcherProcess,
    draw,
    judge,
)
from benchmarks.cluster.servers import Replica
from vestibule_client import Client
from vestibule_client.alert_answers import Alert
from vestibule_client.alert_calls import Trigger
from vestibule_client.sighting_answers import Sighting

RESULTS = Path(__file__).parents[1] / "results" / "process_kills.csv"
# A start of the service takes several times as long as one of a watcher, so several watchers share a service.
CAMERAS = 4
# The most events of all watchers between two kills, of which a recording has about a dozen: in seconds, a busy machine
# would kill only processes that have not begun. LONGEST_S bounds the wait for them.
EVENTS, LONGEST_S = 12, 60.0
DOWN_S, EARLY = 2.0, 0.15  # the longest time without the service; the share of its starts that are not waited for
FINISH_S = 600.0  # how long the last processes may take for what is left
# Torch alone: a start does not compare runtimes.
SETTINGS = {"VESTIBULE_ALERT_PRIVATE_TARGETS": "127.0.0.0/8", "VESTIBULE_RUNTIME": "torch"}
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


def prepare(url: str, port: int) -> None:
    """Create the collection with its subject, and the rules."""
    with Client(url, timeout=120) as client:
        client.create_collection(COLLECTION)
        assert client.enrol(COLLECTION, ENROLLED, EXAMPLES / "astronaut.jpg").indexed
        for trigger, target in TARGETS.items():
            webhook = {"kind": "webhook", "url": f"http://127.0.0.1:{port}/{target}", "secret": SECRET}
            client.create_alert_rule(COLLECTION, trigger, trigger, cooldown_s=0, targets=[webhook])


def kill_in_turn(
    service: Replica, watchers: Sequence[WatcherProcess], kills: int, minutes: float, random: random.Random
) -> tuple[int, int]:
    """Kill the processes until there were `kills`, or `minutes` have passed; return the counts of both."""
    counts = [0, 0]
    deadline = time.monotonic() + 60 * minutes
    while sum(counts) < kills and time.monotonic() < deadline:
        service.start(wait=random.random() >= EARLY)
        for watcher in random.sample(watchers, len(watchers)):
            pause(watchers, LONGEST_S, events=random.randint(0, EVENTS))
            counts[1] += watcher.kill()
        pause(watchers, LONGEST_S, events=random.randint(0, EVENTS))
        service.kill()
        counts[0] += 1
        print(f"{counts[0]} kills of the service, {counts[1]} of watchers", flush=True)
        pause(watchers, random.uniform(0, DOWN_S))
    return counts[0], counts[1]


def pause(watchers: Sequence[WatcherProcess], seconds: float, *, events: float = math.inf) -> None:
    """Wait until the watchers have reported so many events, and start one again whenever it has ended."""
    until = time.monotonic() + seconds
    expected = sum(watcher.reported for watcher in watchers) + events
    while (left := until - time.monotonic()) > 0:
        for watcher in watchers:
            watcher.ensure_running()
        if sum(watcher.reported for watcher in watchers) >= expected:
            return
        time.sleep(min(left, 0.2))


def finish(client: Client, watchers: Sequence[WatcherProcess]) -> tuple[list[Sighting], list[Alert]]:
    """Let each watcher process a whole recording and the service send all alerts; return what is stored."""
    deadline = time.monotonic() + FINISH_S
    for watcher in watchers:
        watcher.finish(deadline)
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


def measure(kills: int, minutes: float, seed: int) -> Result:
    """Kill the processes, let them finish, and return what was found."""
    began = time.monotonic()
    receivers = Receivers(seed)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vestibule-kills-")))
        service = Replica(folder, "service", None, SETTINGS)
        stack.callback(service.kill)
        service.start()
        prepare(service.url, receivers.port)
        service.kill()
        draw(folder / "frames")
        watchers = [WatcherProcess(folder / f"camera-{n}", folder / "frames", service.url) for n in range(CAMERAS)]
        stack.callback(lambda: [watcher.kill() for watcher in watchers if watcher.runs])
        service_kills, watcher_kills = kill_in_turn(service, watchers, kills, minutes, random.Random(seed))
        receivers.is_calm = True
        service.start()
        with Client(service.url, timeout=120) as client:
            sightings, alerts = finish(client, watchers)
        expected = {(TARGETS["match" if one.subject_id else "unknown"], one.id) for one in sightings}
        faults = alert_faults(receivers.accepted, [(alert.id, alert.sighting) for alert in alerts], expected)
        return Result(
            service_kills=service_kills,
            watcher_kills=watcher_kills,
            **judge([run for watcher in watchers for run in watcher.runs], sightings),
            alerts=len(alerts),
            **{f"alert_{name}": count for name, count in asdict(faults).items()},
            seconds=round(time.monotonic() - began, 1),
        )


def main() -> None:
    """Measure, print and store the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=300)
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
