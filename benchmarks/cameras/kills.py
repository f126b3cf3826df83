"""Kill the service at random moments amid alerts, and check that none is lost, repeated with another id, or overtaken.

    python -m benchmarks.cameras.kills [--kills 300] [--engine embedded|postgres]

A child process does what the service does between HTTP and the disk: it stores sightings, each once for its idempotency
key, and sends their alerts. The clock of each child is ahead of the one before it, so that it need not wait for the
lease of the killed one to expire. This process is the watcher and the receivers: it sends each sighting until it is
acknowledged, also to the next child, and answers webhooks with 204, with 503, late, or by closing the connection after
it has read the alert. Some children are killed before they have opened the gallery.

At the end there must be, for every acknowledged sighting, one alert, which each target has accepted at least once, with
one id; the first acceptances of a target must be in the order of the alerts. Meanwhile subjects are erased: no alert
about one may arrive that was not on its way when the erasure was acknowledged.
"""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import math
import multiprocessing
import os
import random
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from app.alerts.addresses import AddressPolicy
from app.alerts.dispatcher import AlertDispatcher
from app.alerts.webhooks import WebhookSender
from app.background_tasks import background_task
from app.inference.executors import Executors
from app.observability.metrics import Metrics
from benchmarks.cameras.receivers import SECRET, Receivers, alert_faults
from index.alert_rules import Alert, AlertSettings, AlertTarget
from index.embedded.storage import EmbeddedStorage
from index.postgres.storage import PostgresStorage
from index.protocol import LEASE_S, Storage
from index.sightings import NewSighting

RESULTS = Path(__file__).parents[1] / "results" / "alert_kills.csv"
COLLECTION, CAMERA = "staff", "door"
SUBJECTS = 20
ERASE_EVERY = 25  # sightings
KILL_S, EARLY = 3.0, 0.1  # the longest life of a child that is ready; how many are killed before they may be
READY = "ready"
STEP_S = 2 * LEASE_S
FINISH_S = 600.0  # how long the last child may take for what is left
DEAD_AFTER_S = 86_400.0
TARGETS = ("a", "b")


@dataclass
class Result:
    """One run. `repeats` to `overtaken` are those of `AlertFaults`, of the alerts of acknowledged sightings.

    `after_erasure`: alerts about a subject that arrived though it was erased.
    """

    engine: str
    kills: int
    sightings: int
    erased_subjects: int
    alerts: int
    accepted: int
    repeats: int
    lost: int
    doubled: int
    wrong_ids: int
    overtaken: int
    after_erasure: int
    seconds: float


def _open(place: str, ahead_s: float = 0.0) -> Storage:
    """Open the storage, whose clock is ahead by so many seconds."""

    def clock() -> float:
        return time.time() + ahead_s

    if place.startswith("postgresql:"):
        return PostgresStorage.open(place, clock=clock)
    storage = EmbeddedStorage(Path(place))
    storage.gallery.clock = clock
    return storage


def prepare(place: str, port: int) -> None:
    """Create the collection, its subjects and a rule for each target, of which one is about unknown people too."""
    with closing(_open(place)) as storage:
        storage.gallery.create(COLLECTION, "embedder", "f1", 4)
        for number in range(SUBJECTS):
            storage.gallery.put_subject(COLLECTION, f"p{number}")
        targets = tuple(AlertTarget(name, "webhook", f"http://127.0.0.1:{port}/{name}", SECRET) for name in TARGETS)
        storage.alert_rules.create(COLLECTION, AlertSettings("Anybody", "match", targets=targets))


def serve(place: str, orders: Connection, ahead_s: float) -> None:
    """Run as a child: store what the parent orders, answer when it is durable, and send alerts all the time."""
    asyncio.run(_serve(place, orders, ahead_s))


async def _serve(place: str, orders: Connection, ahead_s: float) -> None:
    loop = asyncio.get_running_loop()
    with closing(_open(place, ahead_s)) as storage:
        executors = Executors()
        addresses = AddressPolicy([ipaddress.ip_network("127.0.0.0/8")])
        dispatcher = AlertDispatcher(
            storage.alert_outbox,
            executors,
            {"webhook": partial(WebhookSender, addresses)},
            Metrics(),
            dead_after_s=DEAD_AFTER_S,
            clock=storage.gallery.clock,
        )
        async with background_task(dispatcher.work()):
            orders.send(READY)
            while (order := await loop.run_in_executor(None, orders.recv)) is not None:
                result = await loop.run_in_executor(None, partial(_carry_out, storage, order))
                dispatcher.notify()
                await loop.run_in_executor(None, orders.send, result)
        executors.stop()


def _carry_out(storage: Storage, order: dict[str, Any]) -> Any:
    if order["do"] == "see":
        now = storage.gallery.clock()
        sighting = NewSighting(CAMERA, now, now, 1, 0.9, subject=order["subject"])
        change = storage.sightings.add.planned(COLLECTION, sighting).then(lambda stored: stored.token)
        return change.once(f"key{order['number']}", b"request", str, str).submit().result()
    if order["do"] == "erase":
        subjects = [subject.key for subject in storage.gallery.subjects(COLLECTION)]
        if order["subject"] in subjects:  # else an earlier child has done it
            storage.gallery.remove_subject(COLLECTION, order["subject"])
        return True
    return len(storage.alerts.page(limit=1, state="pending"))


class CameraWatcher:
    """Sends orders to one child after the other; an order that was not acknowledged is sent to the next one."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)
        self.sightings: dict[str, str] = {}  # acknowledged: the subject by the token
        self.erased: dict[str, float] = {}  # when the erasure was acknowledged
        self._number = 0
        self._next = SUBJECTS
        self._living = [f"p{number}" for number in range(SUBJECTS)]
        self._order: dict[str, Any] | None = None

    def run(self, child: Connection) -> None:
        """Send orders for up to KILL_S from the moment at which the child is ready, or before that moment."""
        life_s = self.random.uniform(0, KILL_S)
        if self.random.random() < EARLY:
            time.sleep(life_s)
            return
        child.recv()
        until = time.monotonic() + life_s
        try:
            while time.monotonic() < until:
                order = self._order = self._order or self._draw()
                child.send(order)
                if not wait([child], max(0.0, until - time.monotonic())):
                    return
                self._acknowledge(order, child.recv())
        except (EOFError, ConnectionError):
            pass

    def _draw(self) -> dict[str, Any]:
        self._number += 1
        if self._number % ERASE_EVERY == 0 and len(self._living) > 1:
            return {"do": "erase", "subject": self.random.choice(self._living)}
        return {"do": "see", "subject": self.random.choice(self._living), "number": self._number}

    def _acknowledge(self, order: dict[str, Any], result: Any) -> None:
        self._order = None
        if order["do"] == "see":
            self.sightings[result] = order["subject"]
        else:
            self._living.remove(order["subject"])
            self.erased[order["subject"]] = time.time()


@contextmanager
def _place(engine: str, folder: Path) -> Iterator[str]:
    if engine == "embedded":
        yield str(folder / "gallery")
        return
    from benchmarks.cluster.servers import PostgresNode

    folder.chmod(0o711)  # the server runs as another user
    server = PostgresNode(folder, "alerts")
    server.create()
    server.start()
    try:
        yield server.url
    finally:
        server.kill()


def measure(engine: str, kills: int, seed: int, minutes: float = math.inf) -> Result:
    """Kill a child `kills` times, or until `minutes` have passed, and return what was found."""
    began = time.monotonic()
    context = multiprocessing.get_context("forkserver")
    # So that a child need not import them.
    context.set_forkserver_preload(
        ["app.alerts.dispatcher", "app.alerts.webhooks", "index.embedded.storage", "index.postgres.storage"]
    )
    watcher, receivers = CameraWatcher(seed), Receivers(seed)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vestibule-alerts-")))
        place = stack.enter_context(_place(engine, folder))
        prepare(place, receivers.port)
        killed = 0
        while killed < kills and time.monotonic() - began < 60 * minutes:
            ours, theirs = context.Pipe()
            child = context.Process(target=serve, args=(place, theirs, killed * STEP_S), daemon=True)
            child.start()
            theirs.close()
            watcher.run(ours)
            os.kill(child.pid or 0, signal.SIGKILL)
            child.join()
            ours.close()
            killed += 1
            if killed % 25 == 0:
                print(f"{killed} kills, {len(watcher.sightings)} sightings, {dict(receivers.answers)}", flush=True)
        receivers.is_calm = True
        _finish(context, place, killed * STEP_S)
        return _judge(engine, killed, watcher, receivers, place, time.monotonic() - began)


def _finish(context: Any, place: str, ahead_s: float) -> None:
    """Let a last child send what is left."""
    ours, theirs = context.Pipe()
    child = context.Process(target=serve, args=(place, theirs, ahead_s), daemon=True)
    child.start()
    ours.recv()
    deadline = time.monotonic() + FINISH_S
    is_done = False
    while not is_done and time.monotonic() < deadline:
        ours.send({"do": "count"})
        is_done = ours.recv() == 0
        time.sleep(0.2)
    ours.send(None)
    child.join()


def _judge(engine: str, kills: int, watcher: CameraWatcher, receivers: Receivers, place: str, seconds: float) -> Result:
    """Compare the sightings that were acknowledged with the alerts that are stored and those that arrived."""
    with closing(_open(place)) as storage:
        alerts: list[Alert] = []
        while page := storage.alerts.page(alerts[-1].position if alerts else 0, 1000):
            alerts += page
    expected = {token for token, subject in watcher.sightings.items() if subject not in watcher.erased}
    faults = alert_faults(
        receivers.accepted,
        [(alert.token, alert.sighting.token) for alert in alerts],
        {(target, token) for target in TARGETS for token in expected},
    )
    margin_s = 0.5  # of an attempt that was on its way
    after_erasure = sum(at > watcher.erased.get(str(subject), at) + margin_s for *_, subject, at in receivers.accepted)
    return Result(
        engine=engine,
        kills=kills,
        sightings=len(watcher.sightings),
        erased_subjects=len(watcher.erased),
        alerts=len(alerts),
        accepted=len(receivers.accepted),
        **asdict(faults),
        after_erasure=after_erasure,
        seconds=round(seconds, 1),
    )


def main() -> None:
    """Measure, print and store the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--engine", choices=("embedded", "postgres"), default="embedded")
    parser.add_argument("--minutes", type=float, default=math.inf, help="kill no more after so many")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    result = measure(arguments.engine, arguments.kills, arguments.seed, arguments.minutes)
    print(result)
    from benchmarks import tables  # it imports torch, which a child must not

    tables.merge(RESULTS, [result], ["engine"])


if __name__ == "__main__":
    main()
