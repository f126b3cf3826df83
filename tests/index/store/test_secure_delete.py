"""What a page does not use: found, overwritten, and never come back; what it does use stays as it was."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import apsw
import pytest

from index.embedded.store import ledger as module
from index.embedded.store.ledger import Ledger
from index.embedded.store.secure_delete import open_pages, unused_space

SIZE = 4096
SECRET = b"Ferdinandea Isabella Quartz"


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """With rows in trees of some levels, some of them too long for a page, and SECRET wherever a page is not used."""
    made, rng = Ledger(tmp_path / "ledger.db"), random.Random(0)
    rows = [(number, rng.randbytes(rng.choice((20, 300, 9000)))) for number in range(1000)]

    def fill(db: apsw.Connection) -> None:
        db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, data BLOB); CREATE INDEX i ON t (substr(data, 1, 400))")
        db.executemany("INSERT INTO t VALUES (?, ?)", rows)
        db.execute("DELETE FROM t WHERE id % 7 = 3")

    made.write(fill)
    assert made.scrub()
    with open_pages(made.path, SIZE, None) as pages:
        for number in range(1, pages._count()):
            planted = bytearray(pages._read(number, 1)[0])
            for piece in unused_space(bytes(planted)):
                planted[piece] = (SECRET * SIZE)[: len(planted[piece])]
            pages._file.xWrite(bytes(planted), number * SIZE)
    yield made
    made.close()


def rows(ledger: Ledger) -> dict[int, bytes]:
    return dict(ledger.reader().execute("SELECT * FROM t"))


def left(ledger: Ledger) -> int:
    """How often SECRET is in the file or its log."""
    return sum(path.read_bytes().count(SECRET) for path in ledger.path.parent.iterdir())


def test_a_scrub_changes_nothing_but_what_is_not_used(ledger: Ledger) -> None:
    before, pages_before = rows(ledger), ledger.path.read_bytes()
    assert left(ledger) > 1000
    assert ledger.scrub()
    assert left(ledger) == 0
    assert rows(ledger) == before
    assert ledger.reader().pragma("integrity_check") == "ok"
    after = ledger.path.read_bytes()
    assert len(after) == len(pages_before)
    # Page 1 counts changes; elsewhere, what differs is zero now.
    assert all(new in (0, old) for old, new in zip(pages_before[SIZE:], after[SIZE:], strict=True))
    with open_pages(ledger.path, SIZE, None) as pages:
        assert pages.dirty() == []


@pytest.mark.parametrize("forgets", [True, False])
def test_it_does_not_come_back_from_another_connections_memory(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, forgets: bool
) -> None:
    calls: list[int] = []
    other, empty_log = Ledger(ledger.path), module._truncate_wal
    other.write(lambda db: db.pragma("cache_size", 100_000))

    def others_read(connection: apsw.Connection) -> None:
        """At the worst moment: pages are about to be cleaned. Later, somebody else is in the way."""
        calls.append(len(calls))
        if len(calls) > 2:
            raise apsw.BusyError
        empty_log(connection)
        other.write(lambda db: db.execute("SELECT sum(length(data)), sum(length(substr(data, 1, 400))) FROM t").get)

    monkeypatch.setattr(module, "_truncate_wal", others_read)
    if not forgets:
        monkeypatch.setattr(module, "_invalidate_page_caches", lambda db, write=lambda db: True: write(db))
    assert ledger.scrub()
    assert left(ledger) == 0
    other.write(lambda db: db.execute("UPDATE t SET data = zeroblob(20) WHERE length(data) = 20"))
    assert (left(ledger) == 0) is forgets
    other.close()


def test_nobody_else_writes_while_pages_are_cleaned(ledger: Ledger) -> None:
    other = apsw.Connection(str(ledger.path))

    def write(db: apsw.Connection) -> None:
        with pytest.raises(apsw.BusyError):
            other.execute("BEGIN IMMEDIATE")

    assert ledger.scrub(write)
    other.close()


def test_others_write_and_read_meanwhile(ledger: Ledger) -> None:
    other, stop = Ledger(ledger.path), threading.Event()

    def writes() -> None:
        while not stop.is_set():
            with other.snapshot() as db:
                db.execute("SELECT count(*) FROM t").fetchall()
            other.write(lambda db: db.execute("UPDATE t SET data = data || x'00' WHERE id = 1"))

    thread = threading.Thread(target=writes)
    thread.start()
    done = [ledger.scrub() for _ in range(20)]
    stop.set()
    thread.join()
    other.close()
    assert any(done)
    assert left(ledger) == 0
    assert ledger.reader().pragma("integrity_check") == "ok"


def test_what_goes_with_it_is_done_with_it_or_not_at_all(ledger: Ledger) -> None:
    def note(db: apsw.Connection) -> None:
        db.execute("INSERT INTO t VALUES (-1, x'01')")

    def fails(db: apsw.Connection) -> None:
        note(db)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        ledger.scrub(fails)
    assert -1 not in rows(ledger)
    assert ledger.scrub(note)
    assert rows(ledger)[-1] == b"\x01"
    assert left(ledger) == 0


def writing_after(count: int, path: Path) -> Callable[[apsw.Connection], None]:
    """Empties the log, and the first times is not fast enough to write before another does."""
    real, more = module._truncate_wal, [count]

    def empty_log(connection: apsw.Connection) -> None:
        real(connection)
        more[0] -= 1
        if more[0] >= 0:
            other = apsw.Connection(str(path))
            other.execute("INSERT INTO t (data) VALUES (x'00')")
            other.close()

    return empty_log


def test_who_writes_in_between_makes_it_try_again(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_truncate_wal", writing_after(3, ledger.path))
    assert ledger.scrub()
    monkeypatch.setattr(module, "_truncate_wal", writing_after(100, ledger.path))
    assert not ledger.scrub()


def test_who_reads_at_the_end_is_not_in_the_way(ledger: Ledger) -> None:
    reader = apsw.Connection(str(ledger.path))

    def read(db: apsw.Connection) -> None:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM t").fetchall()

    assert ledger.scrub(read)
    reader.close()


def page(kind: int, block: int, cells: int, content: int, size: int = SIZE) -> bytes:
    made = bytearray(b"\xff" * size)
    made[:8] = bytes([kind, *block.to_bytes(2), *cells.to_bytes(2), *content.to_bytes(2), 0])
    return bytes(made)


def test_what_a_page_does_not_use_is_as_the_format_says() -> None:
    assert list(unused_space(page(13, 0, 5, 1000))) == [slice(18, 1000)]
    assert list(unused_space(page(10, 0, 0, SIZE))) == [slice(8, SIZE)]
    assert list(unused_space(page(5, 0, 3, 900))) == [slice(18, 900)]
    assert list(unused_space(page(2, 0, 3, 900))) == [slice(18, 900)]
    assert list(unused_space(page(13, 0, 1, 0, 65_536))) == [slice(10, 65_536)]
    assert list(unused_space(page(0, 0, 5, 1000))) == []  # of a text too long for its row's page, or free
    blocks = bytearray(page(13, 2000, 1, 1000))
    blocks[2000:2004] = (3000).to_bytes(2) + (50).to_bytes(2)
    blocks[3000:3004] = (0).to_bytes(2) + (20).to_bytes(2)
    assert list(unused_space(bytes(blocks))) == [slice(10, 1000), slice(2004, 2050), slice(3004, 3020)]
    blocks[3000:3002] = (2000).to_bytes(2)  # read while it was written: it must end
    assert len(list(unused_space(bytes(blocks)))) == 3


def test_pages_that_are_gone_are_left_alone(ledger: Ledger) -> None:
    assert ledger.scrub()
    with open_pages(ledger.path, SIZE, None) as pages:
        before = ledger.path.stat().st_size
        pages.clean([10**6])
        assert ledger.path.stat().st_size == before
        assert pages._read(before // SIZE - 1, 2)[1] == bytes(SIZE)
