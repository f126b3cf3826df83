"""The ledger: what is durable when, what a failure undoes, who sees what."""

from __future__ import annotations

import errno
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import apsw
import pytest

from index.embedded.store import ledger as module
from index.embedded.store.atomic_files import is_disk_full
from index.embedded.store.ledger import Change, Ledger, committing
from index.embedded.store.migrations import STEPS, migrate
from index.embedded.store.secure_delete import MAX_PAGES
from index.errors import GalleryError, TooNewError


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger.db")


def note(text: str) -> module.Write:
    return lambda db: db.execute("INSERT INTO leases VALUES (?, '', 0)", (text,)).fetchall()


def notes(path: Path) -> list[str]:
    """As another process sees them."""
    connection = apsw.Connection(str(path))
    try:
        return [row[0] for row in connection.execute("SELECT name FROM leases ORDER BY name")]
    finally:
        connection.close()


def test_a_write_is_there_for_others_when_it_returns(ledger: Ledger) -> None:
    ledger.write(note("a"))
    assert notes(ledger.path) == ["a"]
    ledger.close()


def test_what_one_write_raises_undoes_that_one_alone(ledger: Ledger) -> None:
    def fails(db: apsw.Connection) -> None:
        note("lost")(db)
        raise ValueError("no")

    go = threading.Event()
    blocked = ledger.submit(lambda db: go.wait(10))  # the others gather behind it, and are one transaction
    futures = [ledger.submit(note("a")), ledger.submit(fails), ledger.submit(note("b"))]
    go.set()
    assert blocked.result()
    with pytest.raises(ValueError, match="no"):
        futures[1].result()
    futures[2].result()
    assert notes(ledger.path) == ["a", "b"]
    ledger.close()


def test_writes_that_wait_are_committed_together(ledger: Ledger) -> None:
    commits: list[bool] = []

    def count() -> bool:
        commits.append(True)
        return False

    ledger.write(lambda db: db.set_commit_hook(count))
    go = threading.Event()
    ledger.submit(lambda db: go.wait(10))
    futures = [ledger.submit(note(f"{i:03}")) for i in range(100)]
    go.set()
    for future in futures:
        future.result()
    assert len(notes(ledger.path)) == 100
    assert len(commits) <= 3  # the hook's own, the blocked one's, that of the hundred
    ledger.close()


def test_nobodys_write_is_durable_where_the_commit_fails(ledger: Ledger) -> None:
    go = threading.Event()
    with pytest.raises(apsw.ConstraintError):
        ledger.write(lambda db: db.set_commit_hook(lambda: True))  # refuses to commit, this one already
    first = ledger.submit(lambda db: go.wait(10))
    futures = [first, ledger.submit(note("a")), ledger.submit(note("b"))]
    go.set()
    for future in futures:
        with pytest.raises(apsw.ConstraintError):
            future.result()
    assert notes(ledger.path) == []
    ledger.close()


def test_an_error_outside_of_any_write_undoes_all(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(db: apsw.Connection, write: module.Write) -> None:
        write(db)
        raise apsw.IOError("the disk is gone")

    with monkeypatch.context() as patched:
        patched.setattr(module, "_run_in_savepoint", broken)
        with pytest.raises(apsw.IOError, match="the disk"):
            ledger.write(note("a"))
    ledger.write(note("b"))
    assert notes(ledger.path) == ["b"]
    ledger.close()


def test_a_cancelled_write_is_not_made(ledger: Ledger) -> None:
    go = threading.Event()
    ledger.submit(lambda db: go.wait(10))
    cancelled, kept = ledger.submit(note("cancelled")), ledger.submit(note("kept"))
    assert cancelled.cancel()
    go.set()
    kept.result()
    assert notes(ledger.path) == ["kept"]
    ledger.close()


def test_a_snapshot_sees_one_commit(ledger: Ledger) -> None:
    with ledger.snapshot() as db:
        assert db.execute("SELECT count(*) FROM leases").get == 0
        ledger.write(note("a"))
        assert db.execute("SELECT count(*) FROM leases").get == 0
    assert ledger.reader().execute("SELECT count(*) FROM leases").get == 1
    ledger.close()


def test_readers_cannot_write(ledger: Ledger) -> None:
    with pytest.raises(apsw.ReadOnlyError):
        note("a")(ledger.reader())
    ledger.close()


def test_a_thread_has_one_connection_for_reading(ledger: Ledger) -> None:
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(ledger.reader).result() is not ledger.reader()
    assert ledger.reader() is ledger.reader()
    ledger.close()


def test_connections_are_durable_and_leave_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = {
        "journal_mode": "wal",
        "synchronous": 2,  # full
        "foreign_keys": 1,
        "secure_delete": 1,
        "max_page_count": MAX_PAGES,
        "temp_store": 2,  # memory
        "busy_timeout": module.BUSY_MS,
    }

    def settings(db: apsw.Connection) -> dict[str, object]:
        return {name: db.pragma(name) for name in expected}

    # Whatever SQLite was built to begin with.
    monkeypatch.setattr(apsw, "connection_hooks", [lambda db: db.pragma("synchronous", "off")])
    ledger = Ledger(tmp_path / "ledger.db")
    assert settings(ledger.reader()) == expected
    assert ledger.write(settings) == expected
    ledger.close()


def test_every_file_is_opened_through_the_given_vfs(tmp_path: Path) -> None:
    opened: list[str] = []

    class Noting(apsw.VFS):
        def __init__(self) -> None:
            super().__init__("noting", base="")

        def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:  # noqa: N802
            opened.append(name.filename() if isinstance(name, apsw.URIFilename) else str(name))
            return super().xOpen(name, flags)

    vfs = Noting()
    ledger = Ledger(tmp_path / "ledger.db", vfs="noting")
    ledger.write(note("a"))
    for use, times in ((ledger.reader, 1), (ledger.watcher, 1), (ledger.scrub, 2)):  # a connection, and its pages
        opened.clear()
        use()
        assert opened.count(str(ledger.path)) == times
    ledger.close()
    vfs.unregister()


def test_a_watcher_sees_commits_of_this_process_and_of_others(ledger: Ledger) -> None:
    watcher = ledger.watcher()
    first = watcher.version()
    assert watcher.version() == first
    ledger.write(note("a"))
    second = watcher.version()
    assert second != first
    other = Ledger(ledger.path)
    other.write(note("b"))
    assert watcher.version() != second
    other.close()
    ledger.close()


def test_the_log_is_emptied_unless_a_reader_needs_it(ledger: Ledger) -> None:
    ledger.write(note("a"))
    wal = ledger.path.with_name("ledger.db-wal")
    with ledger.snapshot() as db:
        db.execute("SELECT count(*) FROM leases").fetchall()
        ledger.write(note("b"))
        begun = time.monotonic()
        assert not ledger.scrub()
        assert time.monotonic() - begun < module.BUSY_MS / 2000  # it waits for readers, but not as long as writers do
    assert ledger.scrub()
    assert wal.stat().st_size == 0
    ledger.close()


def test_what_waits_when_it_closes_is_committed(ledger: Ledger) -> None:
    started, go = threading.Event(), threading.Event()

    def block(db: apsw.Connection) -> None:
        started.set()
        go.wait(10)

    ledger.submit(block)
    assert started.wait(10)
    futures = [ledger.submit(note(str(i))) for i in range(5)]
    with ThreadPoolExecutor(1) as pool:
        closing = pool.submit(ledger.close)
        while ledger._waiting.qsize() < 6:  # the end waits behind the five
            time.sleep(0.001)
        with pytest.raises(TimeoutError):
            closing.result(timeout=0.05)
        go.set()
        closing.result(timeout=10)
    assert all(future.done() for future in futures)
    assert len(notes(ledger.path)) == 5
    ledger.close()  # twice does no harm
    for use in (lambda: ledger.submit(note("late")), ledger.watcher):
        with pytest.raises(GalleryError, match=r"^the ledger is closed$"):
            use()
    with ThreadPoolExecutor(1) as pool, pytest.raises(GalleryError, match=r"^the ledger is closed$"):
        pool.submit(ledger.reader).result()


def test_nothing_can_be_read_when_it_is_closed(ledger: Ledger) -> None:
    reader, watcher = ledger.reader(), ledger.watcher()
    ledger.close()
    for use in (lambda: reader.execute("SELECT 1"), watcher.version):
        with pytest.raises(apsw.ConnectionClosedError):
            use()


def test_more_than_one_batch(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BATCH", 3)
    started, go = threading.Event(), threading.Event()
    commits: list[bool] = []

    def count() -> bool:
        commits.append(True)
        return False

    def block(db: apsw.Connection) -> None:
        started.set()
        go.wait(10)

    ledger.write(lambda db: db.set_commit_hook(count))
    ledger.submit(block)
    assert started.wait(10)
    commits.clear()
    futures = [ledger.submit(note(str(i))) for i in range(8)]
    go.set()
    for future in futures:
        future.result()
    assert len(notes(ledger.path)) == 8
    assert len(commits) == 1 + 3  # what blocked them; three, three and two
    ledger.close()


def test_a_process_ends_without_closing_it(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from index.embedded.store.ledger import Ledger; "
        "Ledger(Path(sys.argv[1]))"
    )
    root = Path(__file__).parents[3]
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "ledger.db")], cwd=root, check=True, timeout=60)


def test_deleted_text_is_not_in_the_file_any_more(ledger: Ledger) -> None:
    secret = "Ferdinandea Isabella Quartz"
    ledger.write(note(secret * 20))
    ledger.write(lambda db: db.execute("DELETE FROM leases").fetchall())
    assert ledger.scrub()
    assert secret.encode() not in ledger.path.read_bytes()
    ledger.close()


def test_an_old_sqlite_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apsw, "SQLITE_VERSION_NUMBER", 3_051_002)
    with pytest.raises(GalleryError, match=r"3\.51\.3"):
        Ledger(tmp_path / "ledger.db")
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(apsw, "SQLITE_VERSION_NUMBER", 3_051_003)
    Ledger(tmp_path / "ledger.db").close()


def test_a_later_versions_ledger_is_refused(tmp_path: Path) -> None:
    Ledger(tmp_path / "ledger.db").close()
    connection = apsw.Connection(str(tmp_path / "ledger.db"))
    connection.pragma("user_version", len(STEPS) + 1)
    connection.close()
    with pytest.raises(TooNewError, match=f"version {len(STEPS) + 1}") as refused:
        Ledger(tmp_path / "ledger.db")
    assert [path.name for path in tmp_path.iterdir()] == ["ledger.db"]  # no log: nobody has it open
    assert refused.tb is not None  # which would keep what was not closed


def test_a_step_that_fails_leaves_the_version_before(tmp_path: Path) -> None:
    connection = apsw.Connection(str(tmp_path / "a.db"))
    good, bad = "CREATE TABLE a (x); INSERT INTO a VALUES (1)", "INSERT INTO a VALUES (2); CREATE TABLE nonsense"
    with pytest.raises(apsw.SQLError):
        migrate(connection, (good, bad))
    assert connection.pragma("user_version") == 1
    assert connection.execute("SELECT count(*) FROM a").get == 1
    migrate(connection, (good, "INSERT INTO a VALUES (2)"))
    migrate(connection, (good, "INSERT INTO a VALUES (2)"))
    assert connection.execute("SELECT count(*) FROM a").get == 2
    connection.close()


def test_of_two_that_migrate_at_once_one_does(tmp_path: Path) -> None:
    step = "CREATE TABLE a (x); INSERT INTO a VALUES (1)"
    barrier = threading.Barrier(2)

    def trace(_: apsw.Cursor, sql: str, __: object) -> bool:
        if sql.startswith("BEGIN"):
            barrier.wait(10)  # both have read version 0 before either begins
        elif sql.startswith("CREATE"):
            time.sleep(0.1)  # the other would be here, too, if it did not have to wait for its turn
        return True

    def run() -> None:
        connection = apsw.Connection(str(tmp_path / "a.db"))
        connection.set_busy_timeout(5000)
        connection.set_exec_trace(trace)
        migrate(connection, (step,))
        connection.close()

    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(run), pool.submit(run)]:
            future.result()
    connection = apsw.Connection(str(tmp_path / "a.db"))
    assert connection.execute("SELECT count(*) FROM a").get == 1
    connection.close()


def test_many_may_make_one_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = apsw.Connection(str(tmp_path / "ledger.db"))
    other.execute("BEGIN IMMEDIATE")  # as another process does for a moment; SQLite does not wait for that
    with ThreadPoolExecutor() as pool:
        opening = pool.submit(Ledger, tmp_path / "ledger.db")
        time.sleep(0.1)
        assert not opening.done()
        other.execute("COMMIT")
        opening.result().close()
    monkeypatch.setattr(module, "BUSY_MS", 100)
    held = apsw.Connection(str(tmp_path / "other.db"))
    held.execute("BEGIN IMMEDIATE")
    with pytest.raises(apsw.BusyError):
        Ledger(tmp_path / "other.db")


def test_what_follows_a_commit_is_done_once_for_all_writes_of_it(ledger: Ledger) -> None:
    done: list[list[str]] = []

    def after(db: apsw.Connection) -> None:
        assert not db.in_transaction
        done.append([row[0] for row in db.execute("SELECT name FROM leases ORDER BY name")])

    def fails(db: apsw.Connection) -> None:
        raise ValueError("no")

    go = threading.Event()
    ledger.submit(lambda db: go.wait(10))
    futures = [ledger.submit(note("a"), after), ledger.submit(note("b"), after), ledger.submit(fails, after)]
    go.set()
    for future in futures[:2]:
        future.result()
    with pytest.raises(ValueError, match="no"):
        futures[2].result()
    assert done == [["a", "b"]]
    with pytest.raises(ValueError, match="no"):
        ledger.submit(fails, after).result()
    assert done == [["a", "b"]]
    ledger.close()


def test_what_follows_a_commit_fails_those_who_asked_for_it(ledger: Ledger) -> None:
    def full(db: apsw.Connection) -> None:
        raise OSError(errno.ENOSPC, "no space")

    go = threading.Event()
    ledger.submit(lambda db: go.wait(10))
    futures = [ledger.submit(note("a"), full), ledger.submit(note("b"))]
    go.set()
    with pytest.raises(OSError, match="no space"):
        futures[0].result()
    futures[1].result()
    assert notes(ledger.path) == ["a", "b"]  # it is committed all the same
    assert ledger.full_at is not None
    ledger.close()


def test_a_change_is_committed_by_a_call_or_returned_as_planned(ledger: Ledger) -> None:
    class Notes:
        """Of a ledger."""

        @committing
        def note(self, text: str) -> Change[str]:
            """Note it."""
            return Change(ledger, lambda db: (note(text)(db), text)[1])

    made = Notes()
    assert made.note("a") == "a"
    planned = made.note.planned("b")
    assert notes(ledger.path) == ["a"]
    assert planned.then(len).submit().result() == 1
    with pytest.raises(ZeroDivisionError):
        made.note.planned("c").then(lambda text: 1 / 0).commit()
    assert notes(ledger.path) == ["a", "b"]
    ledger.close()


@pytest.mark.parametrize("cache_pages", [2000, 1])
def test_a_full_disk_is_told_as_such(ledger: Ledger, cache_pages: int) -> None:
    """With a small cache SQLite finds that out within the write, and undoes the whole transaction by itself."""

    def fill(db: apsw.Connection) -> None:
        for number in range(200):
            note(f"{number}{'x' * 4000}")(db)

    def limit(db: apsw.Connection) -> None:
        db.pragma("cache_size", cache_pages)
        db.pragma("max_page_count", db.pragma("page_count") + 5)

    ledger.write(limit)
    assert ledger.full_at is None
    with pytest.raises(apsw.FullError):
        ledger.write(fill)
    assert ledger.full_at is not None
    assert notes(ledger.path) == []
    ledger.write(note("small"))
    assert notes(ledger.path) == ["small"]
    ledger.close()


def test_an_error_that_undid_the_transaction_is_everybodys(ledger: Ledger) -> None:
    def undone(db: apsw.Connection) -> None:
        db.execute("ROLLBACK")
        raise apsw.FullError("full")

    go = threading.Event()
    ledger.submit(lambda db: go.wait(10))
    futures = [ledger.submit(note("a")), ledger.submit(undone)]
    go.set()
    for future in futures:
        with pytest.raises(apsw.FullError, match="full"):
            future.result()
    ledger.write(note("b"))
    assert notes(ledger.path) == ["b"]
    ledger.close()


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, ""), True),
        (OSError(errno.EDQUOT, ""), True),
        (OSError(errno.EIO, ""), False),
        (apsw.FullError(), True),
        (apsw.IOError(), False),
    ],
)
def test_which_errors_mean_a_full_disk(error: Exception, full: bool) -> None:
    assert is_disk_full(error) is full
