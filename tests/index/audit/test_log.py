"""The audit log: its entries, the detection of tampering, and its state after crashes and restores."""

from __future__ import annotations

import hashlib
import json
import re
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO

import apsw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.audit_chain import AuditEvent, LogFault, LogHead
from index.embedded.admin.backup import back_up, restore
from index.embedded.admin.verify import find_faults
from index.embedded.audit import log as module
from index.embedded.audit.log import AuditLog
from index.embedded.gallery import RETENTION, EmbeddedGallery
from index.embedded.store import collection_records
from index.embedded.store.ledger import Ledger
from index.embedded.tasks.maintenance import Maintenance
from index.errors import CorruptError, InvalidError, TooNewError
from tests.index.people import Clock, enrol

NOW = 1_700_000_000.25
CHANGED = "the hash does not match: this line or an earlier one was changed"
OTHER_HASH, CUT_OFF = "the hash differs from the one recorded elsewhere", "the end was cut off"


@pytest.fixture
def clock() -> Clock:
    return Clock(NOW)


@contextmanager
def opened(folder: Path) -> Iterator[AuditLog]:
    ledger = Ledger(folder / "ledger.db")
    log = AuditLog(folder / "audit.log", ledger, collection_records.gallery_id(ledger.reader()))
    log.flush(recover=True)
    yield log
    ledger.close()


@pytest.fixture
def log(tmp_path: Path) -> Iterator[AuditLog]:
    with opened(tmp_path) as log:
        yield log


def fill(log: AuditLog, count: int, first: int = 0) -> None:
    for number in range(first, first + count):
        log._ledger.write(partial(module.record, event=event(number)))


def event(number: int) -> AuditEvent:
    return AuditEvent("enrol", NOW + number, "key1", 1, (number,), (2 * number, 2 * number + 1))


def events(log: AuditLog) -> list[AuditEvent]:
    """Return all events except `create_collection`."""
    return [entry.event for entry in log.read(limit=10_000)[0] if entry.event.action != "create_collection"]


def lines(log: AuditLog) -> list[bytes]:
    return log.path.read_bytes().splitlines(keepends=True)


def chained(gallery_id: str, contents: list[dict[str, object]]) -> bytes:
    """Return a log with these lines, according to the docstring of index/embedded/audit/log.py."""
    content = f"vestibule-audit 1 {gallery_id}\n".encode()
    previous = hashlib.sha256(content).hexdigest()
    for fields in contents:
        text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
        previous = hashlib.sha256((previous + text).encode()).hexdigest()
        content += f"{previous} {text}\n".encode()
    return content


# Entries.


def test_every_event_is_logged_with_ids_only(gallery: EmbeddedGallery, clock: Clock) -> None:
    enrolled = enrol(gallery, "doors", 7)
    gallery.put_subject(
        "doors", "p1", name="Ferdinandea Quartz", metadata={"note": "blue hat"}, expires_at=NOW + 1, actor="key6"
    )
    by_faces = gallery.remove_faces("doors", [enrolled[0].token, enrolled[3].token], actor="key-7")
    by_subject = gallery.remove_subject("doors", "p2", actor="key_8")
    gallery.note_search("doors", [gallery.subject("doors", key) for key in ("p4", "p1", "p4")], actor="key9")
    gallery.note_search("doors", [])
    clock.now += 1
    Maintenance(gallery).run()
    dropped = gallery.drop("doors", actor="key-7")
    logged = [entry.event for entry in gallery.audit.read()[0]]
    assert [(event.action, event.actor, event.subjects, event.faces) for event in logged] == [
        ("create_collection", None, (), ()),
        ("enrol", None, (1, 2, 3, 4, 5), (1, 2, 3, 4, 5, 6, 7)),
        ("put_subject", "key6", (2,), ()),
        ("erase", "key-7", (1, 4), (1, 4)),
        ("erase", "key_8", (3,), (3,)),
        ("search", "key9", (2, 5), ()),
        ("search", None, (), ()),
        ("erase", RETENTION, (2,), (2, 7)),
        ("erase", "key-7", (), ()),
    ]
    assert {(event.at, event.collection) for event in logged[:-2]} == {(NOW, 1)}
    assert [logged[3].id, logged[4].id, logged[8].id] == [by_faces.token, by_subject.token, dropped.token]
    assert len({event.id for event in logged}) == len(logged)
    text = gallery.audit.path.read_text()
    for name in ("Ferdinandea", "hat", "p1", "p4", "doors", *(face.token for face in enrolled)):
        assert name not in text
    assert stat.S_IMODE(gallery.audit.path.stat().st_mode) == 0o600
    assert gallery.audit.verify() is None


def test_the_file_format_is_version_1(log: AuditLog) -> None:
    fill(log, 2)
    log.flush()
    ids = [event.id for event in events(log)]
    contents: list[dict[str, object]] = [
        {
            "action": "enrol",
            "actor": "key1",
            "at": f"2023-11-14T22:13:2{number}.250000+00:00",
            "collection": 1,
            "faces": [2 * number, 2 * number + 1],
            "id": ids[number],
            "sequence": number + 1,
            "subjects": [number],
        }
        for number in range(2)
    ]
    identity = log._ledger.reader().execute("SELECT id FROM gallery").get
    assert log.path.read_bytes() == chained(identity, contents)
    assert all(re.fullmatch("[0-9a-f]{32}", id_) for id_ in ids)


@pytest.mark.parametrize("actor", ["", "Zoë", "Ferdinandea Quartz", "a@b.c", "x" * 65])
def test_an_actor_that_could_be_a_name_is_refused(gallery: EmbeddedGallery, actor: str) -> None:
    face = enrol(gallery, "doors", 1)[0]
    erasures: tuple[Callable[[], object], ...] = (
        lambda: gallery.remove_faces("doors", [face.token], actor=actor),
        lambda: gallery.remove_subject("doors", face.subject, actor=actor),
        lambda: gallery.drop("doors", actor=actor),
    )
    for erase in erasures:
        with pytest.raises(InvalidError, match="not a name"):
            erase()
    assert [face.token for face in gallery.faces("doors", "p0")] == [face.token]


def test_entries_are_read_by_cursor(log: AuditLog) -> None:
    assert log.read() == ([], len(lines(log)[0]))
    fill(log, 7)
    entries, cursor = [], 0
    for expected in (3, 3, 1, 0):
        page, cursor = log.read(cursor, 3)
        assert len(page) == expected
        entries += page
    assert [(entry.sequence, entry.event.subjects) for entry in entries] == [(n + 1, (n,)) for n in range(7)]
    fill(log, 1, 7)
    ((last,), end) = log.read(cursor, 3)
    assert (last.sequence, end) == (8, log.path.stat().st_size)
    for wrong in (1, cursor - 1, end + 1, -1):
        with pytest.raises(InvalidError, match="no entry"):
            log.read(wrong)


def test_searches_are_queued_without_a_write(log: AuditLog, monkeypatch: pytest.MonkeyPatch) -> None:
    before = log.path.read_bytes()
    monkeypatch.setattr(module, "MAX_QUEUED", 5)
    for number in range(4):
        log.add(AuditEvent("search", NOW + number))
    assert log.path.read_bytes() == before
    log.add(AuditEvent("search", NOW + 4))
    assert len(lines(log)) == 6
    assert [event.at for event in events(log)] == [NOW + number for number in range(5)]


def test_more_events_than_a_batch_are_flushed(log: AuditLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FLUSH_BATCH", 3)
    fill(log, 7)
    for number in range(10):
        log.add(AuditEvent("search", NOW + number))
    log.flush()
    assert log.head().sequence == 17
    assert log.verify() is None


def test_a_flush_ends_although_its_reads_see_an_older_commit(log: AuditLog, monkeypatch: pytest.MonkeyPatch) -> None:
    appended: list[int] = []
    append = AuditLog._append

    def count(self: AuditLog, file: BinaryIO) -> bool:
        appended.append(1)
        assert len(appended) < 5
        return append(self, file)

    fill(log, 3)
    read = log._ledger.reader().execute("SELECT act FROM acts")  # an unfinished read, as a traceback may keep it
    next(read)
    with monkeypatch.context() as patched:
        patched.setattr(AuditLog, "_append", count)
        log.flush()
    assert len(lines(log)) == 4
    read.close()
    assert log.verify() is None
    assert [event.subjects for event in events(log)] == [(0,), (1,), (2,)]


def test_several_processes_write_one_chain(gallery: EmbeddedGallery, tmp_path: Path) -> None:
    def work(number: int) -> None:
        with closing(EmbeddedGallery(tmp_path / "gallery")) as other:
            for turn in range(10):
                enrol(other, "doors", 1, seed=100 * number + turn)
                other.note_search("doors", [])
                other.audit.flush()

    with ThreadPoolExecutor(3) as threads:
        list(threads.map(work, range(3)))
    assert gallery.audit.verify() is None
    logged = events(gallery.audit)
    assert sorted(face for event in logged for face in event.faces) == list(range(1, 31))
    assert sum(event.action == "search" for event in logged) == 30


# Detection of tampering.


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AuditLog]:
    """A log of 12 entries."""
    with opened(tmp_path_factory.mktemp("audit")) as log:
        fill(log, 12)
        log.flush()
        yield log


def fault_after(log: AuditLog, change: Callable[[list[bytes]], list[bytes]]) -> LogFault | None:
    """Return the fault that `verify` finds after a change of the lines. Restore the lines afterwards."""
    content = log.path.read_bytes()
    try:
        changed = b"".join(change(content.splitlines(keepends=True)))
        log.path.write_bytes(changed)
        fault = log.verify()
        assert log.path.read_bytes() == changed  # verify preserves the evidence
        return fault
    finally:
        log.path.write_bytes(content)


@given(st.integers(1, 12), st.data())
@settings(max_examples=300, deadline=None)
def test_a_changed_byte_is_detected(complete: AuditLog, number: int, data: st.DataObject) -> None:
    def change(lines: list[bytes]) -> list[bytes]:
        line = bytearray(lines[number])
        offset = data.draw(st.integers(0, len(line) - 1))
        line[offset] = data.draw(st.integers(0, 255).filter(lambda byte: byte not in (line[offset], 10)))
        return [*lines[:number], bytes(line), *lines[number + 1 :]]

    fault = fault_after(complete, change)
    assert fault is not None
    assert fault.sequence == number


def test_a_changed_header_is_detected(complete: AuditLog) -> None:
    def change(lines: list[bytes], offset: int) -> list[bytes]:
        line = bytearray(lines[0])
        line[offset] ^= 1
        return [bytes(line), *lines[1:]]

    for offset in range(len(lines(complete)[0])):
        fault = fault_after(complete, partial(change, offset=offset))
        assert fault == LogFault(0, "the first line is not this gallery's")


@pytest.mark.parametrize("number", [1, 7, 11, 12])
def test_a_changed_line_with_a_valid_hash_is_detected_at_the_next_line(complete: AuditLog, number: int) -> None:
    def change(lines: list[bytes]) -> list[bytes]:
        line = forged(lines, number).splitlines(keepends=True)[number]
        return [*lines[:number], line, *lines[number + 1 :]]

    # The ledger knows the hash of the last line.
    expected = LogFault(number, OTHER_HASH) if number == 12 else LogFault(number + 1, CHANGED)
    assert fault_after(complete, change) == expected


@given(st.lists(st.integers(1, 12), max_size=14) | st.permutations(range(1, 13)))
@settings(deadline=None)  # writes files
def test_removed_repeated_and_reordered_lines_are_detected(complete: AuditLog, order: list[int]) -> None:
    fault = fault_after(complete, lambda lines: [lines[0], *(lines[number] for number in order)])
    wrong = [expected for expected, number in enumerate(order, 1) if number != expected]
    if wrong:
        assert fault == LogFault(wrong[0], f"the line has the number {order[wrong[0] - 1]}")
    else:  # the first lines, without or with the last one
        assert fault == (None if len(order) == 12 else LogFault(len(order) + 1, CUT_OFF))


@given(st.integers(0, 11), st.integers(0, 60))
@settings(deadline=None)  # writes files
def test_a_truncated_end_is_detected(complete: AuditLog, kept: int, more: int) -> None:
    fault = fault_after(complete, lambda lines: [*lines[: kept + 1], lines[kept + 1][:more]])
    assert fault == LogFault(kept + 1, "the line is malformed" if more else CUT_OFF)


def test_truncation_with_an_older_ledger_is_detected_by_a_stored_head(log: AuditLog) -> None:
    def end() -> tuple[int, str, int]:
        return log._ledger.reader().execute("SELECT sequence, hash, start FROM audit").get  # type: ignore[no-any-return]

    fill(log, 3)
    log.flush()
    before, content = end(), log.path.read_bytes()
    fill(log, 2, 3)
    kept = log.head()
    log.path.write_bytes(content)
    assert log.verify() == LogFault(4, CUT_OFF)
    log._ledger.write(lambda db: db.execute("UPDATE audit SET sequence = ?, hash = ?, start = ?", before))
    assert log.verify() is None
    assert log.verify([kept]) == LogFault(4, CUT_OFF)
    fill(log, 2, 5)  # as many as there were
    assert log.verify() is None
    assert log.verify([kept]) == LogFault(5, OTHER_HASH)


def forged(lines: list[bytes], number: int) -> bytes:
    """Return the log with another actor in one line, and a valid chain."""
    contents = [json.loads(line[65:]) for line in lines[1:]]
    contents[number - 1]["actor"] = "nobody"
    return chained(lines[0].decode().split()[2], contents)


def test_a_new_chain_is_detected_by_a_stored_head(log: AuditLog) -> None:
    fill(log, 5)
    kept = log.head()
    log.path.write_bytes(forged(lines(log), 3))
    assert log.verify() == LogFault(5, OTHER_HASH)
    # Whoever can also write to the ledger can change its head.
    end = json.loads(lines(log)[-1][65:])["sequence"], lines(log)[-1][:64].decode()
    log._ledger.write(lambda db: db.execute("UPDATE audit SET sequence = ?, hash = ?", end))
    assert log.verify() is None
    assert log.verify([kept]) == LogFault(5, OTHER_HASH)
    assert log.verify([LogHead(6, "")]) == LogFault(6, CUT_OFF)


def test_later_entries_do_not_hide_a_truncation(log: AuditLog) -> None:
    fill(log, 5)
    log.flush()
    content = b"".join(lines(log)[:4])
    for cut in (content, content + b"abc"):
        log.path.write_bytes(cut)
        fill(log, 2, 5)
        assert log.verify() is not None
        fill(log, 2, 7)
        fault = log.verify()
        assert fault is not None
        assert fault.sequence == 4
        assert log.path.read_bytes().startswith(cut)


def test_a_deleted_file_leaves_a_gap(log: AuditLog) -> None:
    fill(log, 2)
    log.flush()
    log.path.unlink()
    fill(log, 1, 2)
    assert log.verify() == LogFault(1, "the line has the number 3")
    log.path.write_bytes(b"other" + log.path.read_bytes())
    assert log.verify() == LogFault(0, "the first line is not this gallery's")


def test_verifying_a_gallery_includes_its_log(gallery: EmbeddedGallery) -> None:
    enrol(gallery, "doors", 1)
    assert list(find_faults(gallery)) == []
    content = gallery.audit.path.read_bytes()
    gallery.audit.path.write_bytes(content.replace(b'"faces":[1]', b'"faces":[2]'))
    assert list(find_faults(gallery)) == [f"audit.log: entry 2: {CHANGED}"]
    gallery.audit.path.write_bytes(content[:-20] + b"\n")
    with pytest.raises(CorruptError, match="malformed"):
        gallery.audit.read()
    gallery.audit.path.write_bytes(content.replace(b"audit 1", b"audit 2"))
    assert list(find_faults(gallery)) == [f"{gallery.audit.path} has version 2; this program reads up to version 1"]
    gallery.audit.path.write_bytes(content)


def test_a_log_of_a_later_version_is_not_changed(log: AuditLog) -> None:
    content = log.path.read_bytes().replace(b"audit 1", b"audit 2")
    log.path.write_bytes(content)
    fill(log, 1)
    for use in (log.flush, log.read, log.verify):
        with pytest.raises(TooNewError, match="version 2"):
            use()
    log._ledger.write(lambda db: db.execute("DELETE FROM acts"))
    with pytest.raises(TooNewError, match="version 2"):
        log.read()
    assert log.path.read_bytes() == content


# Crashes and restores.


@pytest.mark.parametrize("left", [b"x", b"\0" * 600, b"nothing\n", None])
def test_a_partial_line_after_a_crash_is_truncated(log: AuditLog, left: bytes | None) -> None:
    fill(log, 3)
    log.flush()
    content = log.path.read_bytes()
    log.path.write_bytes(content + (lines(log)[3][:50] if left is None else left))
    assert log.verify() is None
    assert log.path.read_bytes() == content
    fill(log, 1, 3)
    assert [event.subjects for event in events(log)] == [(n,) for n in range(4)]
    assert log.verify() is None


def test_an_incomplete_line_is_not_read(log: AuditLog) -> None:
    fill(log, 1)
    log.flush()
    with log.path.open("ab") as file:
        file.write(lines(log)[1][:-1])
    assert [event.subjects for event in events(log)] == [(0,)]


@pytest.mark.parametrize("left", [b"", b"vestibule-aud"])
def test_a_header_that_a_crash_truncated_is_written_again(log: AuditLog, left: bytes) -> None:
    expected = log.path.read_bytes()
    log.path.write_bytes(left)
    log.flush(recover=True)
    assert log.path.read_bytes() == expected


def test_events_whose_flush_failed_are_logged_once(log: AuditLog, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(log, 3)
    log.add(AuditEvent("search", NOW + 1.5))

    def fail(db: apsw.Connection, end: object, through: int = 0) -> None:
        raise OSError("no space")

    with monkeypatch.context() as crash:
        crash.setattr(module, "_put_end", fail)
        with pytest.raises(OSError, match="no space"):
            log.flush()
    assert len(lines(log)) == 5
    fill(log, 1, 3)
    assert [(event.action, event.subjects) for event in events(log)] == [
        ("enrol", (0,)),
        ("enrol", (1,)),
        ("search", ()),
        ("enrol", (2,)),
        ("enrol", (3,)),
    ]
    assert log.verify() is None


def test_opening_and_closing_a_gallery_flush_its_log(gallery: EmbeddedGallery, tmp_path: Path) -> None:
    enrol(gallery, "doors", 3)
    assert gallery.audit.path.read_bytes().count(b"\n") == 1
    with closing(EmbeddedGallery(tmp_path / "gallery")):
        assert gallery.audit.path.read_bytes().count(b"\n") == 3
    gallery.note_search("doors", [])
    gallery.close()
    assert gallery.audit.path.read_bytes().count(b"\n") == 4


def summary(folder: Path) -> tuple[list[tuple[str, int]], LogFault | None]:
    """Return the action and the number of faces of each event, and the fault of the log."""
    with closing(EmbeddedGallery(folder)) as gallery:
        fault = gallery.audit.verify()
        return [(event.action, len(event.faces)) for event in events(gallery.audit)], fault


@pytest.fixture
def saved(gallery: EmbeddedGallery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A backup whose last event was flushed after it; the last event of the gallery was never flushed."""
    enrol(gallery, "doors", 3)
    gallery.audit.flush()
    enrol(gallery, "doors", 1, seed=1)
    back_up(gallery, tmp_path / "backup")
    gallery.audit.flush()
    enrol(gallery, "doors", 2, seed=2)
    gallery.audit.flush()
    enrol(gallery, "doors", 5, seed=3)
    with monkeypatch.context() as crash:
        crash.setattr(AuditLog, "_has_pending", lambda self: False)
        gallery.close()
    return tmp_path / "backup"


def test_a_restore_continues_the_log(saved: Path, tmp_path: Path) -> None:
    restore(tmp_path / "gallery", saved, clock=lambda: NOW)
    expected = [("enrol", 3), ("enrol", 1), ("enrol", 2), ("enrol", 5), ("restore", 0)]
    assert summary(tmp_path / "gallery") == (expected, None)
    restore(tmp_path / "gallery", saved, clock=lambda: NOW)
    assert summary(tmp_path / "gallery") == ([*expected, ("restore", 0)], None)


@pytest.mark.parametrize("changed", [False, True])
def test_a_restore_of_a_lost_ledger_continues_the_log(saved: Path, tmp_path: Path, changed: bool) -> None:
    folder = tmp_path / "gallery"
    (folder / "ledger.db").unlink()
    before = (folder / "audit.log").read_bytes()
    if changed:
        before = before.replace(b'"faces":[4]', b'"faces":[7]')
        (folder / "audit.log").write_bytes(before)
    restore(folder, saved, clock=lambda: NOW)
    logged, fault = summary(folder)
    assert (folder / "audit.log").read_bytes().startswith(before)
    if changed:
        assert fault is not None
        assert fault.sequence == 3
    else:
        assert (logged, fault) == ([("enrol", 3), ("enrol", 1), ("enrol", 2), ("restore", 0)], None)


def test_a_restore_elsewhere_begins_a_new_log(saved: Path, tmp_path: Path) -> None:
    EmbeddedGallery(tmp_path / "elsewhere").close()  # empty, with another id
    for folder in ("new", "elsewhere"):
        restore(tmp_path / folder, saved, clock=lambda: NOW)
        assert summary(tmp_path / folder) == ([("enrol", 1), ("restore", 0)], None)


def test_of_is_only_in_lines_of_events_that_have_it(log: AuditLog) -> None:
    created = AuditEvent("create_key", NOW, None, id="a" * 32, of="0123abcd")
    log._ledger.write(partial(module.record, event=created))
    log._ledger.write(partial(module.record, event=event(1)))
    assert events(log)[0] == created
    first, second = (json.loads(line[65:]) for line in lines(log)[1:])
    assert first["of"] == "0123abcd"
    assert "of" not in second
    assert log.verify() is None
    with pytest.raises(InvalidError, match=r"of: .* not a name"):
        AuditEvent("reload", NOW, of="somebody's model")
