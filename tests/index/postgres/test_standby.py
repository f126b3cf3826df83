"""A real standby: an erasure is finished when its files are clean, too, and it answers searches when it is current."""

from __future__ import annotations

import os
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from index.errors import MaintenanceError, NotFoundError
from index.postgres import readers, search
from index.postgres import storage as storage_module
from index.postgres.readers import Reader
from index.postgres.storage import PostgresStorage
from index.postgres.store.database import Connection
from index.types import Collection, Floats, NewFace
from tests.index.people import vectors

if TYPE_CHECKING:
    from benchmarks.cluster.servers import PostgresNode

DIMENSIONS = 64
NAME = "Ferdinandea Isabella Quartz"


@pytest.fixture
def nodes() -> Iterator[tuple[PostgresNode, PostgresNode]]:
    """A primary and an asynchronous standby, in a folder that PostgreSQL's user may read."""
    with tempfile.TemporaryDirectory(prefix="vestibule-standby-", ignore_cleanup_errors=True) as folder:
        os.chmod(folder, 0o755)
        private = Path(folder) / "private"
        private.mkdir(mode=0o700)
        os.environ.setdefault("XDG_RUNTIME_DIR", str(private))  # else the package of the server warns at its import
        from benchmarks.cluster.servers import PostgresNode

        primary, standby = (PostgresNode(Path(folder), name) for name in ("node_a", "node_b"))
        try:
            primary.create()
            primary.start()
            primary.execute("ALTER SYSTEM SET max_standby_streaming_delay = 0")  # else a conflict takes 30 s
            standby.copy(primary)
            standby.start()
            yield primary, standby
        finally:
            standby.kill()
            primary.kill()


def files_with(folder: Path, content: bytes) -> list[str]:
    """Return the files that have any of the content's pieces of 16 bytes."""
    pieces = {content[start : start + 16] for start in range(0, len(content) - 15, 16)}
    found = []
    for path in folder.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            if any(piece in data for piece in pieces):
                found.append(str(path))
    return found


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_an_erasure_waits_for_the_files_of_a_listed_standby(nodes: tuple[PostgresNode, PostgresNode]) -> None:
    primary, standby = nodes
    erased, kept = np.random.default_rng(1).standard_normal((2, DIMENSIONS)).astype(np.float32)
    crop, problems = secrets.token_bytes(3000), list[str]()
    with closing(PostgresStorage.open(primary.url, [standby.url])) as storage:
        assert "asynchronous" in storage.warnings()[0]
        primary.set_synchronous(standby.name)
        wait_until(lambda: storage.warnings() == [])
        gallery = storage.gallery
        gallery.create("doors", "face-embedder", "f1", DIMENSIONS)
        gallery.put_subject("doors", "ada", name=NAME)
        tokens = [
            face.token
            for face in gallery.enrol("doors", [NewFace("ada", erased, crop=crop), NewFace("bob", kept)], "f1")
        ]
        assert gallery.crop("doors", tokens[0]) == crop
        with storage._database.snapshot() as db:
            stored = [row[0].to_numpy().tobytes() for row in db.execute("SELECT vector FROM faces_1 ORDER BY id")]
        primary.execute("CHECKPOINT")
        assert all(files_with(node.data, stored[0]) for node in nodes)
        receipt = gallery.remove_subject("doors", "ada")
        primary.set_synchronous("")
        standby.stop()

        def is_erased() -> bool:
            try:
                storage.maintenance.run()
            except MaintenanceError as error:
                problems.append(str(error))
            return gallery.receipt(receipt.token).erased_at is not None

        wait_until(lambda: is_erased() or bool(problems))
        assert "the standby 1 cannot be reached" in problems[0]
        standby.start()
        wait_until(is_erased)
        for content in (stored[0], crop, NAME.encode()):
            assert [files_with(node.data, content) for node in nodes] == [[], []]
        assert files_with(primary.data, stored[1])


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the readers that have answered, one for each read."""
    names: list[str] = []
    snapshot = Reader.snapshot

    def noted(self: Reader) -> AbstractContextManager[Connection]:
        names.append(self._name)
        return snapshot(self)

    monkeypatch.setattr(Reader, "snapshot", noted)
    return names


def nearest(storage: PostgresStorage, query: Floats) -> str:
    (matches,) = storage.searches.search("doors", query[None], 1)
    return matches[0].subject.key


def test_a_reader_answers_once_it_has_replayed_what_any_process_has_acknowledged(
    nodes: tuple[PostgresNode, PostgresNode], answered: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    primary, standby = nodes
    faces = vectors(60, DIMENSIONS)
    monkeypatch.setattr(storage_module, "CHECK_S", 0.1)
    with (
        closing(PostgresStorage.open(primary.url)) as writer,
        closing(PostgresStorage.open(primary.url, readers=[standby.url])) as storage,
    ):
        writer.gallery.create("doors", "face-embedder", "f1", DIMENSIONS)

        def enrol(number: int) -> None:
            writer.gallery.enrol("doors", [NewFace(f"p{number}", faces[number])], "f1")

        def reader_answers() -> bool:
            answered.clear()
            assert nearest(storage, faces[0]) == "p0"
            return answered == ["the reader 1"]

        enrol(0)
        wait_until(reader_answers)
        assert storage.searches.scope("doors").usage.faces == 1
        assert storage.searches.compare("doors", "p0", faces[0])[1] is False
        assert len(answered) == 3
        for number in range(1, 40):
            enrol(number)
            assert nearest(storage, faces[number]) == f"p{number}"
        standby.execute("SELECT pg_wal_replay_pause()")
        answered.clear()
        enrol(40)
        assert nearest(storage, faces[40]) == "p40"
        writer.gallery.remove_subject("doors", "p0")
        assert nearest(storage, faces[0]) != "p0"
        assert answered == []
        enrol(0)
        standby.execute("SELECT pg_wal_replay_resume()")
        wait_until(reader_answers)
        standby.stop()
        assert not reader_answers()
        wait_until(lambda: storage.problems() == [f"the reader 1 {readers.UNREACHABLE}"])
        assert storage.warnings()[-1] == storage.problems()[0]
        standby.start()
        wait_until(reader_answers)
        assert primary.execute(readers._END)
        assert standby.execute(readers._END) == []
        (reader,) = storage._readers.current()
        timeline, end = storage._readers._end() or (0, "")
        assert reader.has_replayed(timeline, end)
        assert not reader.has_replayed(timeline + 1, end)  # of a log that was given up


def test_the_primary_answers_what_a_reader_had_to_stop(
    nodes: tuple[PostgresNode, PostgresNode], answered: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    primary, standby = nodes
    (face,) = vectors(1, DIMENSIONS)
    with closing(PostgresStorage.open(primary.url, readers=[standby.url])) as storage:
        storage.gallery.create("doors", "face-embedder", "f1", DIMENSIONS)
        storage.gallery.enrol("doors", [NewFace("ada", face)], "f1")
        wait_until(lambda: nearest(storage, face) == "ada" and bool(answered))
        answered.clear()
        begin = search.begin

        def drop_and_begin(db: Connection, collection: Collection) -> tuple[int, bool]:
            storage.gallery.drop("doors")  # this snapshot has its table, until the standby replays that
            wait_until(lambda: standby.execute("SELECT to_regclass('faces_1')") == [(None,)])
            return begin(db, collection)

        monkeypatch.setattr(search, "begin", drop_and_begin)
        wait_until(lambda: bool([*storage._readers.current()]))
        with pytest.raises(NotFoundError):
            nearest(storage, face)
        assert answered == ["the reader 1"] * len(answered) != []
