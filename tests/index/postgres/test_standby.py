"""A real standby: an erasure is finished when its files are clean, too."""

from __future__ import annotations

import os
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from index.errors import MaintenanceError
from index.postgres.storage import PostgresStorage
from index.types import NewFace

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
