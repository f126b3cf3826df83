"""Searches on a standby: the processor time that the primary is spared, and how often the standby is current.

    python -m benchmarks.cluster.readers --vectors 100000

The same queries go to the primary and to the reader in turn, in one process with one thread, so that load on the
machine affects both alike. Then another thread enrols faces at given rates meanwhile, and the searches are counted that
the reader answered, because it had replayed the log of the primary up to its end.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.cluster.servers import PostgresNode
from benchmarks.gallery.clustered import Clustered, Floats
from benchmarks.gallery.postgres_scale import FINGERPRINT, NAME, cpu_of_server, load_postgres
from index.postgres import hnsw
from index.postgres.gallery import PostgresGallery
from index.postgres.readers import Reader, Readers
from index.postgres.search import PostgresSearches
from index.postgres.store.database import Database
from index.types import NewFace

WARM_UP = 20  # searches that are not counted


class CountedReaders(Readers):
    """Readers, with the number of searches that they answered."""

    answered = 0

    def current(self) -> Iterator[Reader]:
        """Count the first reader of each search, which answers it."""
        for reader in super().current():
            self.answered += 1
            yield reader


@contextmanager
def nodes(folder: Path) -> Iterator[tuple[PostgresNode, PostgresNode]]:
    """Start a primary and an asynchronous standby."""
    folder.chmod(0o755)  # PostgreSQL runs as another user than root
    primary, standby = PostgresNode(folder, "node_a"), PostgresNode(folder, "node_b")
    try:
        primary.create()
        primary.start()
        standby.copy(primary)
        standby.start()
        yield primary, standby
    finally:
        standby.kill()
        primary.kill()


def process_of(node: PostgresNode) -> psutil.Process:
    """Return the server's first process."""
    return psutil.Process(int((node.data / "postmaster.pid").read_text().split()[0]))


def in_turn(searches: dict[str, PostgresSearches], servers: dict[str, psutil.Process], queries: Floats) -> Any:
    """Search for each query by each of `searches`; return milliseconds a search, of each server and of this process."""
    cpu = {name: dict.fromkeys((*servers, "own"), 0.0) for name in searches}
    wall: dict[str, list[float]] = {name: [] for name in searches}
    for number, query in enumerate(queries):
        for name, each in searches.items():
            before = {server: cpu_of_server(process) for server, process in servers.items()}
            own, start = time.process_time(), time.perf_counter()
            each.search(NAME, query[None], 5)
            if number >= WARM_UP:
                wall[name].append(time.perf_counter() - start)
                cpu[name]["own"] += time.process_time() - own
                for server, process in servers.items():
                    cpu[name][server] += cpu_of_server(process) - before[server]
    count = len(queries) - WARM_UP
    return {
        name: {
            "p50_ms": float(np.median(wall[name])) * 1e3,
            **{f"{server}_cpu_ms": seconds / count * 1e3 for server, seconds in cpu[name].items()},
        }
        for name in searches
    }


def shares(
    gallery: PostgresGallery, searches: PostgresSearches, readers: CountedReaders, queries: Floats, rates: list[float]
) -> dict[str, float]:
    """Return the share of searches that the reader answered while faces were enrolled at these rates a second."""
    report = {}
    for rate in rates:
        stop, enrolled = threading.Event(), 0

        def enrol(rate: float = rate, stop: threading.Event = stop) -> None:
            nonlocal enrolled
            while not stop.wait(1 / rate):
                gallery.enrol(NAME, [NewFace(f"at-{rate}-{enrolled}", queries[enrolled % len(queries)])], FINGERPRINT)
                enrolled += 1

        thread = threading.Thread(target=enrol)
        thread.start()
        before, start = readers.answered, time.perf_counter()
        for query in queries:
            searches.search(NAME, query[None], 5)
        passed = time.perf_counter() - start
        stop.set()
        thread.join()
        report[f"{enrolled / passed:.1f} enrolments/s"] = (readers.answered - before) / len(queries)
    return report


def main() -> None:
    """Print all figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--rates", type=float, nargs="*", default=[1, 10, 100], help="enrolments a second")
    options = parser.parse_args()
    data = Clustered(options.vectors, dimensions=192)
    queries, _ = data.queries(options.queries, strangers=0.1)
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        nodes(Path(folder)) as (primary, standby),
        closing(Database(primary.url)) as database,
    ):
        gallery = PostgresGallery(database)
        load_postgres(gallery, data)
        hnsw.update(database, gallery.collection(NAME), 16)
        with closing(CountedReaders(database, [standby.url])) as readers:
            while not [*readers.current()]:
                time.sleep(0.1)
                readers.check()
            on_reader = PostgresSearches(gallery, readers)
            searches = {"primary": PostgresSearches(gallery), "reader": on_reader}
            servers = {"primary": process_of(primary), "standby": process_of(standby)}
            report = {"searches": in_turn(searches, servers, queries)}
            report["answered by the reader"] = shares(gallery, on_reader, readers, queries, options.rates)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
