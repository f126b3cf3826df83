"""Backups of a gallery that is enrolled into, searched and erased from over HTTP meanwhile, and what a restore gives.

`python -m benchmarks.gallery.backup_under_load --rounds 5` starts a service of its own. In each round several
clients enrol, search and erase; `vestibule gallery backup` runs in a process of its own; the clients go on for a while,
and the service is stopped. The backup is then put back twice by `vestibule gallery restore`, and read by `vestibule
gallery verify`:

- elsewhere, where no tombstones tell of later erasures: all that was acknowledged before the backup began is there, and
  nothing that was erased before;
- in its place: the same, and nothing that was erased at any time, after the backup too. The next round goes on from it.

benchmarks/results/backup_under_load.csv has a row for each restore; the exit status is 1 where a face is missing, is
back, or is there although it was enrolled after the backup had ended, or where `verify` found a fault.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from math import inf
from pathlib import Path
from typing import Annotated

import httpx
import numpy as np
import typer
from PIL import Image

from benchmarks import tables
from benchmarks.proxies import uses_proxies
from index.embedded.gallery import EmbeddedGallery
from tests.app.server.test_process import serving
from tests.conftest import encode

RESULTS = Path("benchmarks/results/backup_under_load.csv")
COLLECTION, EMBEDDER = "crowd", "lenet5-mnist"  # whole pictures, which take a millisecond or two each
PICTURES = 3  # of one enrolment, at most
MOST_SUBJECTS = 30  # of one client, beyond which it only erases
TIMEOUT_S = 3600


@dataclass
class Life:
    """What was asked about one face and when, in seconds; `answered` is when the client knew."""

    enrol_asked: float
    enrolled: float
    erase_asked: float = inf
    erased: float = inf


@dataclass
class Book:
    """Every face by its id, as clients know it; and what they did."""

    faces: dict[str, Life] = field(default_factory=dict)
    searches: int = 0

    def erasing(self, ids: list[str], asked: float) -> None:
        """These are about to be erased."""
        for one in ids:
            self.faces[one].erase_asked = asked

    def erased(self, ids: list[str]) -> None:
        """That was acknowledged."""
        for one in ids:
            self.faces[one].erased = time.monotonic()


class Client:
    """Enrols, searches and erases subjects that nobody else touches, one request after another."""

    def __init__(self, name: str, http: httpx.AsyncClient, book: Book):
        self._name, self._http, self._book = name, http, book
        self._rng = random.Random(name)
        self._subjects: dict[str, list[str]] = {}
        self._number = 0

    async def work(self, until: asyncio.Event) -> None:
        """Until it is told to stop; the last request is answered.

        Raises:
            httpx.HTTPError: a request failed.
        """
        while not until.is_set():
            what = self._rng.random()
            if what < 0.2:
                await self._search()
            elif self._subjects and (what < 0.4 or len(self._subjects) > MOST_SUBJECTS):
                await self._erase()
            else:
                await self._enrol()

    async def _enrol(self) -> None:
        if self._subjects and self._rng.random() < 0.3:
            subject = self._rng.choice(list(self._subjects))
        else:
            self._number += 1
            subject = f"{self._name}-{self._number}"
        asked = time.monotonic()
        files = [("file", (f"{n}.png", self._picture())) for n in range(self._rng.randint(1, PICTURES))]
        answer = await self._http.post(f"/collections/{COLLECTION}/subjects/{subject}/faces", files=files)
        ids = [face["face_id"] for face in answer.raise_for_status().json()["indexed"]]
        self._subjects.setdefault(subject, []).extend(ids)
        for one in ids:
            self._book.faces[one] = Life(asked, time.monotonic())

    async def _search(self) -> None:
        picture, kind = self._picture(), {"content-type": "image/png"}
        answer = await self._http.post("/search", params={"collection": COLLECTION}, content=picture, headers=kind)
        answer.raise_for_status()
        self._book.searches += 1

    async def _erase(self) -> None:
        subject = self._rng.choice(list(self._subjects))
        if len(self._subjects[subject]) > 1 and self._rng.random() < 0.5:
            ids = [self._subjects[subject].pop()]
            path = f"/collections/{COLLECTION}/faces/{ids[0]}"
        else:
            ids = self._subjects.pop(subject)
            path = f"/collections/{COLLECTION}/subjects/{subject}"
        self._book.erasing(ids, time.monotonic())
        (await self._http.delete(path)).raise_for_status()
        self._book.erased(ids)

    def _picture(self) -> bytes:
        noise = np.random.default_rng(self._rng.randrange(2**32)).integers(0, 256, (28, 28), np.uint8)
        return encode(Image.fromarray(noise))


@dataclass(frozen=True)
class Row:
    """One restore. `expected` of `known` faces had to be there, and were but for `missing`; `back` should be gone.

    `early`: there, although they were enrolled after the backup. `undecided`: asked for while the backup was made.
    """

    round: int
    restored: str
    known: int
    searches: int
    backup_s: float
    expected: int
    gone: int
    undecided: int
    there: int
    missing: int
    back: int
    early: int
    verify: int

    @property
    def faults(self) -> int:
        """What must be 0."""
        return self.missing + self.back + self.early + self.verify


def vestibule(state: Path, *arguments: str) -> int:
    """The exit status of `vestibule gallery ...` on this state; what it says is shown where it fails."""
    command = [sys.executable, "-m", "app.cli.main", "gallery", *arguments]
    environment = os.environ | {"VESTIBULE_STATE": str(state)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        print(" ".join(arguments), done.stdout, done.stderr)
    return done.returncode


@contextmanager
def service(state: Path) -> Iterator[str]:
    """Its address; it is stopped as an operator stops it."""
    with serving(VESTIBULE_STATE=str(state), VESTIBULE_RUNTIME="torch", VESTIBULE_DEADLINE_S=str(TIMEOUT_S)) as (
        process,
        url,
        _,
    ):
        yield url
        process.send_signal(signal.SIGTERM)
        process.wait(TIMEOUT_S)


async def load(url: str, name: str, clients: int, seconds: float, state: Path, backup: Path, book: Book) -> list[float]:
    """Clients at work before, during and after a backup; when that began and ended."""
    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S, trust_env=uses_proxies(url)) as http:
        (await http.put(f"/collections/{COLLECTION}", json={"embedder": EMBEDDER})).raise_for_status()
        until = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for number in range(clients):
                group.create_task(Client(f"{name}-{number}", http, book).work(until))
            await asyncio.sleep(seconds)
            began = time.monotonic()
            if await asyncio.to_thread(vestibule, state, "backup", str(backup)):
                raise RuntimeError("the backup failed")
            ended = time.monotonic()
            await asyncio.sleep(seconds)
            until.set()
    return [began, ended]


def faces_in(state: Path) -> set[str]:
    """The ids of all faces of a gallery that nobody uses."""
    gallery = EmbeddedGallery(state / "gallery")
    try:
        subjects = gallery.subjects(COLLECTION, limit=-1)
        return {face.token for one in subjects for face in gallery.faces(COLLECTION, one.key)}
    finally:
        gallery.close()


def judged(number: int, restored: str, state: Path, backup: Path, book: Book, times: list[float]) -> Row:
    """Put the backup back into this state, and compare what is there with what clients were told."""
    failed = vestibule(state, "restore", str(backup)) or vestibule(state, "verify")
    there, (began, ended) = faces_in(state), times
    # Where erasures are remembered, every one counts; elsewhere only those before the backup.
    last = inf if restored == "in place" else began
    gone = {one for one, life in book.faces.items() if life.erased <= last and life.erased < inf}
    asked = {one for one, life in book.faces.items() if life.erase_asked < (inf if last == inf else ended)}
    expected = {one for one, life in book.faces.items() if life.enrolled <= began} - asked
    late = {one for one, life in book.faces.items() if life.enrol_asked > ended}
    return Row(
        number,
        restored,
        len(book.faces),
        book.searches,
        round(ended - began, 2),
        len(expected),
        len(gone),
        len(book.faces) - len(expected | gone | late),
        len(there),
        len(expected - there),
        len(gone & there),
        len(there & late) + len(there - book.faces.keys()),
        failed,
    )


def one_round(number: int, root: Path, clients: int, seconds: float, book: Book) -> Iterator[Row]:
    """Load, backup, and both restores; the book goes on with what is there after the one in place."""
    state, backup, elsewhere = root / "state", root / f"backup-{number}", root / f"elsewhere-{number}"
    with service(state) as url:
        times = asyncio.run(load(url, f"r{number}", clients, seconds, state, backup, book))
    for restored, folder in (("elsewhere", elsewhere), ("in place", state)):
        yield judged(number, restored, folder, backup, book, times)
    there = faces_in(state)
    book.faces = {one: life for one, life in book.faces.items() if one in there or life.erased < inf}
    shutil.rmtree(elsewhere)


def main(
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    clients: Annotated[int, typer.Option(min=1, help="At a time.")] = 6,
    seconds: Annotated[float, typer.Option(help="Of load before and after each backup.")] = 10,
    results: Annotated[Path, typer.Option(help="The file to write.")] = RESULTS,
) -> None:
    """Run them; end with 1 at the first fault."""
    book, rows = Book(), list[Row]()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(1, rounds + 1):
            for row in one_round(number, Path(folder), clients, seconds, book):
                rows.append(row)
                print(*(f"{name}={value}" for name, value in asdict(row).items()), flush=True)
            tables.write(results, [one.name for one in fields(Row)], [asdict(row) for row in rows])
            if any(row.faults for row in rows):
                raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
