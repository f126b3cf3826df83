"""The audit log: what is in it and when, what can be seen of tampering, what a crash and a restore do to it."""

from __future__ import annotations

import hashlib
import json
import re
import stat
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO

import apsw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.embedded.admin.backup import back_up, restore
from index.embedded.admin.verify import faults
from index.embedded.audit import log as module
from index.embedded.audit.entries import Act
from index.embedded.audit.log import Audit, Fault, Head
from index.embedded.gallery import RETENTION, EmbeddedGallery
from index.embedded.store import collection_records
from index.embedded.store.ledger import Ledger
from index.embedded.tasks.compaction import Maintenance
from index.errors import CorruptError, InvalidError, TooNewError
from tests.index.people import enrol

NOW = 1_700_000_000.25


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def gallery(tmp_path: Path, clock: Clock) -> Iterator[EmbeddedGallery]:
    made = EmbeddedGallery(tmp_path / "gallery", clock=clock)
    made.create("doors", "face-embedder", "f1", 4)
    yield made
    made.close()


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Audit]:
    ledger = Ledger(tmp_path / "ledger.db")
    made = Audit(tmp_path / "audit.log", ledger, collection_records.gallery_id(ledger.reader()))
    made.flush(recover=True)
    yield made
    ledger.close()


def fill(log: Audit, count: int, first: int = 0) -> None:
    for number in range(first, first + count):
        log._ledger.write(partial(module.note, act=act(number)))


def act(number: int) -> Act:
    return Act("enrol", NOW + number, "key1", 1, (number,), (2 * number, 2 * number + 1))


def acts(log: Audit) -> list[Act]:
    """All, but for the making of collections."""
    return [entry.act for entry in log.read(limit=10_000)[0] if entry.act.action != "create_collection"]


def lines(log: Audit) -> list[bytes]:
    return log.path.read_bytes().splitlines(keepends=True)


def chained(gallery_id: str, contents: list[dict[str, object]]) -> bytes:
    """The file, made by the words of index/embedded/audit/entries.py and nothing else."""
    made = f"vestibule-audit 1 {gallery_id}\n".encode()
    before = hashlib.sha256(made).hexdigest()
    for content in contents:
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        before = hashlib.sha256((before + text).encode()).hexdigest()
        made += f"{before} {text}\n".encode()
    return made


# What is in it.


def test_every_act_is_in_it_with_ids_alone(gallery: EmbeddedGallery, clock: Clock) -> None:
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
    found = [entry.act for entry in gallery.audit.read()[0]]
    assert [(one.action, one.actor, one.subjects, one.faces) for one in found] == [
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
    assert {(one.at, one.collection) for one in found[:-2]} == {(NOW, 1)}
    assert [found[3].id, found[4].id, found[8].id] == [by_faces.token, by_subject.token, dropped.token]
    assert len({one.id for one in found}) == len(found)
    text = gallery.audit.path.read_text()
    for name in ("Ferdinandea", "hat", "p1", "p4", "doors", *(face.token for face in enrolled)):
        assert name not in text
    assert stat.S_IMODE(gallery.audit.path.stat().st_mode) == 0o600
    assert gallery.audit.verify() is None


def test_the_file_is_as_version_1_is(log: Audit) -> None:
    fill(log, 2)
    log.flush()
    ids = [one.id for one in acts(log)]
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
    assert all(re.fullmatch("[0-9a-f]{32}", each) for each in ids)


@pytest.mark.parametrize("actor", ["", "Zoë", "Ferdinandea Quartz", "a@b.c", "x" * 65])
def test_what_may_be_a_name_is_no_actor(gallery: EmbeddedGallery, actor: str) -> None:
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


def test_an_act_that_failed_is_not_in_it(gallery: EmbeddedGallery) -> None:
    def fails(db: apsw.Connection) -> None:
        module.note(db, act(1))
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        gallery.ledger.write(fails)
    assert acts(gallery.audit) == []


def test_it_is_read_by_cursor(log: Audit) -> None:
    assert log.read() == ([], len(lines(log)[0]))
    fill(log, 7)
    found, cursor = [], 0
    for expected in (3, 3, 1, 0):
        page, cursor = log.read(cursor, 3)
        assert len(page) == expected
        found += page
    assert [(entry.sequence, entry.act.subjects) for entry in found] == [(n + 1, (n,)) for n in range(7)]
    fill(log, 1, 7)
    ((last,), end) = log.read(cursor, 3)
    assert (last.sequence, end) == (8, log.path.stat().st_size)
    for wrong in (1, cursor - 1, end + 1, -1):
        with pytest.raises(InvalidError, match="no entry"):
            log.read(wrong)


def test_searches_wait_and_cost_no_write(log: Audit, monkeypatch: pytest.MonkeyPatch) -> None:
    before = log.path.read_bytes()
    monkeypatch.setattr(module, "MOST_WAITING", 5)
    for number in range(4):
        log.add(Act("search", NOW + number))
    assert log.path.read_bytes() == before
    log.add(Act("search", NOW + 4))
    assert len(lines(log)) == 6
    assert [one.at for one in acts(log)] == [NOW + number for number in range(5)]


def test_more_than_are_written_at_once(log: Audit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AT_ONCE", 3)
    fill(log, 7)
    for number in range(10):
        log.add(Act("search", NOW + number))
    log.flush()
    assert log.head().sequence == 17
    assert log.verify() is None


def test_it_ends_where_this_threads_reads_are_of_an_older_commit(log: Audit, monkeypatch: pytest.MonkeyPatch) -> None:
    appended: list[int] = []
    append = Audit._append

    def count(self: Audit, file: BinaryIO) -> bool:
        appended.append(1)
        assert len(appended) < 5
        return append(self, file)

    fill(log, 3)
    read = log._ledger.reader().execute("SELECT act FROM acts")  # not to its end: an error's traceback may keep that
    next(read)
    with monkeypatch.context() as patched:
        patched.setattr(Audit, "_append", count)
        log.flush()
    assert len(lines(log)) == 4
    read.close()
    assert log.verify() is None
    assert [one.subjects for one in acts(log)] == [(0,), (1,), (2,)]


def test_several_processes_write_one_chain(gallery: EmbeddedGallery, tmp_path: Path) -> None:
    others = [EmbeddedGallery(tmp_path / "gallery") for _ in range(3)]

    def work(one: EmbeddedGallery, number: int) -> None:
        for turn in range(10):
            enrol(one, "doors", 1, seed=100 * number + turn)
            one.note_search("doors", [])
            one.audit.flush()

    threads = [threading.Thread(target=work, args=(one, number)) for number, one in enumerate(others)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one in others:
        one.close()
    assert gallery.audit.verify() is None
    found = acts(gallery.audit)
    assert sorted(face for one in found for face in one.faces) == list(range(1, 31))
    assert sum(one.action == "search" for one in found) == 30


# What can be seen of tampering.


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Audit]:
    """A log of 12 entries."""
    folder = tmp_path_factory.mktemp("audit")
    ledger = Ledger(folder / "ledger.db")
    made = Audit(folder / "audit.log", ledger, collection_records.gallery_id(ledger.reader()))
    fill(made, 12)
    made.flush()
    yield made
    ledger.close()


def after(log: Audit, change: Callable[[list[bytes]], list[bytes]]) -> Fault | None:
    """What is seen once the lines were changed, and the file as it is then; it is put back."""
    content = log.path.read_bytes()
    try:
        changed = change(content.splitlines(keepends=True))
        log.path.write_bytes(b"".join(changed))
        fault = log.verify()
        assert log.path.read_bytes() == b"".join(changed)  # it is evidence
        return fault
    finally:
        log.path.write_bytes(content)


@given(st.integers(1, 12), st.data())
@settings(max_examples=300)
def test_one_changed_byte_is_seen(whole: Audit, number: int, data: st.DataObject) -> None:
    def change(lines: list[bytes]) -> list[bytes]:
        line = bytearray(lines[number])
        place = data.draw(st.integers(0, len(line) - 1))
        new = data.draw(st.integers(0, 255).filter(lambda byte: byte not in (line[place], 10)))
        line[place] = new
        return [*lines[:number], bytes(line), *lines[number + 1 :]]

    fault = after(whole, change)
    assert fault is not None
    assert fault.sequence == number


def test_a_changed_byte_of_the_first_line_is_seen(whole: Audit) -> None:
    def change(lines: list[bytes], place: int) -> list[bytes]:
        line = bytearray(lines[0])
        line[place] ^= 1
        return [bytes(line), *lines[1:]]

    for place in range(len(lines(whole)[0])):
        assert after(whole, partial(change, place=place)) == Fault(0, "the first line is not this gallery's")


@pytest.mark.parametrize("number", [1, 7, 11, 12])
def test_a_line_with_a_hash_that_fits_it_is_seen_at_the_next(whole: Audit, number: int) -> None:
    def change(lines: list[bytes]) -> list[bytes]:
        new = forged(lines, number).splitlines(keepends=True)[number]
        return [*lines[:number], new, *lines[number + 1 :]]

    in_between = Fault(number + 1, "it was changed, or something before it")
    at_the_end = Fault(number, "it is not what is known of it elsewhere")  # the ledger knows it
    assert after(whole, change) == (at_the_end if number == 12 else in_between)


@pytest.mark.parametrize("number", range(1, 13))
def test_one_line_removed_or_moved_is_seen(whole: Audit, number: int) -> None:
    def moved(lines: list[bytes], to: int) -> list[bytes]:
        others = lines[:number] + lines[number + 1 :]
        return [*others[:to], lines[number], *others[to:]]

    fault = after(whole, lambda lines: lines[:number] + lines[number + 1 :])
    assert fault == Fault(number, "the end was cut off" if number == 12 else f"{number + 1} stands in its place")
    for to in {1, number - 1, number + 1, 12} - {0, number, 13}:
        fault = after(whole, partial(moved, to=to))
        assert fault is not None
        assert fault.sequence == min(number, to)


@given(st.integers(1, 12), st.integers(1, 3))
def test_removed_lines_are_seen(whole: Audit, number: int, count: int) -> None:
    fault = after(whole, lambda lines: lines[:number] + lines[number + count :])
    assert fault is not None
    assert fault.sequence == number


@given(st.permutations(range(1, 13)))
def test_reordered_lines_are_seen(whole: Audit, order: list[int]) -> None:
    fault = after(whole, lambda lines: [lines[0], *(lines[number] for number in order)])
    first = next((place for place, number in enumerate(order, 1) if place != number), None)
    assert (fault.sequence if fault else None) == first


@given(st.integers(1, 12), st.integers(1, 11))
def test_a_line_put_in_is_seen(whole: Audit, place: int, number: int) -> None:
    fault = after(whole, lambda lines: [*lines[:place], lines[number], *lines[place:]])
    assert fault is not None
    assert fault.sequence == (place + 1 if number == place else place)


@given(st.integers(0, 11), st.integers(0, 60))
def test_an_end_cut_off_is_seen(whole: Audit, kept: int, more: int) -> None:
    fault = after(whole, lambda lines: [*lines[: kept + 1], lines[kept + 1][:more]])
    reason = "it is not what was written" if more else "the end was cut off"
    assert fault == Fault(kept + 1, reason)


def test_an_end_cut_off_with_the_ledger_put_back_is_seen_by_who_kept_a_head(log: Audit) -> None:
    def end() -> tuple[int, str, int]:
        return log._ledger.reader().execute("SELECT sequence, hash, start FROM audit").get  # type: ignore[no-any-return]

    fill(log, 3)
    log.flush()
    before, content = end(), log.path.read_bytes()
    fill(log, 2, 3)
    kept = log.head()
    log.path.write_bytes(content)
    assert log.verify() == Fault(4, "the end was cut off")
    log._ledger.write(lambda db: db.execute("UPDATE audit SET sequence = ?, hash = ?, start = ?", before))
    assert log.verify() is None
    assert log.verify([kept]) == Fault(4, "the end was cut off")
    fill(log, 2, 5)  # as many as there were
    assert log.verify() is None
    assert log.verify([kept]) == Fault(5, "it is not what is known of it elsewhere")


def test_what_is_not_in_the_file_yet_can_be_taken_away_unseen(log: Audit) -> None:
    fill(log, 3)
    log.flush()
    fill(log, 2, 3)
    log._ledger.write(lambda db: db.execute("DELETE FROM acts"))
    assert log.verify() is None
    assert log.head().sequence == 3


def forged(lines: list[bytes], number: int) -> bytes:
    """The log with another actor in one line, and a chain that fits."""
    contents = [json.loads(line[65:]) for line in lines[1:]]
    contents[number - 1]["actor"] = "nobody"
    return chained(lines[0].decode().split()[2], contents)


def test_a_new_chain_is_seen_by_who_knows_the_old_one(log: Audit) -> None:
    fill(log, 5)
    kept = log.head()
    log.path.write_bytes(forged(lines(log), 3))
    assert log.verify() == Fault(5, "it is not what is known of it elsewhere")
    # Who can write to the ledger, too, can make that fit.
    end = json.loads(lines(log)[-1][65:])["sequence"], lines(log)[-1][:64].decode()
    log._ledger.write(lambda db: db.execute("UPDATE audit SET sequence = ?, hash = ?", end))
    assert log.verify() is None
    assert log.verify([kept]) == Fault(5, "it is not what is known of it elsewhere")
    assert log.verify([Head(6, "")]) == Fault(6, "the end was cut off")


def test_what_comes_after_does_not_hide_it(log: Audit) -> None:
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


def test_without_the_file_there_is_a_gap(log: Audit) -> None:
    fill(log, 2)
    log.flush()
    log.path.unlink()
    fill(log, 1, 2)
    assert log.verify() == Fault(1, "3 stands in its place")
    log.path.write_bytes(b"other" + log.path.read_bytes())
    assert log.verify() == Fault(0, "the first line is not this gallery's")


def test_verifying_a_gallery_tells_of_it(gallery: EmbeddedGallery) -> None:
    enrol(gallery, "doors", 1)
    assert list(faults(gallery)) == []
    content = gallery.audit.path.read_bytes()
    gallery.audit.path.write_bytes(content.replace(b'"faces":[1]', b'"faces":[2]'))
    assert list(faults(gallery)) == ["audit.log: entry 2: it was changed, or something before it"]
    gallery.audit.path.write_bytes(content[:-20] + b"\n")
    with pytest.raises(CorruptError, match="not what was written"):
        gallery.audit.read()
    gallery.audit.path.write_bytes(content.replace(b"audit 1", b"audit 2"))
    assert list(faults(gallery)) == [f"{gallery.audit.path} is of version 2; this program knows 1"]
    gallery.audit.path.write_bytes(content)


def test_a_later_version_is_left_alone(log: Audit) -> None:
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


# What a crash and a restore do to it.


@pytest.mark.parametrize("left", [b"x", b"\0" * 600, b"nothing\n", None])
def test_what_a_crash_left_is_cut_off(log: Audit, left: bytes | None) -> None:
    fill(log, 3)
    log.flush()
    whole = log.path.read_bytes()
    log.path.write_bytes(whole + (lines(log)[3][:50] if left is None else left))
    assert log.verify() is None
    assert log.path.read_bytes() == whole
    fill(log, 1, 3)
    assert [one.subjects for one in acts(log)] == [(n,) for n in range(4)]
    assert log.verify() is None


def test_an_incomplete_line_is_no_entry(log: Audit) -> None:
    fill(log, 1)
    log.flush()
    with log.path.open("ab") as file:
        file.write(lines(log)[1][:-1])
    assert [one.subjects for one in acts(log)] == [(0,)]


@pytest.mark.parametrize("left", [b"", b"vestibule-aud"])
def test_a_crash_before_the_first_line(log: Audit, left: bytes) -> None:
    expected = log.path.read_bytes()
    log.path.write_bytes(left)
    log.flush(recover=True)
    assert log.path.read_bytes() == expected


def test_what_a_crash_kept_from_the_ledger_is_in_it_once(log: Audit, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(log, 3)
    log.add(Act("search", NOW + 1.5))

    def dies(db: apsw.Connection, end: object, through: int = 0) -> None:
        raise OSError("no space")

    with monkeypatch.context() as crash:
        crash.setattr(module, "_put_end", dies)
        with pytest.raises(OSError, match="no space"):
            log.flush()
    assert len(lines(log)) == 5
    fill(log, 1, 3)
    found = acts(log)
    assert [(one.action, one.subjects) for one in found] == [
        ("enrol", (0,)),
        ("enrol", (1,)),
        ("search", ()),
        ("enrol", (2,)),
        ("enrol", (3,)),
    ]
    assert log.verify() is None


def test_what_was_not_in_it_yet_is_when_it_is_opened_again(gallery: EmbeddedGallery, tmp_path: Path) -> None:
    enrol(gallery, "doors", 3)
    assert gallery.audit.path.read_bytes().count(b"\n") == 1
    again = EmbeddedGallery(tmp_path / "gallery")
    assert gallery.audit.path.read_bytes().count(b"\n") == 3
    again.close()
    gallery.note_search("doors", [])
    gallery.close()
    assert gallery.audit.path.read_bytes().count(b"\n") == 4


def summary(folder: Path) -> tuple[list[tuple[str, int]], Fault | None]:
    """Actions and how many faces each was of, and what is wrong with the log."""
    gallery = EmbeddedGallery(folder)
    fault, found = gallery.audit.verify(), gallery.audit.read()[0]
    gallery.close()
    acts = [entry.act for entry in found if entry.act.action != "create_collection"]
    return [(act.action, len(act.faces)) for act in acts], fault


@pytest.fixture
def saved(gallery: EmbeddedGallery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A backup. Its ledger has an act that was written to the log afterwards; the gallery's, one that is not there."""
    enrol(gallery, "doors", 3)
    gallery.audit.flush()
    enrol(gallery, "doors", 1, seed=1)
    back_up(gallery, tmp_path / "backup")
    gallery.audit.flush()
    enrol(gallery, "doors", 2, seed=2)
    gallery.audit.flush()
    enrol(gallery, "doors", 5, seed=3)
    with monkeypatch.context() as crash:
        crash.setattr(Audit, "_take", lambda self: False)
        gallery.close()
    return tmp_path / "backup"


def test_a_restore_leaves_it_and_goes_on(saved: Path, tmp_path: Path) -> None:
    restore(tmp_path / "gallery", saved, clock=lambda: NOW)
    expected = [("enrol", 3), ("enrol", 1), ("enrol", 2), ("enrol", 5), ("restore", 0)]
    assert summary(tmp_path / "gallery") == (expected, None)
    restore(tmp_path / "gallery", saved, clock=lambda: NOW)
    assert summary(tmp_path / "gallery") == ([*expected, ("restore", 0)], None)


@pytest.mark.parametrize("changed", [False, True])
def test_a_restore_where_the_ledger_was_lost(saved: Path, tmp_path: Path, changed: bool) -> None:
    folder = tmp_path / "gallery"
    (folder / "ledger.db").unlink()
    before = (folder / "audit.log").read_bytes()
    if changed:
        before = before.replace(b'"faces":[4]', b'"faces":[7]')
        (folder / "audit.log").write_bytes(before)
    restore(folder, saved, clock=lambda: NOW)
    found, fault = summary(folder)
    assert (folder / "audit.log").read_bytes().startswith(before)
    if changed:
        assert fault is not None
        assert fault.sequence == 3
    else:
        assert (found, fault) == ([("enrol", 3), ("enrol", 1), ("enrol", 2), ("restore", 0)], None)


def test_a_restore_elsewhere_begins_another(saved: Path, tmp_path: Path) -> None:
    EmbeddedGallery(tmp_path / "elsewhere").close()  # empty, and another
    for folder in ("new", "elsewhere"):
        restore(tmp_path / folder, saved, clock=lambda: NOW)
        assert summary(tmp_path / folder) == ([("enrol", 1), ("restore", 0)], None)


def test_an_act_that_is_of_no_gallery_says_what_it_is_of_and_the_lines_of_others_are_as_ever(log: Audit) -> None:
    made = Act("create_key", NOW, None, id="a" * 32, of="0123abcd")
    log._ledger.write(partial(module.note, act=made))
    log._ledger.write(partial(module.note, act=act(1)))
    assert acts(log)[0] == made
    first, second = (json.loads(line[65:]) for line in lines(log)[1:])
    assert first["of"] == "0123abcd"
    assert "of" not in second
    assert log.verify() is None
    with pytest.raises(InvalidError, match=r"of: .* not a name"):
        Act("reload", NOW, of="somebody's model")
