"""The truth: one SQLite file in WAL mode, through apsw, which brings a SQLite without the WAL-reset race.

Writes of all threads go to one, which commits all that wait at once (group commit): a write is durable when its future
has a result. Reads have a connection for each thread and see the last commit.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

import apsw

from index.embedded.encryption.data_keys import CollectionKeys, Connection
from index.embedded.store.atomic_files import is_disk_full
from index.embedded.store.migrations import STEPS
from index.embedded.store.secure_delete import MOST_PAGES, Pages, opened
from index.errors import GalleryError, TooNewError

P = ParamSpec("P")
S = TypeVar("S")
T = TypeVar("T")
U = TypeVar("U")

Row = tuple[Any, ...]
Write = Callable[[apsw.Connection], Any]

# Older ones can corrupt a WAL database that several connections write to.
OLDEST_SQLITE = 3_051_003
BUSY_MS = 15_000
MODE_PAUSE_S = 0.01
# How long a scrub waits for readers, and how often it tries to be the first to write after it has emptied the log.
SCRUB_BUSY_MS, SCRUB_TRIES = 200, 10
# What one commit takes at most, so that the first of many is not kept waiting for the last.
AT_ONCE = 512


class Ledger:
    """The ledger in `path`, made or migrated when opened; `steps` are its schema, by default the gallery's.

    Its connections have the `keys` of encrypted collections.

    Raises:
        GalleryError: this SQLite is too old. TooNewError: the file is of a later version.
    """

    def __init__(
        self, path: Path, *, steps: tuple[str, ...] = STEPS, vfs: str | None = None, keys: CollectionKeys | None = None
    ):
        if apsw.SQLITE_VERSION_NUMBER < OLDEST_SQLITE:
            raise GalleryError(f"SQLite {apsw.sqlite_lib_version()} can corrupt a ledger; 3.51.3 or later is needed")
        self.path = path
        self._vfs = vfs
        self.keys = keys or CollectionKeys()
        self._local = threading.local()
        self._readers: list[apsw.Connection] = []
        self._lock = threading.Lock()
        connection = self._connect()
        try:
            migrate(connection, steps)
        except BaseException:
            connection.close()
            raise
        self._waiting: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._closed = False
        self.full_at: float | None = None  # by the monotonic clock: when a write last failed for want of space
        self._writer = threading.Thread(target=self._write_all, args=(connection,), name="ledger", daemon=True)
        self._writer.start()

    def submit(self, write: Callable[[apsw.Connection], T], after: Write | None = None) -> Future[T]:
        """Run `write` in the next transaction; its result is there once that is durable.

        What it raises undoes it alone. `after` runs once for all writes of the transaction that name it, between the
        commit and their results; where it raises, these writes fail although they are committed.

        Raises:
            GalleryError: the ledger is closed.
        """
        future: Future[T] = Future()
        with self._lock:
            if self._closed:
                raise GalleryError("the ledger is closed")
            self._waiting.put((write, future, after))
        return future

    def write(self, write: Callable[[apsw.Connection], T]) -> T:
        """`submit`, and wait."""
        return self.submit(write).result()

    def reader(self) -> apsw.Connection:
        """This thread's connection for reading.

        Raises:
            GalleryError: the ledger is closed.
        """
        connection: apsw.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            with self._lock:
                if self._closed:
                    raise GalleryError("the ledger is closed")
                connection = self._local.connection = self._connect()
                self._readers.append(connection)
            connection.pragma("query_only", True)
        return connection

    @contextmanager
    def snapshot(self) -> Iterator[apsw.Connection]:
        """Several reads that see one commit."""
        connection = self.reader()
        connection.execute("BEGIN")
        try:
            yield connection
        finally:
            connection.execute("COMMIT")

    def watcher(self) -> Watcher:
        """Tells when any connection of any process has committed.

        Raises:
            GalleryError: the ledger is closed.
        """
        with self._lock:
            if self._closed:
                raise GalleryError("the ledger is closed")
            connection = self._connect()
            self._readers.append(connection)
        return Watcher(connection)

    def scrub(self, then: Callable[[apsw.Connection], object] = lambda db: None) -> bool:
        """Leave nothing of deleted rows in the file and in the log; False while a reader of any process is in the way.

        `then` is part of the same: either both are done, durably, or it has not happened. What is deleted meanwhile may
        be left.
        """
        connection = self._connect()
        try:
            connection.set_busy_timeout(SCRUB_BUSY_MS)
            size = connection.pragma("page_size")
            with opened(self.path, size, self._vfs) as pages:
                _commit_something(connection)
                _empty_log(connection)  # which holds pages as they were
                # What is left of a row never moves to another page: whatever is to be found is found now.
                dirty = pages.dirty()
                return any(self._clean(connection, pages, dirty, then) for _ in range(SCRUB_TRIES))
        except apsw.BusyError:
            return False
        finally:
            connection.close()

    def _clean(
        self, connection: apsw.Connection, pages: Pages, dirty: list[int], then: Callable[[apsw.Connection], object]
    ) -> bool:
        """Clean the pages while nobody writes; False where somebody wrote just before."""
        _empty_log(connection)

        def alone(db: apsw.Connection) -> bool:
            if self.path.with_name(f"{self.path.name}-wal").stat().st_size:
                return False
            pages.clean(dirty)
            then(db)
            return True

        if not _commit_something(connection, alone):
            return False
        with suppress(apsw.BusyError):
            _empty_log(connection)
        return True

    def close(self) -> None:
        """Commit what waits, then let go of the file. Threads that read must have ended."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._waiting.put(None)
        self._writer.join()
        for connection in self._readers:
            connection.close()

    def _connect(self) -> apsw.Connection:
        connection = Connection(str(self.path), vfs=self._vfs)
        connection.keys = self.keys
        connection.set_busy_timeout(BUSY_MS)
        _write_ahead(connection)
        connection.pragma("synchronous", "full")
        connection.pragma("foreign_keys", True)
        connection.pragma("secure_delete", True)
        connection.pragma("max_page_count", MOST_PAGES)
        connection.pragma("temp_store", "memory")  # what is sorted or undone must not lie in the temp folder
        return connection

    def _write_all(self, connection: apsw.Connection) -> None:
        try:
            while (batch := self._next()) is not None:
                self._commit(connection, batch)
        finally:
            connection.close()

    def _next(self) -> list[_Waiting] | None:
        """All that waits, at least one; None when the ledger closes."""
        first = self._waiting.get()
        if first is None:
            return None
        batch = [first]
        while len(batch) < AT_ONCE:
            try:
                more = self._waiting.get_nowait()
            except queue.Empty:
                break
            if more is None:
                self._waiting.put(None)
                break
            batch.append(more)
        return batch

    def _commit(self, connection: apsw.Connection, batch: list[_Waiting]) -> None:
        running = [waiting for waiting in batch if waiting[1].set_running_or_notify_cancel()]
        try:
            connection.execute("BEGIN IMMEDIATE")
            outcomes = [_alone(connection, write) for write, _, _ in running]
            connection.execute("COMMIT")
        except Exception as error:  # noqa: BLE001  disk full, or locked for too long: nobody's write is durable
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            for _, future, _ in running:
                self._fail(future, error)
            return
        results = list(zip(running, outcomes, strict=True))
        afterwards = {after for (_, _, after), (_, failure) in results if after and failure is None}
        failures = {after: _attempt(after, connection) for after in afterwards}
        for (_, future, after), (result, failure) in results:
            problem = failure or (failures.get(after) if after else None)
            if problem is None:
                future.set_result(result)
            else:
                self._fail(future, problem)

    def _fail(self, future: Future[Any], error: Exception) -> None:
        if is_disk_full(error):
            self.full_at = time.monotonic()
        future.set_exception(error)


# A write, where its result is awaited, and what to do after the commit.
_Waiting = tuple[Write, Future[Any], Write | None]


@dataclass(frozen=True)
class Change(Generic[T]):
    """A write that is not submitted yet; `after` as in `Ledger.submit`."""

    ledger: Ledger
    write: Callable[[apsw.Connection], T]
    after: Write | None = None

    def then(self, answer: Callable[[T], U]) -> Change[U]:
        """The same change with `answer` of its result, made before the commit: if that raises, nothing is changed."""
        return replace(self, write=lambda db: answer(self.write(db)))  # type: ignore[arg-type,return-value]

    def submit(self) -> Future[T]:
        """See `Ledger.submit`."""
        return self.ledger.submit(self.write, self.after)

    def commit(self) -> T:
        """`submit`, and wait."""
        return self.submit().result()


class Committing(Generic[P, T]):
    """A bound method that `committing` decorates."""

    def __init__(self, plan: Callable[P, Change[T]]):
        self.planned = plan

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """Commit the change, wait until it is durable, and return its result."""
        return self.planned(*args, **kwargs).commit()


class committing(Generic[S, P, T]):  # noqa: N801  a decorator
    """Decorate a method that returns a Change: a call commits it and waits, `method.planned(...)` returns it.

    The second is for callers that await the commit without holding a thread.
    """

    def __init__(self, plan: Callable[Concatenate[S, P], Change[T]]):
        self._plan = plan
        self.__doc__ = plan.__doc__

    def __get__(self, instance: S, owner: type[S]) -> Committing[P, T]:
        return Committing(partial(self._plan, instance))


class Watcher:
    """A connection of its own, since SQLite tells a connection of others' commits only."""

    def __init__(self, connection: apsw.Connection):
        self._connection = connection
        self._lock = threading.Lock()

    def version(self) -> int:
        """Another number after every commit."""
        with self._lock:
            return int(self._connection.pragma("data_version"))


def _commit_something(connection: apsw.Connection, write: Callable[[apsw.Connection], bool] = lambda db: True) -> bool:
    """Make every connection forget the pages it keeps, with what is left in them; after `write`, if that says so.

    Raises:
        apsw.BusyError: others write.
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


def _empty_log(connection: apsw.Connection) -> None:
    """Put all of the write-ahead log into the file.

    Raises:
        apsw.BusyError: a reader needs the log.
    """
    connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)


def _alone(connection: apsw.Connection, write: Write) -> tuple[Any, Exception | None]:
    """The write's result, or what it raised; what it did is then undone."""
    connection.execute("SAVEPOINT one")
    result, failure = None, None
    try:
        result = write(connection)
    except Exception as error:  # it is the caller's, and reaches it by the future
        if not connection.in_transaction:  # for want of space, SQLite has undone the whole transaction
            raise
        connection.execute("ROLLBACK TO one")
        failure = error
    connection.execute("RELEASE one")
    return result, failure


def _attempt(after: Write, connection: apsw.Connection) -> Exception | None:
    """The exception that `after` raises, or None."""
    try:
        after(connection)
    except Exception as error:  # noqa: BLE001  it is the caller's, and reaches it by the future
        return error
    return None


def migrate(connection: apsw.Connection, steps: tuple[str, ...] = STEPS) -> None:
    """Bring the schema to the last of `steps`, each in a transaction of its own.

    Raises:
        TooNewError: it is beyond them already.
    """
    while (version := connection.pragma("user_version")) != len(steps):
        if version > len(steps):
            raise TooNewError(f"the ledger is of version {version}; this program knows {len(steps)}")
        connection.execute("BEGIN IMMEDIATE")
        try:
            if connection.pragma("user_version") == version:  # else another process was faster
                connection.execute(steps[version])
                connection.pragma("user_version", version + 1)
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")


def _write_ahead(connection: apsw.Connection) -> None:
    """Set the mode that the file keeps. Of two that make the file, SQLite lets neither wait for the other."""
    deadline = time.monotonic() + BUSY_MS / 1000
    while True:
        try:
            connection.pragma("journal_mode", "wal")
        except apsw.BusyError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(MODE_PAUSE_S)
        else:
            return
