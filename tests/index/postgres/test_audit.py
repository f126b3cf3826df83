"""The audit log in PostgreSQL: its chain, concurrent processes, crashes, and changes by others."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from psycopg import sql

from index.audit_chain import HASH_LENGTH, AuditEvent, LogFault, LogHead, format_line, initial_hash
from index.errors import CorruptError, InvalidError, UnavailableError
from index.postgres import audit as module
from index.postgres.audit import AuditLog
from index.postgres.store import audit_records
from index.postgres.store.database import Connection, Database


def event(number: int) -> AuditEvent:
    return AuditEvent("enrol", 1000.0 + number, "key1", 1, (number,), (number, number + 1))


def record(database: Database, *events: AuditEvent) -> None:
    database.write(lambda db: audit_records.record(db, *events))


def stored(database: Database, table: str) -> int:
    with database.snapshot() as db:
        return len(db.execute(sql.SQL("SELECT 1 FROM {}").format(sql.Identifier(table))).fetchall())


@pytest.fixture
def log(database: Database) -> AuditLog:
    return AuditLog(database)


def test_an_empty_log(log: AuditLog) -> None:
    assert log.head() == LogHead(0, initial_hash(log.header))
    assert log.read() == ([], 1)
    assert log.read(1) == ([], 1)
    assert log.verify() is None
    assert log.verify([LogHead(0, "0" * 64)]) == LogFault(0, "the log is another gallery's")


def test_events_are_chained_in_their_order(log: AuditLog, database: Database) -> None:
    events = [event(number) for number in range(5)]
    record(database, *events[:3])
    log.add(events[3])
    log.flush()
    record(database, events[4])
    entries, cursor = log.read()
    assert ([entry.event for entry in entries], cursor) == (events, 6)
    previous = initial_hash(log.header)
    for number, entry in enumerate(entries, 1):
        assert format_line(number, previous, entry.event).decode()[:HASH_LENGTH] == entry.hash
        previous = entry.hash
    assert log.head() == LogHead(5, previous)
    assert log.read(limit=2) == (entries[:2], 3)
    assert log.read(3, 2) == (entries[2:4], 5)
    assert log.read(6) == ([], 6)
    for wrong in (-1, 7, 2**70):
        with pytest.raises(InvalidError, match="no entry"):
            log.read(wrong)
    assert log.verify([LogHead(2, entries[1].hash)]) is None
    assert stored(database, "audit_events") == 0


def test_more_events_than_one_transaction_writes(
    log: AuditLog, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FLUSH_BATCH", 3)
    monkeypatch.setattr(module, "MAX_QUEUED", 7)
    record(database, *(event(number) for number in range(7)))
    for number in range(7):
        log.add(event(number))
    assert stored(database, "audit_lines") == 14  # the queue was full
    assert log.verify() is None


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ("UPDATE audit_lines SET line = replace(line, 'key1', 'key2') WHERE sequence = 3", (3, "hash does not match")),
        ("UPDATE audit_lines SET line = 'nothing' WHERE sequence = 3", (3, "malformed")),
        ("DELETE FROM audit_lines WHERE sequence = 3", (3, "has the number 4")),
        ("DELETE FROM audit_lines WHERE sequence > 3", (4, "the end was cut off")),
        ("DELETE FROM audit_lines", (1, "the end was cut off")),
        (
            "UPDATE audit_lines AS a SET line = b.line FROM audit_lines AS b"
            " WHERE a.sequence IN (2, 3) AND b.sequence = 5 - a.sequence",
            (2, "has the number 3"),
        ),
        ("UPDATE audit_head SET hash = repeat('0', 64)", (5, "recorded elsewhere")),
    ],
)
def test_changes_by_others_are_found(log: AuditLog, database: Database, change: str, fault: tuple[int, str]) -> None:
    record(database, *(event(number) for number in range(5)))
    head = log.head()
    database.write(lambda db: db.execute(sql.SQL(change)))
    found = log.verify([head])
    assert found is not None
    assert (found.sequence, fault[1] in found.reason) == (fault[0], True)


def test_a_malformed_line_cannot_be_read(log: AuditLog, database: Database) -> None:
    record(database, event(1), event(2))
    log.flush()
    database.write(lambda db: db.execute("UPDATE audit_lines SET line = 'nothing' WHERE sequence = 2"))
    assert len(log.read(limit=1)[0]) == 1
    with pytest.raises(CorruptError, match="line 2"):
        log.read()


def test_events_of_two_processes_are_all_chained_once(log: AuditLog, database: Database) -> None:
    logs = [log, AuditLog(database)]

    def work(which: int) -> list[str]:
        ids = []
        for number in range(20):
            recorded, added = event(number), event(number)
            record(database, recorded)
            logs[which].add(added)
            ids += [recorded.id, added.id]
            logs[which].flush()
        return ids

    with ThreadPoolExecutor(2) as threads:
        expected = [id for ids in threads.map(work, range(2)) for id in ids]
    entries, _ = log.read(limit=1000)
    assert sorted(entry.event.id for entry in entries) == sorted(expected)
    assert [entry.sequence for entry in entries] == list(range(1, 81))
    assert log.verify() is None


def test_a_failure_loses_and_repeats_no_event(
    log: AuditLog, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection fails before the commit, or after it, when nobody knows whether it was made."""
    record(database, event(1))
    log.flush()
    queued = [event(2), event(3)]
    for added in queued:
        log.add(added)
    write, append = database.write, audit_records.append

    def fail(db: Connection, *values: object) -> None:
        append(db, *values)  # type: ignore[arg-type]
        db.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    monkeypatch.setattr(audit_records, "append", fail)
    with pytest.raises(UnavailableError):
        log.flush()
    monkeypatch.setattr(audit_records, "append", append)
    assert stored(database, "audit_lines") == 1

    def fail_late(change: object) -> object:
        write(change)  # type: ignore[arg-type]
        raise UnavailableError("the connection was lost")

    monkeypatch.setattr(database, "write", fail_late)
    for _ in range(2):
        with pytest.raises(UnavailableError):
            log.flush()
    monkeypatch.setattr(database, "write", write)
    assert stored(database, "audit_lines") == 3
    log.add(event(4))
    log.flush()
    entries, _ = log.read()
    assert [entry.event for entry in entries[1:3]] == queued
    assert len(entries) == 4
    assert log.verify() is None


def test_recorded_events_have_no_personal_data(database: Database, log: AuditLog) -> None:
    record(database, event(1))
    log.flush()
    with database.snapshot() as db:
        ((line,),) = db.execute("SELECT line FROM audit_lines").fetchall()
    fields = json.loads(line[HASH_LENGTH:])
    assert fields.keys() == {"action", "actor", "at", "collection", "faces", "id", "sequence", "subjects"}
