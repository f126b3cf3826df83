"""The ledger: when writes are durable, what a failure undoes, what readers see."""

from __future__ import annotations

import errno
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import apsw
import pytest

from index.embedded.store import ledger as module
from index.embedded.store.ledger import Ledger
from index.embedded.store.migrations import STEPS, migrate
from index.embedded.store.secure_delete import MAX_PAGES
from index.errors import CorruptError, DiskFullError, GalleryError, TooNewError, UnavailableError, is_disk_full
from index.folders import write_atomically


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(tmp_path / "ledger.db")
    yield ledger
    ledger.close()


def insert(text: str) -> module.Write:
    return lambda db: db.execute("INSERT INTO leases VALUES (?, '', 0)", (text,)).fetchall()


def fail(db: apsw.Connection) -> None:
    raise ValueError("no")


def texts(path: Path) -> list[str]:
    """The inserted texts as another process sees them."""
    connection = apsw.Connection(str(path))
    try:
        return [row[0] for row in connection.execute("SELECT name FROM leases ORDER BY name")]
    finally:
        connection.close()


@contextmanager
def blocked(ledger: Ledger) -> Iterator[None]:
    """Block the writer: all writes that are submitted meanwhile are one batch, or as few as the ledger permits."""
    started, go = threading.Event(), threading.Event()

    def block(db: apsw.Connection) -> None:
        started.set()
        assert go.wait(10)

    future = ledger.submit(block)
    assert started.wait(10)
    try:
        yield
    finally:
        go.set()
    future.result()


def count_commits(ledger: Ledger) -> list[bool]:
    """Return a list that grows by one item with each commit."""
    commits: list[bool] = []

    def hook() -> bool:
        commits.append(True)
        return False

    ledger.write(lambda db: db.set_commit_hook(hook))
    return commits


def test_a_failing_write_undoes_only_its_own_changes(ledger: Ledger) -> None:
    def insert_and_fail(db: apsw.Connection) -> None:
        insert("lost")(db)
        fail(db)

    with blocked(ledger):
        futures = [ledger.submit(write) for write in (insert("a"), insert_and_fail, insert("b"))]
    with pytest.raises(ValueError, match="no"):
        futures[1].result()
    futures[2].result()
    assert texts(ledger.path) == ["a", "b"]


def test_waiting_writes_are_committed_in_batches(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    commits = count_commits(ledger)
    for batch, count, expected in ((512, 100, 1), (3, 8, 3)):
        monkeypatch.setattr(module, "MAX_BATCH", batch)
        commits.clear()
        with blocked(ledger):
            futures = [ledger.submit(insert(f"{batch}-{number}")) for number in range(count)]
        for future in futures:
            future.result()
        assert len(commits) == 1 + expected  # the first is that of the blocking write
    assert len(texts(ledger.path)) == 108


def test_no_write_is_durable_if_the_commit_fails(ledger: Ledger) -> None:
    with pytest.raises(apsw.ConstraintError):
        ledger.write(lambda db: db.set_commit_hook(lambda: True))  # refuses all commits, including this one
    go = threading.Event()
    futures = [ledger.submit(lambda db: go.wait(10)), ledger.submit(insert("a")), ledger.submit(insert("b"))]
    go.set()
    for future in futures:
        with pytest.raises(apsw.ConstraintError):
            future.result()
    assert texts(ledger.path) == []


def test_an_error_outside_of_a_write_undoes_all(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(db: apsw.Connection, write: module.Write) -> None:
        write(db)
        raise apsw.IOError("the disk is gone")

    with monkeypatch.context() as patched:
        patched.setattr(module, "_run_in_savepoint", broken)
        with pytest.raises(apsw.IOError, match="the disk"):
            ledger.write(insert("a"))
    ledger.write(insert("b"))
    assert texts(ledger.path) == ["b"]


def test_a_cancelled_write_does_not_run(ledger: Ledger) -> None:
    with blocked(ledger):
        cancelled, kept = ledger.submit(insert("cancelled")), ledger.submit(insert("kept"))
        assert cancelled.cancel()
    kept.result()
    assert texts(ledger.path) == ["kept"]


def test_a_snapshot_sees_one_commit(ledger: Ledger) -> None:
    count = "SELECT count(*) FROM leases"
    with ledger.snapshot() as db:
        assert db.execute(count).get == 0
        ledger.write(insert("a"))
        assert db.execute(count).get == 0
    assert ledger.reader().execute(count).get == 1


def test_each_thread_has_one_connection_which_cannot_write(ledger: Ledger) -> None:
    with pytest.raises(apsw.ReadOnlyError):
        insert("a")(ledger.reader())
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(ledger.reader).result() is not ledger.reader()
    assert ledger.reader() is ledger.reader()


def test_connections_are_durable_and_delete_securely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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

    # Whatever the defaults of this SQLite are.
    monkeypatch.setattr(apsw, "connection_hooks", [lambda db: db.pragma("synchronous", "off")])
    ledger = Ledger(tmp_path / "ledger.db")
    assert settings(ledger.reader()) == expected
    assert ledger.write(settings) == expected
    ledger.close()


def test_every_file_is_opened_through_the_given_vfs(tmp_path: Path) -> None:
    opened: list[str] = []

    class RecordingVfs(apsw.VFS):
        def __init__(self) -> None:
            super().__init__("recording", base="")

        def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:  # noqa: N802
            opened.append(name.filename() if isinstance(name, apsw.URIFilename) else str(name))
            return super().xOpen(name, flags)

    vfs = RecordingVfs()
    ledger = Ledger(tmp_path / "ledger.db", vfs="recording")
    ledger.write(insert("a"))
    for use, times in ((ledger.reader, 1), (ledger.watcher, 1), (ledger.scrub, 2)):  # a connection, and its pages
        opened.clear()
        use()
        assert opened.count(str(ledger.path)) == times
    ledger.close()
    vfs.unregister()


def test_a_watcher_sees_commits_of_this_and_of_other_processes(ledger: Ledger) -> None:
    watcher, other = ledger.watcher(), Ledger(ledger.path)
    versions = [watcher.version()]
    assert watcher.version() == versions[0]
    for writer in (ledger, other):
        writer.write(insert(str(len(versions))))
        versions.append(watcher.version())
    assert len(set(versions)) == 3
    other.close()


def test_a_scrub_empties_the_log_unless_a_reader_needs_it(ledger: Ledger) -> None:
    ledger.write(insert("a"))
    with ledger.snapshot() as db:
        db.execute("SELECT count(*) FROM leases").fetchall()
        ledger.write(insert("b"))
        begin = time.monotonic()
        assert not ledger.scrub()
        assert time.monotonic() - begin < module.BUSY_MS / 2000  # it waits for readers, but less long than writers do
    assert ledger.scrub()
    assert ledger.path.with_name("ledger.db-wal").stat().st_size == 0


def test_close_commits_waiting_writes(ledger: Ledger) -> None:
    reader, watcher = ledger.reader(), ledger.watcher()
    with ThreadPoolExecutor(1) as pool:
        with blocked(ledger):
            futures = [ledger.submit(insert(str(number))) for number in range(5)]
            closing = pool.submit(ledger.close)
            while ledger._waiting.qsize() < 6:  # the five writes and the end
                time.sleep(0.001)
            with pytest.raises(TimeoutError):
                closing.result(timeout=0.05)
        closing.result(timeout=10)
    assert all(future.done() for future in futures)
    assert len(texts(ledger.path)) == 5
    ledger.close()  # a second call does nothing
    for use in (lambda: reader.execute("SELECT 1"), watcher.version):
        with pytest.raises(apsw.ConnectionClosedError):
            use()
    with ThreadPoolExecutor(1) as pool:
        late = (lambda: ledger.submit(insert("late")), ledger.watcher, lambda: pool.submit(ledger.reader).result())
        for call in late:
            with pytest.raises(GalleryError, match=r"^the ledger is closed$"):
                call()


def test_a_process_ends_without_closing_the_ledger(tmp_path: Path) -> None:
    code = "import sys, pathlib, index.embedded.store.ledger as it; it.Ledger(pathlib.Path(sys.argv[1]))"
    root = Path(__file__).parents[3]
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "ledger.db")], cwd=root, check=True, timeout=60)


def test_an_old_sqlite_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apsw, "SQLITE_VERSION_NUMBER", 3_051_002)
    with pytest.raises(GalleryError, match=r"3\.51\.3"):
        Ledger(tmp_path / "ledger.db")
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(apsw, "SQLITE_VERSION_NUMBER", 3_051_003)
    Ledger(tmp_path / "ledger.db").close()


def test_the_ledger_of_a_later_version_is_refused(tmp_path: Path) -> None:
    Ledger(tmp_path / "ledger.db").close()
    with closing(apsw.Connection(str(tmp_path / "ledger.db"))) as connection:
        connection.pragma("user_version", len(STEPS) + 1)
    with pytest.raises(TooNewError, match=f"version {len(STEPS) + 1}") as refused:
        Ledger(tmp_path / "ledger.db")
    assert [path.name for path in tmp_path.iterdir()] == ["ledger.db"]  # no log: every connection is closed
    assert refused.tb is not None  # which would keep an open connection alive


# Migrations.


def test_a_failing_step_keeps_the_version_before_it(tmp_path: Path) -> None:
    with closing(apsw.Connection(str(tmp_path / "a.db"))) as connection:
        good, bad = "CREATE TABLE a (x); INSERT INTO a VALUES (1)", "INSERT INTO a VALUES (2); CREATE TABLE nonsense"
        with pytest.raises(apsw.SQLError):
            migrate(connection, (good, bad))
        assert connection.pragma("user_version") == 1
        for expected in (1, 2, 2):
            assert connection.execute("SELECT count(*) FROM a").get == expected
            migrate(connection, (good, "INSERT INTO a VALUES (2)"))


def test_concurrent_migrations_run_each_step_once(tmp_path: Path) -> None:
    step = "CREATE TABLE a (x); INSERT INTO a VALUES (1)"
    barrier = threading.Barrier(2)

    def trace(_: apsw.Cursor, sql: str, __: object) -> bool:
        if sql.startswith("BEGIN"):
            barrier.wait(10)  # both have read version 0 before either begins
        elif sql.startswith("CREATE"):
            time.sleep(0.1)  # the other would be here, too, if it did not have to wait
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
    with closing(apsw.Connection(str(tmp_path / "a.db"))) as connection:
        assert connection.execute("SELECT count(*) FROM a").get == 1


def test_opening_waits_for_the_process_that_creates_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = apsw.Connection(str(tmp_path / "ledger.db"))
    other.execute("BEGIN IMMEDIATE")  # as another process does for a moment; SQLite does not wait for that
    with ThreadPoolExecutor() as pool:
        opening = pool.submit(Ledger, tmp_path / "ledger.db")
        time.sleep(0.1)
        assert not opening.done()
        other.execute("COMMIT")
        opening.result().close()
    monkeypatch.setattr(module, "BUSY_MS", 100)
    other = apsw.Connection(str(tmp_path / "other.db"))
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(UnavailableError):
        Ledger(tmp_path / "other.db")
    other.execute("COMMIT")
    with closing(Ledger(tmp_path / "other.db")) as ledger:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(UnavailableError):
            ledger.write(insert("a"))


# Functions after the commit, and errors.


def test_the_function_after_a_commit_runs_once_for_all_writes(ledger: Ledger) -> None:
    calls: list[list[str]] = []

    def after(db: apsw.Connection) -> None:
        assert not db.in_transaction
        calls.append([row[0] for row in db.execute("SELECT name FROM leases ORDER BY name")])

    with blocked(ledger):
        futures = [ledger.submit(write, after) for write in (insert("a"), insert("b"), fail)]
    for future in futures[:2]:
        future.result()
    for future in (futures[2], ledger.submit(fail, after)):
        with pytest.raises(ValueError, match="no"):
            future.result()
    assert calls == [["a", "b"]]


def test_an_error_after_the_commit_is_raised_to_the_writes_that_named_the_function(ledger: Ledger) -> None:
    def full(db: apsw.Connection) -> None:
        raise OSError(errno.ENOSPC, "no space")

    with blocked(ledger):
        futures = [ledger.submit(insert("a"), full), ledger.submit(insert("b"))]
    with pytest.raises(DiskFullError, match="no space"):
        futures[0].result()
    futures[1].result()
    assert texts(ledger.path) == ["a", "b"]  # both are committed
    assert ledger.full_at is not None


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (apsw.CorruptError("bad page"), CorruptError),
        (apsw.NotADBError("no header"), CorruptError),
        (apsw.CantOpenError("no folder"), GalleryError),
        (apsw.FullError("no space"), DiskFullError),
        (apsw.BusyError("locked"), UnavailableError),
    ],
)
def test_errors_of_sqlite_become_errors_of_the_gallery(error: apsw.Error, kind: type[GalleryError]) -> None:
    with pytest.raises(GalleryError) as caught, module.gallery_errors(Path("a.db")):
        raise error
    assert (type(caught.value), caught.value.__cause__) == (kind, error)
    with pytest.raises(ValueError, match="other"), module.gallery_errors(Path("a.db")):
        raise ValueError("other")


def test_a_damaged_ledger_is_named_when_it_is_opened(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_bytes(b"no database" * 1000)
    with pytest.raises(CorruptError, match=r"ledger\.db: "):
        Ledger(tmp_path / "ledger.db")


# A full disk.


@pytest.mark.parametrize("cache_pages", [2000, 1])
def test_a_full_disk_is_noticed(ledger: Ledger, cache_pages: int) -> None:
    """With a small cache SQLite notices it during the write, and rolls back the whole transaction itself."""

    def fill(db: apsw.Connection) -> None:
        for number in range(200):
            insert(f"{number}{'x' * 4000}")(db)

    def limit(db: apsw.Connection) -> None:
        db.pragma("cache_size", cache_pages)
        db.pragma("max_page_count", db.pragma("page_count") + 5)

    ledger.write(limit)
    assert ledger.full_at is None
    with pytest.raises(DiskFullError):
        ledger.write(fill)
    assert ledger.full_at is not None
    assert texts(ledger.path) == []
    ledger.write(insert("small"))
    assert texts(ledger.path) == ["small"]


def test_an_error_that_rolled_back_the_transaction_is_raised_to_all_writes(ledger: Ledger) -> None:
    def roll_back(db: apsw.Connection) -> None:
        db.execute("ROLLBACK")
        raise apsw.FullError("full")

    with blocked(ledger):
        futures = [ledger.submit(insert("a")), ledger.submit(roll_back)]
    for future in futures:
        with pytest.raises(DiskFullError, match="full"):
            future.result()
    ledger.write(insert("b"))
    assert texts(ledger.path) == ["b"]


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, ""), True),
        (OSError(errno.EDQUOT, ""), True),
        (OSError(errno.EIO, ""), False),
        (DiskFullError(), True),
        (GalleryError(), False),
    ],
)
def test_errors_that_mean_a_full_disk(error: Exception, full: bool) -> None:
    assert is_disk_full(error) is full


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")

    def chunks() -> Iterator[bytes]:
        yield b"new"
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(tmp_path / "a", chunks())
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"old")]
