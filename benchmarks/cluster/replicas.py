"""What replicas of the service on one PostgreSQL promise, tried with real processes on this machine.

    python -m benchmarks.cluster.replicas read-your-writes
    python -m benchmarks.cluster.replicas takeover
    python -m benchmarks.cluster.replicas kills --kills 100

The pictures are CIFAR-10's test images from VESTIBULE_DATASETS, embedded whole, because the time of an embedder is not
what is measured. `takeover` and `kills` need HAProxy, and all need the weights of `vgg-cifar10`.
"""

from __future__ import annotations

import hashlib
import io
import os
import random
import signal
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import httpx
import pyarrow.parquet
import typer

from benchmarks.cluster.servers import Cluster, Replica, cluster, haproxy

cli = typer.Typer(add_completion=False)

COLLECTION, EMBEDDER = "/collections/doors", "vgg-cifar10"
# HAProxy's client address is the host of a request, and the test's address has a port.
SETTINGS = {"VESTIBULE_ALLOWED_HOSTS": "127.0.0.1,localhost"}
READY_S = 60.0


def pictures(count: int) -> list[bytes]:
    """Return the first `count` of CIFAR-10's test images, as JPEG files."""
    file = Path(os.environ["VESTIBULE_DATASETS"]) / "cifar10" / "test.parquet"
    images = pyarrow.parquet.read_table(file, columns=["image"]).column("image").slice(0, count)
    return [row["bytes"] for row in images.to_pylist()]


@contextmanager
def temporary_cluster(*, standby: bool = False) -> Iterator[tuple[Path, Cluster]]:
    """A cluster in a temporary folder, into which PostgreSQL's user may look, with an empty collection."""
    with tempfile.TemporaryDirectory(prefix="vestibule-cluster-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)
        with cluster(folder, SETTINGS, standby=standby) as running:
            client = httpx.Client(base_url=running.replicas[0].url, trust_env=False, timeout=60)
            client.put(COLLECTION, json={"embedder": EMBEDDER}).raise_for_status()
            yield folder, running


@cli.command("read-your-writes")
def read_your_writes(count: Annotated[int, typer.Option(min=1)] = 10_000) -> None:
    """Write a subject through one replica, and read it through the other at once; in turns."""
    missed, started = 0, time.perf_counter()
    with temporary_cluster() as (_, running):
        clients = [httpx.Client(base_url=one.url, trust_env=False, timeout=60) for one in running.replicas]
        for number in range(count):
            writer, reader = clients[number % 2], clients[1 - number % 2]
            path, properties = f"{COLLECTION}/subjects/s{number % 1000}", {"name": f"write {number}"}
            writer.put(path, json=properties).raise_for_status()
            answer = reader.get(path)
            missed += answer.status_code != 200 or answer.json()["name"] != properties["name"]
    seconds = time.perf_counter() - started
    typer.echo(f"{count:,} writes, each read through the other replica: {missed} missed; {seconds:.0f} s")
    if missed:
        raise typer.Exit(1)


@cli.command()
def takeover(count: Annotated[int, typer.Option(min=1)] = 5000) -> None:
    """Kill the replica that works on a bulk job: the other finishes it, and every picture is enrolled once."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        for number, picture in enumerate(pictures(count)):
            file.writestr(f"s{number}/a.jpg", picture)
    with temporary_cluster() as (_, running):
        first, second = running.replicas
        with httpx.Client(base_url=first.url, trust_env=False, timeout=120) as client:
            sent = client.post(
                f"{COLLECTION}/faces:bulk", content=archive.getvalue(), headers={"content-type": "application/zip"}
            )
            job = sent.raise_for_status().json()["id"]
        worker, other = _worker_first(first, second, job)
        before = _job(other, job)["items"]["enrolled"]
        worker.kill()
        killed_at = time.perf_counter()
        while (state := _job(other, job))["state"] in ("queued", "running"):
            time.sleep(0.2)
        seconds = time.perf_counter() - killed_at
        with httpx.Client(base_url=other.url, trust_env=False, timeout=120) as client:
            collection = client.get(COLLECTION).json()
    typer.echo(
        f"killed with {before:,} of {count:,} enrolled; {state['state']} {seconds:.1f} s later:"
        f" {state['items']['enrolled']:,} enrolled, {collection['faces']:,} faces,"
        f" {collection['subjects']:,} subjects"
    )
    if not collection["faces"] == collection["subjects"] == state["items"]["enrolled"] == count:
        raise typer.Exit(1)


def _job(replica: Replica, job: str) -> dict[str, Any]:
    answer: dict[str, Any] = httpx.get(f"{replica.url}{COLLECTION}/jobs/{job}", trust_env=False, timeout=60).json()
    return answer


def _worker_first(first: Replica, second: Replica, job: str) -> tuple[Replica, Replica]:
    """Return the two replicas, first the one without which the job makes no progress."""
    while _job(first, job)["items"]["enrolled"] == 0:
        time.sleep(0.05)
    with first.paused():
        time.sleep(0.5)  # what it had begun is committed
        before = _job(second, job)["items"]["enrolled"]
        time.sleep(1)
        if _job(second, job)["items"]["enrolled"] > before:
            return second, first
    return first, second


@dataclass
class Ledger:
    """What the clients were told. `retried`: requests that failed, and then succeeded or failed."""

    enrolled: dict[str, list[str]] = field(default_factory=dict)  # subject -> ids of acknowledged faces
    erased: set[str] = field(default_factory=set)
    retried: int = 0
    failures: list[str] = field(default_factory=list)


@cli.command()
def kills(
    kills: Annotated[int, typer.Option(min=1)] = 100,
    seed: Annotated[int, typer.Option()] = 1,
    clients: Annotated[int, typer.Option(min=1)] = 4,
) -> None:
    """Kill a replica, the standby or the primary again and again, under enrolments and erasures.

    A killed primary is replaced by its synchronous standby. A request that fails is sent once more, with the same
    Idempotency-Key, when the service is ready again. In the end every acknowledged face must be there once, and no
    erased subject.
    """
    rng = random.Random(seed)
    shown = pictures(200)
    with temporary_cluster(standby=True) as (folder, running), haproxy(folder, running.replicas) as url:
        stop, ledgers = threading.Event(), [Ledger() for _ in range(clients)]
        threads = [
            threading.Thread(target=_client, args=(url, number, ledger, shown, stop, random.Random(seed + number)))
            for number, ledger in enumerate(ledgers)
        ]
        for thread in threads:
            thread.start()
        counts = {"replica": 0, "standby": 0, "primary": 0}
        for number in range(kills):
            time.sleep(rng.uniform(0.3, 2.0))
            target = rng.choice(sorted(counts))
            _kill(running, target, rng)
            counts[target] += 1
            print(f"\r{number + 1} kills", end="", file=sys.stderr)
        time.sleep(2)
        stop.set()
        for thread in threads:
            thread.join()
        _wait_until_ready(url)
        lost, twice, back = _compare(running.replicas[0], ledgers)
    failures = [failure for ledger in ledgers for failure in ledger.failures]
    acknowledged = sum(len(faces) for ledger in ledgers for faces in ledger.enrolled.values())
    typer.echo(
        f"\n{kills} kills ({counts}): {acknowledged:,} enrolments and {sum(len(one.erased) for one in ledgers):,}"
        f" erasures acknowledged; {lost} lost, {twice} twice, {back} erased come back;"
        f" {sum(one.retried for one in ledgers)} requests sent again, of which {len(failures)} failed again"
    )
    for failure in failures[:10]:
        typer.echo(failure)
    if lost or twice or back or failures:
        raise typer.Exit(1)


def _kill(running: Cluster, target: str, rng: random.Random) -> None:
    """Kill one process of this kind, and bring the cluster back to two replicas, a primary and a standby."""
    primary, standby = running.nodes
    if target == "replica":
        replica = rng.choice(running.replicas)
        replica.kill()
        replica.start()
        return
    if target == "standby":
        standby.kill()
        time.sleep(rng.uniform(0, 0.5))  # commits wait meanwhile
    else:
        primary.kill()
        standby.promote()
        running.nodes.reverse()
        primary, standby = running.nodes
    standby.copy(primary)
    standby.start()
    primary.set_synchronous(standby.name)
    while not primary.execute("SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync'"):
        time.sleep(0.05)


def _client(
    url: str, number: int, ledger: Ledger, shown: list[bytes], stop: threading.Event, rng: random.Random
) -> None:
    """Enrol pictures of new subjects, and erase some of them, until `stop`."""
    count = 0
    with httpx.Client(base_url=url, trust_env=False, timeout=90) as client:
        while not stop.is_set():
            count += 1
            subject, picture = f"c{number}-{count}", rng.choice(shown)
            key = hashlib.sha256(f"{number} {count}".encode()).hexdigest()
            path = f"{COLLECTION}/subjects/{subject}"
            headers = {"content-type": "image/jpeg", "idempotency-key": key}
            answer = _send(client, ledger, "POST", f"{path}/faces", content=picture, headers=headers)
            if answer is None:
                continue
            ledger.enrolled[subject] = [face["face_id"] for face in answer.json()["indexed"]]
            if rng.random() < 0.3:
                gone = _send(client, ledger, "DELETE", path, may_be_gone=True)
                if gone is not None:
                    ledger.erased.add(subject)
                    del ledger.enrolled[subject]


def _send(
    client: httpx.Client, ledger: Ledger, method: str, path: str, *, may_be_gone: bool = False, **request: Any
) -> httpx.Response | None:
    """Send a request, once more if it fails; None if it fails again. An erasure may have been done the first time."""
    problem = ""
    for attempt in range(2):
        if attempt:
            ledger.retried += 1
            _wait_until_ready(str(client.base_url))
        try:
            answer = client.request(method, path, **request)
        except httpx.TransportError as error:
            problem = repr(error)
            continue
        if answer.is_success or (attempt and may_be_gone and answer.status_code == 404):
            return answer
        problem = f"{answer.status_code} {answer.text[:200]}"
    ledger.failures.append(f"{method} {path}: {problem}")
    return None


def _wait_until_ready(url: str) -> None:
    """Wait until a request through HAProxy finds a replica that can write."""
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        try:
            if httpx.put(f"{url}{COLLECTION}/subjects/probe", json={}, trust_env=False, timeout=10).is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)


def _compare(replica: Replica, ledgers: list[Ledger]) -> tuple[int, int, int]:
    """Return how many acknowledged faces are missing, how many too many are there, and how many erased are back."""
    lost = twice = back = 0
    with httpx.Client(base_url=replica.url, trust_env=False, timeout=60) as client:
        for ledger in ledgers:
            for subject, faces in ledger.enrolled.items():
                answer = client.get(f"{COLLECTION}/subjects/{subject}/faces")
                found = [face["id"] for face in answer.json()["data"]] if answer.is_success else []
                lost += len(set(faces) - set(found))
                twice += len(set(found) - set(faces))
            back += sum(client.get(f"{COLLECTION}/subjects/{subject}").status_code != 404 for subject in ledger.erased)
    return lost, twice, back


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    cli()
