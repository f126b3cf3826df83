"""The faults, each a function of a `Trial` that yields figures; a step of `benchmarks.serving.faults`."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles

import httpx
import numpy as np
import psutil
import torch
import uvloop

from benchmarks.serving import load_generator
from benchmarks.serving.load_generator import Reply
from benchmarks.serving.open_loop import open_loop
from benchmarks.serving.servers import HOST, Running, ServerError
from models import checkpoint

AT_ONCE, BAD = 96, (16, 48, 80)  # requests, and the places of those that no server can decode
BURST = 1500
OVER = 3  # times what a server can do
CAPACITY_S = 8
DEADLINE_S = 30  # Vestibule's default
ALONE_S = 30  # in which what was killed may come back by itself
LEAVING = 200


@dataclass(frozen=True)
class Figure:
    """What was seen."""

    measure: str
    value: float | None
    unit: str = ""
    wanted: str = ""
    note: str = ""


@dataclass
class Trial:
    """How a server is made, and what it is tried with: `seconds` of overload, a number of reloads."""

    make: Callable[[Mapping[str, str]], Running]
    picture: bytes
    seconds: float
    reloads: int
    _servers: list[Running] = field(default_factory=list)

    def server(self, **settings: str) -> Running:
        """A new one that answers, warm.

        Raises:
            ServerError: it does not.
        """
        server = self.make(settings)
        self._servers.append(server)
        server.start(self.picture)
        server.chosen()
        self.send(server, [self.picture] * AT_ONCE)
        return server

    def send(self, server: Running, pictures: Sequence[bytes]) -> list[Reply]:
        """The replies to pictures that are sent at one moment."""
        requests = [server.kind.request(picture).encoded(server.port) for picture in pictures]
        return uvloop.run(load_generator.at_once(server.port, requests))

    def end(self) -> None:
        """End all servers."""
        for server in self._servers:
            server.end()


@dataclass
class Memory:
    """Of a server over time: seconds, and resident MB."""

    times: list[float] = field(default_factory=list)
    megabytes: list[float] = field(default_factory=list)

    def slope(self) -> float:
        """MB a minute, of the line through the second half: what grew at first may have been room that is kept."""
        half = len(self.times) // 2
        if len(self.times) - half < 2:
            return 0.0
        return float(60 * np.polyfit(self.times[half:], self.megabytes[half:], 1)[0])

    def figures(self) -> Iterator[Figure]:
        """Where it began, where it ended, how fast it grew."""
        yield Figure("memory before", self.megabytes[0], "MB")
        yield Figure("memory after", self.megabytes[-1], "MB")
        slope, half = self.slope(), len(self.times) // 2
        yield Figure("memory, slope of the second half", slope, "MB/minute")
        grown = slope * (self.times[-1] - self.times[half]) / 60
        yield Figure("memory, growth in the second half", 100 * grown / self.megabytes[half], "%", "< 3")


@contextmanager
def watched(server: Running, every_s: float = 0.5) -> Iterator[Memory]:
    """The server's memory, for as long as it is looked at."""
    memory, over, began = Memory(), threading.Event(), time.perf_counter()

    def look() -> None:
        while True:
            memory.megabytes.append(server.rss_mb())
            memory.times.append(time.perf_counter() - began)
            if over.wait(every_s):
                return

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield memory
    finally:
        over.set()
        watcher.join()


def bad(trial: Trial) -> Iterator[Figure]:
    """Three pictures that cannot be decoded among ninety-six."""
    server = trial.server()
    damaged = trial.picture[:200] + bytes(len(trial.picture) - 200)
    sent = [damaged if place in BAD else trial.picture for place in range(AT_ONCE)]
    replies = trial.send(server, sent)
    good = [reply for place, reply in enumerate(replies) if place not in BAD]
    yield Figure("good pictures lost, of 93", sum(reply.status != 200 for reply in good), wanted="0")
    answers = {replies[place].status for place in BAD}
    yield Figure("answer to the bad ones", max(answers), wanted="400", note=_statuses(replies))


def burst(trial: Trial) -> Iterator[Figure]:
    """Fifteen hundred requests at one moment."""
    server = trial.server()
    replies = trial.send(server, [trial.picture] * BURST)
    yield from polite(replies)
    ok = [reply.seconds for reply in replies if reply.status == 200]
    yield Figure("slowest of the 200s", max(ok, default=0.0), "s")
    server.answers_within(60, trial.picture)


def polite(replies: Sequence[Reply]) -> Iterator[Figure]:
    """How many were answered, how many were refused, and how soon."""
    ok = [reply.seconds for reply in replies if reply.status == 200]
    told = [reply.seconds for reply in replies if reply.status == 429 and "retry-after" in reply.headers]
    other = [reply for reply in replies if reply.status not in {200, 429}]
    yield Figure("answered 200", len(ok))
    yield Figure("answered 429 with Retry-After", len(told))
    others = len(replies) - len(ok) - len(told)
    yield Figure("answered anything else, or nothing", others, wanted="0", note=_statuses(other))
    if len(ok) > 1:
        yield Figure("p99 of the 200s", quantiles(ok, n=100)[98], "s", f"<= {DEADLINE_S}")
    if refused := [reply.seconds for reply in replies if reply.status in {429, 503}]:
        yield Figure("median of the refusals (429, 503)", 1000 * median(refused), "ms")


def overload(trial: Trial) -> Iterator[Figure]:
    """Three times as many requests as it can answer, whatever became of those before."""
    server = trial.server()
    request = server.kind.request(trial.picture)
    load = load_generator.closed(server.port, request, 64, CAPACITY_S, server.bench.work)
    yield Figure("capacity, by 64 clients who wait", load.per_s, "requests/s")
    sender = psutil.Process().cpu_times()
    began = time.perf_counter()
    with watched(server) as memory:
        offered = OVER * load.per_s
        sending = open_loop(server.port, request.encoded(server.port), offered, trial.seconds)
        replies = uvloop.run(sending)
    took, after = time.perf_counter() - began, psutil.Process().cpu_times()
    yield Figure("offered", len(replies) / trial.seconds, "requests/s")
    yield Figure("goodput over capacity", _good(replies, offered, trial.seconds) / load.per_s, wanted=">= 0.85")
    yield from polite(replies)
    yield from memory.figures()
    cores = (after.user + after.system - sender.user - sender.system) / took
    yield Figure("the generator's share of the cores", cores / (psutil.cpu_count() or 1))


def _good(replies: Sequence[Reply], rate: float, seconds: float) -> float:
    """Answers a second that say 200 within the deadline, before the last request is sent."""
    times = [(number / rate, reply.seconds) for number, reply in enumerate(replies) if reply.status == 200]
    return sum(took <= DEADLINE_S and sent + took <= seconds for sent, took in times) / seconds


def leave(trial: Trial) -> Iterator[Figure]:
    """Clients that leave: before their request is whole, with few places; and with their pictures queued."""
    server = trial.server(VESTIBULE_MAX_REQUESTS="8")
    whole = server.kind.request(trial.picture).encoded(server.port)
    full, freed = uvloop.run(_leave_places(server.port, whole, 8))
    yield Figure("answer while all places are taken", full, wanted="429")
    yield Figure("until a place is free after its client left", 1000 * freed, "ms")
    server.end()
    server = trial.server()
    before = _pictures_computed(server)
    uvloop.run(_ask_and_leave(server.port, server.kind.request(trial.picture).encoded(server.port)))
    time.sleep(2)
    computed = _pictures_computed(server) - before
    yield Figure(f"pictures computed for nobody, of {LEAVING} whose clients left", computed)
    yield Figure("requests in flight afterwards", _metric(server, "vestibule_requests_in_flight"), wanted="0")


async def _leave_places(port: int, request: bytes, places: int) -> tuple[int, float]:
    """What is answered while so many requests stay unfinished, and the seconds from their end to the next 200."""
    lines = [await asyncio.open_connection(HOST, port) for _ in range(places)]
    for _, writer in lines:
        writer.write(request[:-100])
        await writer.drain()
    await asyncio.sleep(0.5)
    clients = load_generator.Clients(port)
    full = (await clients.send(request)).status
    for _, writer in lines:
        writer.transport.abort()
    began = time.perf_counter()
    while (await clients.send(request)).status != 200:
        await asyncio.sleep(0.001)
        if time.perf_counter() - began > DEADLINE_S:
            raise ServerError("no place was free again")
    clients.close()
    return full, time.perf_counter() - began


async def _ask_and_leave(port: int, request: bytes) -> None:
    """Many whole requests, whose clients leave while most of them wait."""
    lines = [await asyncio.open_connection(HOST, port) for _ in range(LEAVING)]
    for _, writer in lines:
        writer.write(request)
    await asyncio.gather(*(writer.drain() for _, writer in lines))
    for _, writer in lines:
        writer.transport.abort()


def _metric(server: Running, name: str) -> float:
    lines = httpx.get(f"{server.url}/metrics", trust_env=False).text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))


def _pictures_computed(server: Running) -> float:
    return _metric(server, "vestibule_batch_size_sum")


def kill(trial: Trial) -> Iterator[Figure]:
    """`kill -9` of the process that has the model; what does not come back by itself is started again."""
    server = trial.server()
    server.model_process().kill()
    began = time.perf_counter()
    alone = None
    try:
        _gone(server, trial.picture)
        server.answers_within(ALONE_S, trial.picture)
        alone = time.perf_counter() - began
        yield Figure("came back by itself after", alone, "s")
    except ServerError:
        note = "it ended" if server.ended else f"it did not answer again within {ALONE_S} s"
        server.end()
        again = trial.server()
        yield Figure("started again: until the first answer", again.started_s, "s", note=note)


def _gone(server: Running, picture: bytes) -> None:
    """Return when the death is felt: so that what is answered afterwards comes from another process."""
    until = time.perf_counter() + 5
    while not server.ended and time.perf_counter() < until:
        try:
            if not server.ask(picture, timeout=2).is_success:
                return
        except httpx.HTTPError:
            return


def reload(trial: Trial) -> Iterator[Figure]:
    """Two versions of a model in turn, each taken in while requests go on."""
    server = trial.server()
    folder, versions = server.bench.model(server.case), _versions(server)
    failed, times = 0, []
    with _asked(server, trial.picture) as loads, watched(server) as memory:
        for number in range(trial.reloads):
            _lay(versions[(number + 1) % 2], folder)
            began = time.perf_counter()
            answer = httpx.post(f"{server.url}/models/{server.case.name}/reload", timeout=60, trust_env=False)
            times.append(time.perf_counter() - began)
            failed += answer.status_code != 200 or answer.json()["change"] != "reloaded"
    _lay(versions[0], folder)
    yield Figure("reloads", len(times))
    yield Figure("reloads that failed", failed, wanted="0")
    yield Figure("requests meanwhile", sum(load.requests for load in loads))
    yield Figure("requests that failed", sum(load.failed for load in loads), wanted="0")
    yield Figure("a reload, median", 1000 * median(times), "ms")
    yield from memory.figures()


@contextmanager
def _asked(server: Running, picture: bytes) -> Iterator[list[load_generator.Load]]:
    """Sixteen clients all the while; what they saw is there afterwards."""
    request, loads, over = server.kind.request(picture), list[load_generator.Load](), threading.Event()

    def ask() -> None:
        while not over.is_set():
            loads.append(load_generator.closed(server.port, request, 16, 5, server.bench.work))

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield loads
    finally:
        over.set()
        asking.join()


def _versions(server: Running) -> list[Path]:
    """The model as it is, and with a weight that differs in its last bits."""
    module, card = checkpoint.load(server.bench.model(server.case))
    versions = [server.bench.work / "versions" / str(number) for number in (0, 1)]
    for version in versions:
        checkpoint.save(version, module, **card.model_dump(exclude={"sha256", "parameters"}))
        with torch.no_grad():
            next(module.parameters()).mul_(1 + 1e-6)
    return versions


def _lay(version: Path, folder: Path) -> None:
    """Copy a model's files over those in the folder."""
    for path in version.iterdir():
        shutil.copy(path, folder / path.name)


FAULTS: dict[str, Callable[[Trial], Iterator[Figure]]] = {
    "bad": bad,
    "burst": burst,
    "overload": overload,
    "leave": leave,
    "kill": kill,
    "reload": reload,
}
PEERS = ("bad", "burst", "kill", "overload")


def _statuses(replies: Sequence[Reply]) -> str:
    counts: dict[int, int] = {}
    for reply in replies:
        counts[reply.status] = counts.get(reply.status, 0) + 1
    return ", ".join(f"{count} x {status or 'no answer'}" for status, count in sorted(counts.items()))
