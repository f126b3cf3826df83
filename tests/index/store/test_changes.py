"""Changes: methods that commit, and changes that are made once for an idempotency key."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from index.embedded.gallery import EmbeddedGallery
from index.embedded.store.changes import committing
from index.embedded.store.ledger import Ledger
from index.errors import ConflictError, CorruptError
from index.operator_key import OperatorKey
from index.protocol import IDEMPOTENCY_S, PlannedChange
from index.types import Face, NewFace
from tests.index.people import folder_bytes, maintain, vectors

REQUEST = hashlib.sha256(b"an image").digest()


class Texts:
    """Texts in a ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    @committing
    def insert(self, db: apsw.Connection, text: str) -> str:
        """Insert the text and return it."""
        db.execute("INSERT INTO leases VALUES (?, '', 0)", (text,))
        return text

    def all(self) -> list[str]:
        """Return all texts."""
        return [row[0] for row in self.ledger.reader().execute("SELECT name FROM leases ORDER BY name")]


@pytest.fixture
def rows(tmp_path: Path) -> Iterator[Texts]:
    ledger = Ledger(tmp_path / "ledger.db")
    yield Texts(ledger)
    ledger.close()


def test_a_call_commits_a_change_and_planned_returns_it(rows: Texts) -> None:
    assert rows.insert("a") == "a"
    change = rows.insert.planned("b")
    assert rows.all() == ["a"]
    assert change.then(len).submit().result() == 1
    with pytest.raises(ZeroDivisionError):
        rows.insert.planned("c").then(lambda text: 1 / 0).submit().result()
    assert rows.all() == ["a", "b"]


def once(change: PlannedChange[str], key: str = "k", request: bytes = REQUEST) -> str:
    return change.once(key, request, json.dumps, json.loads).submit().result()


def test_a_change_with_a_key_is_made_once(rows: Texts) -> None:
    assert once(rows.insert.planned("a")) == "a"
    assert once(rows.insert.planned("b")) == "a"
    assert once(rows.insert.planned("b"), key="l") == "b"
    assert rows.all() == ["a", "b"]


def test_changes_of_one_commit_are_made_once(rows: Texts) -> None:
    futures = [rows.insert.planned(text).once("k", REQUEST, json.dumps, json.loads).submit() for text in "abc"]
    assert [future.result() for future in futures] == ["a", "a", "a"]
    assert rows.all() == ["a"]


def test_a_key_of_another_request_is_a_conflict(rows: Texts) -> None:
    once(rows.insert.planned("a"))
    with pytest.raises(ConflictError, match="used for another request"):
        once(rows.insert.planned("b"), request=hashlib.sha256(b"another image").digest())
    assert rows.all() == ["a"]


def test_a_failed_change_does_not_use_its_key(rows: Texts) -> None:
    with pytest.raises(ZeroDivisionError):
        once(rows.insert.planned("a").then(lambda text: str(1 / 0)))
    assert once(rows.insert.planned("b")) == "b"
    assert rows.all() == ["b"]


def test_an_answer_after_once_is_computed_for_each_call(rows: Texts) -> None:
    lengths = [
        rows.insert.planned(text).once("k", REQUEST, json.dumps, json.loads).then(len).submit().result()
        for text in ("long", "b")
    ]
    assert lengths == [4, 4]


def test_the_stored_result_is_unreadable_without_the_request(rows: Texts) -> None:
    once(rows.insert.planned("secret-face").then(lambda text: f"{text}-measured"))
    key, digest, result = rows.ledger.reader().execute("SELECT key, request, result FROM idempotency_keys").get
    assert (key, digest) == ("k", hashlib.sha256(REQUEST).digest())
    assert b"measured" not in result + folder_bytes(rows.ledger.path.parent)
    rows.ledger.write(lambda db: db.execute("UPDATE idempotency_keys SET result = zeroblob(60)").fetchall())
    with pytest.raises(CorruptError):
        once(rows.insert.planned("b"))


def planned_enrolment(gallery: EmbeddedGallery, key: str) -> PlannedChange[list[str]]:
    """The enrolment of a face for "p0", which returns the tokens of the faces."""
    change: PlannedChange[list[str]] = gallery.enrol.planned("doors", [NewFace("p0", vectors(1)[0])], "f1").then(tokens)
    return change.once(key, REQUEST, json.dumps, json.loads)


def tokens(faces: list[Face]) -> list[str]:
    return [face.token for face in faces]


def test_an_enrolment_is_repeated_after_a_crash_lost_its_answer(tmp_path: Path) -> None:
    """Another process commits the enrolment and ends without an answer."""
    program = (
        "import os, sys; from pathlib import Path; from index.embedded.gallery import EmbeddedGallery;"
        " from tests.index.store.test_changes import planned_enrolment;"
        " gallery = EmbeddedGallery(Path(sys.argv[1])); gallery.create('doors', 'face-embedder', 'f1', 4);"
        " planned_enrolment(gallery, 'k').submit().result(); os._exit(9)"
    )
    run = [sys.executable, "-c", program, str(tmp_path / "gallery")]
    assert subprocess.run(run, check=False, env={**os.environ, "PYTHONPATH": ":".join(sys.path)}).returncode == 9
    gallery = EmbeddedGallery(tmp_path / "gallery")
    (enrolled,) = gallery.faces("doors", "p0")
    assert planned_enrolment(gallery, "k").submit().result() == [enrolled.token]
    assert gallery.usage("doors").faces == 1
    assert planned_enrolment(gallery, "another").submit().result() != [enrolled.token]
    gallery.close()


def test_a_repeated_enrolment_does_not_restore_an_erased_subject(gallery: EmbeddedGallery) -> None:
    first = planned_enrolment(gallery, "k").submit().result()
    gallery.remove_subject("doors", "p0")
    assert planned_enrolment(gallery, "k").submit().result() == first
    assert gallery.usage("doors").subjects == 0


@pytest.mark.parametrize("sign", [1, -1], ids=["old", "of a clock that was ahead"])
def test_results_are_deleted_after_a_day(gallery: EmbeddedGallery, sign: int) -> None:
    def age(seconds: float) -> None:
        statement = "UPDATE idempotency_keys SET created_at = created_at - ?"
        gallery.ledger.write(lambda db: db.execute(statement, (sign * seconds,)).fetchall())

    first = planned_enrolment(gallery, "k").submit().result()
    age(IDEMPOTENCY_S - 60)
    maintain(gallery)
    assert planned_enrolment(gallery, "k").submit().result() == first
    age(120)
    maintain(gallery)
    assert planned_enrolment(gallery, "k").submit().result() != first


def test_the_key_of_an_encrypted_collection_is_not_needed_to_repeat(tmp_path: Path) -> None:
    with_key = EmbeddedGallery(tmp_path / "gallery", key=OperatorKey(b"k" * 32))
    with_key.create("doors", "face-embedder", "f1", 4, encrypted=True)
    first = planned_enrolment(with_key, "k").submit().result()
    with_key.close()
    without_key = EmbeddedGallery(tmp_path / "gallery")
    assert planned_enrolment(without_key, "k").submit().result() == first
    without_key.close()
