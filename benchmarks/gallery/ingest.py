"""How fast a gallery takes faces in durably, and how searches fare while its index is built.

A step of `benchmarks.gallery.peers`. The bulk goes in by calls of `AT_ONCE` faces from one thread; single faces come
from eight, whose writes the ledger commits together. The index is built, and brought up to date when a quarter more has
come, while one thread searches all the time.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gallery.clustered import Clustered, Floats
from benchmarks.gallery.engines import Vestibule
from index.embedded.gallery import EmbeddedGallery
from index.embedded.tasks.maintenance import Maintenance
from index.types import NewFace

CLIENTS = 8
GROWTH = 4  # the second build is of one part in so many more
# A durable commit of SQLite is `synchronous` FULL.
FULL = 2
WANTED_BULK, WANTED_SINGLE = 10_000, 100

Figure = tuple[str, float, str, float | None]  # what, value, unit, wanted


@dataclass(frozen=True)
class Ingest:
    """One figure; `wanted` is what it should at least be, if anything."""

    measure: str
    vectors: int
    value: float
    unit: str
    wanted: float | None
    versions: str
    machine: str
    date: str


def fsync_ms(folder: Path, count: int = 100) -> float:
    """The median of writing 4 KB more to a file and syncing it: what the disk allows."""
    times = []
    with (folder / "fsync").open("wb") as file:
        for _ in range(count):
            began = time.perf_counter()
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
            times.append(time.perf_counter() - began)
    return 1000 * float(np.median(times))


def singles_per_s(engine: Vestibule, data: Clustered, seconds: float) -> float:
    """Faces a second that eight threads enrol one at a time, each waiting until its own is durable."""
    vectors, _ = data.queries(4096, strangers=1)
    until = time.perf_counter() + seconds

    def client(number: int) -> int:
        count = 0
        while time.perf_counter() < until:
            face = NewFace(f"single-{number}-{count}", vectors[(count * CLIENTS + number) % len(vectors)])
            engine.gallery.enrol(engine.collection, [face], engine.fingerprint)
            count += 1
        return count

    began = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as pool:
        count = sum(pool.map(client, range(CLIENTS)))
    return count / (time.perf_counter() - began)


class Searching:
    """Searches one after the other on a thread while the block lasts: `ms` of each, and the `errors` there were."""

    def __init__(self, gallery: EmbeddedGallery, collection: str, queries: Floats):
        self.ms: list[float] = []
        self.errors: list[str] = []
        self._gallery, self._collection, self._queries = gallery, collection, queries
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Searching:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        number = 0
        while not self._done.is_set():
            query = self._queries[number % len(self._queries), None]
            began = time.perf_counter()
            try:
                if not self._gallery.nearest_subjects(self._collection, query)[0]:
                    self.errors.append("nothing was found")
            except Exception as error:  # noqa: BLE001  none may fail, whatever for
                self.errors.append(repr(error))
            self.ms.append(1000 * (time.perf_counter() - began))
            number += 1


def measure(data: Clustered, folder: Path, seconds: float, machine: str) -> list[Ingest]:
    """All figures for that many vectors.

    Raises:
        RuntimeError: the ledger does not commit durably.
    """
    engine = Vestibule()
    engine.create(folder / "gallery", data)
    if engine.gallery.ledger.reader().pragma("synchronous") != FULL:
        raise RuntimeError("the ledger does not sync what it commits")
    about: dict[str, Any] = {"versions": engine.versions(), "machine": machine, "date": time.strftime("%Y-%m-%d")}
    figures: list[Figure] = [("fsync of 4 KB, p50", fsync_ms(folder), "ms", None)]
    load = _enrol(engine, data.chunks())
    figures.append(("bulk enrolment, one thread", data.rows / load, "vectors/s", WANTED_BULK))
    figures += _building(engine, data, "first build")
    single = singles_per_s(engine, data, seconds)
    figures.append(("single enrolments, 8 threads", single, "faces/s", WANTED_SINGLE))
    more = replace(data, rows=max(1, data.rows // GROWTH), seed=data.seed + 1)
    _enrol(engine, more.chunks())
    figures += _building(engine, data, f"after 1/{GROWTH} more")
    engine.close()
    return [
        Ingest(name, data.rows, float(f"{value:.5g}"), unit, wanted, **about) for name, value, unit, wanted in figures
    ]


def _enrol(engine: Vestibule, chunks: Iterator[tuple[int, Floats]]) -> float:
    """Seconds without the making of the vectors."""
    seconds = 0.0
    for first, vectors in chunks:
        began = time.perf_counter()
        engine.add(first, vectors)
        seconds += time.perf_counter() - began
    return seconds


def _building(engine: Vestibule, data: Clustered, when: str) -> list[Figure]:
    """A round of maintenance with searches beside it, and searches alone afterwards."""
    queries, _ = data.queries(500, strangers=0.5)
    maintenance = Maintenance(engine.gallery, engine.limits(data.rows))
    engine.gallery.nearest_subjects(engine.collection, queries[:1])  # so that the view is there
    with Searching(engine.gallery, engine.collection, queries) as beside:
        began = time.perf_counter()
        maintenance.run()
        seconds = time.perf_counter() - began
    maintenance.release()
    with Searching(engine.gallery, engine.collection, queries) as alone:
        time.sleep(min(5.0, seconds))
    figures: list[Figure] = [(f"{when}: building", seconds, "s", None)]
    for name, searching in (("meanwhile", beside), ("afterwards", alone)):
        p50, p99 = np.percentile(searching.ms, (50, 99)).tolist()
        figures.append((f"{when}: searches {name}", len(searching.ms), "searches", None))
        figures.append((f"{when}: a search {name}, p50", p50, "ms", None))
        figures.append((f"{when}: a search {name}, p99", p99, "ms", None))
        figures.append((f"{when}: errors {name}", len(searching.errors), "errors", None))
    return figures
