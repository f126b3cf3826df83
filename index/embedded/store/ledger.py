"""The ledger: one SQLite file in WAL mode, which is the only source of truth of a gallery.

It is used through apsw, which bundles a SQLite without the WAL-reset race. The writes of all threads are executed by
one thread, which commits all waiting writes in one transaction (group commit): a write is durable when its future has
a result. Each reading thread has its own connection and sees the last commit.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import apsw

from index.embedded.encryption import CollectionKeys, LedgerConnection
from index.embedded.store import migrations
from index.embedded.store.secure_delete import MAX_PAGES, Pages, open_pages
from index.errors import CorruptError, DiskFullError, GalleryError, UnavailableError, is_disk_full

T = TypeVar("T")

Row = tuple[Any, ...]
Write = Callable[[apsw.Connection], Any]

# Older versions can corrupt a WAL database that several connections write to.
OLDEST_SQLITE = 3_051_003
BUSY_MS = 15_000
WAL_RETRY_S = 0.01
# How long a scrub waits for readers, and how often it retries after another process wrote first.
SCRUB_BUSY_MS, SCRUB_TRIES = 200, 10
# How much of the file a reader's connection may keep, as a negative number of KiB: with SQLite's 2 MB the ten rows of
# a search among 200,000 faces take .10 ms instead of .06, because most of their pages must be read from the file.
READER_CACHE = -32 * 1024
# The most writes in one commit; the first waits until the last has run.
MAX_BATCH = 512


class Ledger:
    """The ledger in the file `path`, which is created or migrated when opened.

    `steps`: the migrations of its schema, by default the gallery's. `keys`: the keys of encrypted collections.

    Raises:
        GalleryError: SQLite is too old, or cannot open the file. CorruptError: the file is damaged. TooNewError: a
        later version of this program wrote it.
    """

    def __init__(
        self,
        path: Path,
        *,
        steps: tuple[str, ...] = migrations.STEPS,
        vfs: str | None = None,
        keys: CollectionKeys | None = None,
    ):
        if apsw.SQLITE_VERSION_NUMBER < OLDEST_SQLITE:
            raise GalleryError(f"SQLite {apsw.sqlite_lib_version()} can corrupt a ledger; 3.51.3 or later is needed")
        self.path = path
        self._vfs = vfs
        self.keys = keys or CollectionKeys()
        self._local = threading.local()
        self._readers: list[apsw.Connection] = []
        self._lock = threading.Lock()
        with gallery_errors(path):
            connection = self._connect()
            try:
                migrations.migrate(connection, steps)
            except BaseException:
                connection.close()
                raise
        self._waiting: queue.SimpleQueue[_QueuedWrite | None] = queue.SimpleQueue()
        self._closed = False
        self.full_at: float | None = None  # monotonic time of the last write that failed because the disk was full
        self._writer = threading.Thread(target=self._run_writer, args=(connection,), name="ledger", daemon=True)
        self._writer.start()

    def submit(self, write: Callable[[apsw.Connection], T], after: Write | None = None) -> Future[T]:
        """Run `write` in the next transaction; the future has its result once that is durable.

        The future raises DiskFullError if the disk is full, and UnavailableError if another process locks the ledger
        for longer than BUSY_MS. If `write` raises, only its own changes are undone. `after` runs once per transaction
        for all its writes that name it, after the commit and before their results are set; if it raises, these writes
        fail although they are committed.

        Raises:
            GalleryError: the ledger is closed.
        """
        future: Future[T] = Future()
        with self._open_lock():
            self._waiting.put((write, future, after))
        return future

    def write(self, write: Callable[[apsw.Connection], T]) -> T:
        """Submit `write`, wait until it is durable, and return its result."""
        return self.submit(write).result()

    def reader(self) -> apsw.Connection:
        """Return this thread's connection for reading.

        Raises:
            GalleryError: the ledger is closed.
        """
        if not hasattr(self._local, "connection"):
            self._local.connection = self._connect_reader()
        connection: apsw.Connection = self._local.connection
        return connection

    def snapshot(self) -> AbstractContextManager[apsw.Connection]:
        """Return this thread's connection for reading, which is in a transaction within a `with` statement.

        All reads see the same commit.
        """
        return self.reader()

    def watcher(self) -> Watcher:
        """Return a watcher for commits of any connection of any process.

        Raises:
            GalleryError: the ledger is closed.
        """
        return Watcher(self._connect_reader())

    def scrub(self, then: Callable[[apsw.Connection], object] = lambda db: None) -> bool:
        """Overwrite deleted rows' data in the file and in the log; return False if a reader of any process blocks it.

        `then` runs in the same transaction: both happen, durably, or neither. Rows that are deleted meanwhile may leave
        data.
        """
        connection = self._connect()
        try:
            connection.set_busy_timeout(SCRUB_BUSY_MS)
            size = connection.pragma("page_size")
            with open_pages(self.path, size, self._vfs) as pages:
                _invalidate_page_caches(connection)
                _truncate_wal(connection)  # the log contains earlier versions of pages
                # Remains of a row never move to another page, so one search before the lock is enough.
                dirty = pages.dirty()
                return any(self._clean(connection, pages, dirty, then) for _ in range(SCRUB_TRIES))
        except apsw.BusyError:
            return False
        finally:
            connection.close()

    def _clean(
        self, connection: apsw.Connection, pages: Pages, dirty: list[int], then: Callable[[apsw.Connection], object]
    ) -> bool:
        """Clean the pages under the write lock; return False if another connection wrote before it was taken."""
        _truncate_wal(connection)

        def clean(db: apsw.Connection) -> bool:
            if self.path.with_name(f"{self.path.name}-wal").stat().st_size:
                return False
            pages.clean(dirty)
            then(db)
            return True

        if not _invalidate_page_caches(connection, clean):
            return False
        with suppress(apsw.BusyError):
            _truncate_wal(connection)
        return True

    def close(self) -> None:
        """Commit the waiting writes and close the file. Reading threads must have ended."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._waiting.put(None)
        self._writer.join()
        for connection in self._readers:
            connection.close()

    @contextmanager
    def _open_lock(self) -> Iterator[None]:
        """Hold the lock; raise GalleryError if the ledger is closed."""
        with self._lock:
            if self._closed:
                raise GalleryError("the ledger is closed")
            yield

    def _connect_reader(self) -> apsw.Connection:
        with self._open_lock():
            connection = self._connect()
            connection.pragma("query_only", True)
            connection.pragma("cache_size", READER_CACHE)
            self._readers.append(connection)
        return connection

    def _connect(self) -> apsw.Connection:
        connection = LedgerConnection(str(self.path), vfs=self._vfs)
        connection.keys = self.keys
        connection.set_busy_timeout(BUSY_MS)
        _enable_wal(connection)
        connection.pragma("synchronous", "full")
        connection.pragma("foreign_keys", True)
        connection.pragma("secure_delete", True)
        connection.pragma("max_page_count", MAX_PAGES)
        connection.pragma("temp_store", "memory")  # sorted rows and undo data must stay out of the temp folder
        return connection

    def _run_writer(self, connection: apsw.Connection) -> None:
        """Commit all queued writes together, again and again until the ledger closes, which queues None."""
        try:
            while (queued := self._waiting.get()) is not None:
                batch = [queued]
                while len(batch) < MAX_BATCH and not self._waiting.empty():
                    if (queued := self._waiting.get()) is None:
                        self._waiting.put(None)
                        break
                    batch.append(queued)
                self._commit(connection, batch)
        finally:
            connection.close()

    def _commit(self, connection: apsw.Connection, batch: list[_QueuedWrite]) -> None:
        running = [queued for queued in batch if queued[1].set_running_or_notify_cancel()]
        try:
            connection.execute("BEGIN IMMEDIATE")
            outcomes = [_run_in_savepoint(connection, write) for write, _, _ in running]
            connection.execute("COMMIT")
        except Exception as error:  # noqa: BLE001  disk full, or locked for too long: no write is durable
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            for _, future, _ in running:
                self._fail(future, error)
            return
        results = list(zip(running, outcomes, strict=True))
        afters = {after for (_, _, after), (_, error) in results if after and error is None}
        after_errors = {after: _error_of(after, connection) for after in afters}
        for (_, future, after), (result, write_error) in results:
            failure = write_error or (after_errors.get(after) if after else None)
            if failure is None:
                future.set_result(result)
            else:
                self._fail(future, failure)

    def _fail(self, future: Future[Any], error: Exception) -> None:
        failure = _translated(error)
        if isinstance(failure, DiskFullError):
            self.full_at = time.monotonic()
        future.set_exception(failure)


# A write, the future of its result, and a function to call after the commit.
_QueuedWrite = tuple[Write, Future[Any], Write | None]


class Watcher:
    """Watches for commits. It has its own connection, because SQLite reports only commits of other connections."""

    def __init__(self, connection: apsw.Connection):
        self._connection = connection
        self._lock = threading.Lock()

    def version(self) -> int:
        """Return a number that differs after every commit."""
        with self._lock:
            return int(self._connection.execute("PRAGMA data_version").get)


@contextmanager
def gallery_errors(path: Path) -> Iterator[None]:
    """Raise SQLite's errors about the file `path` as GalleryError.

    Raises:
        DiskFullError, UnavailableError, CorruptError, or GalleryError for any other error.
    """
    try:
        yield
    except apsw.Error as error:
        failure = _translated(error)
        if failure is error:
            kind = CorruptError if isinstance(error, apsw.CorruptError | apsw.NotADBError) else GalleryError
            failure = kind(f"{path}: {error}")
        raise failure from error


def _translated(error: Exception) -> Exception:
    """Return the gallery's own error for a full disk or a locked ledger, caused by `error`; else `error` itself."""
    failure: GalleryError
    if isinstance(error, apsw.FullError) or is_disk_full(error):
        failure = DiskFullError(str(error))
    elif isinstance(error, apsw.BusyError):
        failure = UnavailableError("another process locks the ledger")
    else:
        return error
    failure.__cause__ = error
    return failure


def _invalidate_page_caches(
    connection: apsw.Connection, write: Callable[[apsw.Connection], bool] = lambda db: True
) -> bool:
    """Commit `write`, so that all connections drop their cached pages, and return its result; if False, roll back.

    Raises:
        apsw.BusyError: another connection writes.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        if done := write(connection):
            connection.pragma("user_version", connection.pragma("user_version"))
            connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
    return done


def _truncate_wal(connection: apsw.Connection) -> None:
    """Move the whole write-ahead log into the database file and truncate it.

    Raises:
        apsw.BusyError: a reader needs the log.
    """
    connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)


def _run_in_savepoint(connection: apsw.Connection, write: Write) -> tuple[Any, Exception | None]:
    """Return the write's result and None; if it raises, undo its changes and return None and the exception."""
    connection.execute("SAVEPOINT one")
    result, failure = None, None
    try:
        result = write(connection)
    except Exception as error:  # the caller gets it from the future
        if not connection.in_transaction:  # the disk is full, and SQLite has rolled back the whole transaction
            raise
        connection.execute("ROLLBACK TO one")
        failure = error
    connection.execute("RELEASE one")
    return result, failure


def _error_of(after: Write, connection: apsw.Connection) -> Exception | None:
    """Run `after`, and return the exception that it raises, or None."""
    try:
        after(connection)
    except Exception as error:  # noqa: BLE001  the caller gets it from the future
        return error
    return None


def _enable_wal(connection: apsw.Connection) -> None:
    """Switch the file to WAL mode; retry while another process creates the file, since SQLite does not wait for it."""
    deadline = time.monotonic() + BUSY_MS / 1000
    while True:
        try:
            connection.pragma("journal_mode", "wal")
        except apsw.BusyError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(WAL_RETRY_S)
        else:
            return
