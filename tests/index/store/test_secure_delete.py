"""Unused space of pages: found, overwritten, and kept clean; used space stays unchanged."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from itertools import count
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
    """A ledger with trees of several levels, rows longer than a page, and SECRET in all unused space."""
    ledger, rng = Ledger(tmp_path / "ledger.db"), random.Random(0)
    rows = [(number, rng.randbytes(rng.choice((20, 300, 9000)))) for number in range(1000)]

    def fill(db: apsw.Connection) -> None:
        db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, data BLOB); CREATE INDEX i ON t (substr(data, 1, 400))")
        db.executemany("INSERT INTO t VALUES (?, ?)", rows)
        db.execute("DELETE FROM t WHERE id % 7 = 3")

    ledger.write(fill)
    assert ledger.scrub()
    with open_pages(ledger.path, SIZE, None) as pages:
        for number in range(1, pages._count()):
            page = bytearray(pages._read(number, 1)[0])
            for part in unused_space(bytes(page)):
                page[part] = (SECRET * SIZE)[: len(page[part])]
            pages._file.xWrite(bytes(page), number * SIZE)
    yield ledger
    ledger.close()


def rows(ledger: Ledger) -> dict[int, bytes]:
    return dict(ledger.reader().execute("SELECT * FROM t"))


def count_secrets(ledger: Ledger) -> int:
    """Occurrences of SECRET in the file and its log."""
    return sum(path.read_bytes().count(SECRET) for path in ledger.path.parent.iterdir())


def test_a_scrub_changes_only_unused_space(ledger: Ledger) -> None:
    before, pages_before = rows(ledger), ledger.path.read_bytes()
    assert count_secrets(ledger) > 1000
    assert ledger.scrub()
    assert count_secrets(ledger) == 0
    assert rows(ledger) == before
    assert ledger.reader().pragma("integrity_check") == "ok"
    after = ledger.path.read_bytes()
    assert len(after) == len(pages_before)
    # Page 1 counts changes; elsewhere every changed byte is zero.
    assert all(new in (0, old) for old, new in zip(pages_before[SIZE:], after[SIZE:], strict=True))
    with open_pages(ledger.path, SIZE, None) as pages:
        assert pages.dirty() == []


@pytest.mark.parametrize("invalidates", [True, False])
def test_another_connection_does_not_write_remains_back_from_its_cache(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, invalidates: bool
) -> None:
    calls = count()
    other, truncate_wal = Ledger(ledger.path), module._truncate_wal
    other.write(lambda db: db.pragma("cache_size", 100_000))

    def truncate_and_read(connection: apsw.Connection) -> None:
        """Fill the cache of the other connection just before pages are cleaned; later truncations fail."""
        if next(calls) > 1:
            raise apsw.BusyError
        truncate_wal(connection)
        other.write(lambda db: db.execute("SELECT sum(length(data)), sum(length(substr(data, 1, 400))) FROM t").get)

    monkeypatch.setattr(module, "_truncate_wal", truncate_and_read)
    if not invalidates:
        monkeypatch.setattr(module, "_invalidate_page_caches", lambda db, write=lambda db: True: write(db))
    assert ledger.scrub()
    assert count_secrets(ledger) == 0
    other.write(lambda db: db.execute("UPDATE t SET data = zeroblob(20) WHERE length(data) = 20"))
    assert (count_secrets(ledger) == 0) is invalidates
    other.close()


def test_no_other_connection_writes_while_pages_are_cleaned(ledger: Ledger) -> None:
    other = apsw.Connection(str(ledger.path))

    def write(db: apsw.Connection) -> None:
        with pytest.raises(apsw.BusyError):
            other.execute("BEGIN IMMEDIATE")

    assert ledger.scrub(write)
    other.close()


def test_other_connections_write_and_read_during_a_scrub(ledger: Ledger) -> None:
    other, stop = Ledger(ledger.path), threading.Event()

    def write_and_read() -> None:
        while not stop.is_set():
            with other.snapshot() as db:
                db.execute("SELECT count(*) FROM t").fetchall()
            other.write(lambda db: db.execute("UPDATE t SET data = data || x'00' WHERE id = 1"))

    thread = threading.Thread(target=write_and_read)
    thread.start()
    done = [ledger.scrub() for _ in range(20)]
    stop.set()
    thread.join()
    other.close()
    assert any(done)
    assert count_secrets(ledger) == 0
    assert ledger.reader().pragma("integrity_check") == "ok"


def test_scrub_and_its_function_are_atomic(ledger: Ledger) -> None:
    def insert(db: apsw.Connection) -> None:
        db.execute("INSERT INTO t VALUES (-1, x'01')")

    def insert_and_fail(db: apsw.Connection) -> None:
        insert(db)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        ledger.scrub(insert_and_fail)
    assert -1 not in rows(ledger)
    assert ledger.scrub(insert)
    assert rows(ledger)[-1] == b"\x01"
    assert count_secrets(ledger) == 0


def truncating_slowly(times: int, path: Path) -> Callable[[apsw.Connection], None]:
    """Truncates the log; after each of the first `times` calls another connection writes."""
    real, calls = module._truncate_wal, count()

    def truncate_wal(connection: apsw.Connection) -> None:
        real(connection)
        if next(calls) < times:
            other = apsw.Connection(str(path))
            other.execute("INSERT INTO t (data) VALUES (x'00')")
            other.close()

    return truncate_wal


def test_a_scrub_is_retried_after_another_write(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_truncate_wal", truncating_slowly(3, ledger.path))
    assert ledger.scrub()
    monkeypatch.setattr(module, "_truncate_wal", truncating_slowly(100, ledger.path))
    assert not ledger.scrub()


def test_a_reader_at_the_end_does_not_block_a_scrub(ledger: Ledger) -> None:
    reader = apsw.Connection(str(ledger.path))

    def read(db: apsw.Connection) -> None:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM t").fetchall()

    assert ledger.scrub(read)
    reader.close()


def page(kind: int, block: int, cells: int, content: int, size: int = SIZE) -> bytes:
    data = bytearray(b"\xff" * size)
    data[:8] = bytes([kind, *block.to_bytes(2), *cells.to_bytes(2), *content.to_bytes(2), 0])
    return bytes(data)


def test_unused_space_follows_the_file_format() -> None:
    assert list(unused_space(page(13, 0, 5, 1000))) == [slice(18, 1000)]
    assert list(unused_space(page(10, 0, 0, SIZE))) == [slice(8, SIZE)]
    assert list(unused_space(page(5, 0, 3, 900))) == [slice(18, 900)]
    assert list(unused_space(page(2, 0, 3, 900))) == [slice(18, 900)]
    assert list(unused_space(page(13, 0, 1, 0, 65_536))) == [slice(10, 65_536)]
    assert list(unused_space(page(0, 0, 5, 1000))) == []  # an overflow page, or a free one
    blocks = bytearray(page(13, 2000, 1, 1000))
    blocks[2000:2004] = (3000).to_bytes(2) + (50).to_bytes(2)
    blocks[3000:3004] = (0).to_bytes(2) + (20).to_bytes(2)
    assert list(unused_space(bytes(blocks))) == [slice(10, 1000), slice(2004, 2050), slice(3004, 3020)]
    blocks[3000:3002] = (2000).to_bytes(2)  # read while it was written: the loop must end
    assert len(list(unused_space(bytes(blocks)))) == 3


def test_pages_after_the_end_of_the_file_are_ignored(ledger: Ledger) -> None:
    assert ledger.scrub()
    with open_pages(ledger.path, SIZE, None) as pages:
        before = ledger.path.stat().st_size
        pages.clean([10**6])
        assert ledger.path.stat().st_size == before
        assert pages._read(before // SIZE - 1, 2)[1] == bytes(SIZE)
