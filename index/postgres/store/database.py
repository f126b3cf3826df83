"""A PostgreSQL database: pooled connections, snapshots for reading, and changes that commit in threads of their own.

Every change is one transaction. It is repeated if PostgreSQL aborted it because of a concurrent one. If the connection
fails during a commit, the change may or may not have been made: the caller gets UnavailableError, and repeats the
request with the same idempotency key (`Change.once`).
"""

from __future__ import annotations

import math
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ParamSpec, TypeVar

import psycopg
from pgvector.psycopg import register_vector
from psycopg import IsolationLevel, sql
from psycopg import errors as sql_errors
from psycopg.abc import Buffer
from psycopg.types.numeric import IntDumper, IntNumeric, IntNumericDumper
from psycopg.types.string import StrDumperUnknown
from psycopg_pool import ConnectionPool

from index.engine.committing import CommittingDecorator, EngineChange
from index.errors import ConflictError, DiskFullError, InvalidError, UnavailableError
from index.postgres.store import migrations
from index.postgres.store.sealing import Lookups, seal_with, unseal

P = ParamSpec("P")
T = TypeVar("T")

Row = tuple[Any, ...]


MAX_INT = 2**63 - 1


class _TextDumper(StrDumperUnknown):
    """Sends text with replacements for the characters that PostgreSQL cannot store, NUL and lone surrogates.

    No id, name or token has the replacements: it is not found, as it would not be if it could be sent.
    """

    def dump(self, obj: str) -> Buffer | None:
        return super().dump(obj.replace("\0", "\x01").encode(errors="replace").decode())


class _BoundedIntDumper(IntNumericDumper):
    """Sends numbers beyond 64 bits as the nearest number of 64 bits: no row has an id or a position beyond it."""

    def dump(self, obj: int) -> Buffer | None:
        return super().dump(min(max(obj, -MAX_INT - 1), MAX_INT))


class _IntDumper(IntDumper):
    _int_numeric_dumper = _BoundedIntDumper(IntNumeric)


class Connection(psycopg.Connection[Row]):
    """A connection of the pool. `lookups`: the gallery's."""

    lookups: Lookups


Write = Callable[[Connection], T]

# Connections of one process. Each search holds one; a change waits for one of the writers' threads.
MAX_CONNECTIONS, WRITERS = 16, 8
MEASURE_CLOCK_S = 60.0
CONNECT_S = 10.0  # how long a request waits for a connection
# How often a transaction is tried that PostgreSQL aborts because of a concurrent one, and the pause between two tries.
TRIES, PAUSE_S = 5, 0.02
ABORTED = (sql_errors.SerializationFailure, sql_errors.DeadlockDetected)


class Database:
    """The database at `url`, whose schema is created or migrated. `clock`: for tests; else the time is the database's.

    Raises:
        UnavailableError: it cannot be reached. TooNewError, GalleryError: see `migrations.migrate`.
    """

    def __init__(self, url: str, clock: Callable[[], float] | None = None):
        self._clock = clock
        self._measured = -math.inf, 0.0  # when, and the database's time less the monotonic time
        with _as_gallery_errors(), psycopg.connect(url, autocommit=True) as connection:
            migrations.migrate(connection)
            row = connection.execute("SELECT id, secret FROM gallery").fetchone()
        assert row is not None  # noqa: S101  the first migration inserts it
        self.gallery_id, self._lookups = str(row[0]), Lookups(row[1])
        self._pool = ConnectionPool(
            url,
            connection_class=Connection,
            min_size=1,
            max_size=MAX_CONNECTIONS,
            timeout=CONNECT_S,
            configure=self.configure,
            check=ConnectionPool.check_connection,
            open=True,
        )
        self._writers = ThreadPoolExecutor(WRITERS, thread_name_prefix="postgres")

    def close(self) -> None:
        """Commit the waiting changes and close all connections."""
        self._writers.shutdown()
        self._pool.close()

    def configure(self, connection: Connection) -> None:
        """Prepare a new connection to this database, or to a copy of it."""
        # Whatever the server's default is: a change that waited for another one reads what that committed.
        connection.isolation_level = IsolationLevel.READ_COMMITTED
        connection.lookups = self._lookups
        connection.adapters.register_dumper(str, _TextDumper)
        connection.adapters.register_dumper(int, _IntDumper)
        register_vector(connection)
        connection.commit()

    def clock(self) -> float:
        """Return the database's time in seconds since 1970, computed from a measurement of the last minute.

        Raises:
            UnavailableError: the database cannot be reached.
        """
        if self._clock is not None:
            return self._clock()
        measured, offset = self._measured
        if time.monotonic() - measured > MEASURE_CLOCK_S:
            with self.snapshot() as db:
                measured, offset = time.monotonic(), self.now(db) - time.monotonic()
            self._measured = measured, offset
        return time.monotonic() + offset

    def now(self, db: Connection) -> float:
        """Return the time in seconds since 1970; within a transaction it does not decrease."""
        if self._clock is not None:
            return self._clock()
        return float(scalar(db, sql.SQL("SELECT extract(epoch FROM clock_timestamp())")))

    @contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """Yield a connection in a read-only transaction: all reads see the same commits.

        Raises:
            UnavailableError: the database cannot be reached.
        """
        with _as_gallery_errors(), self._pool.connection() as db:
            db.isolation_level, db.read_only = IsolationLevel.REPEATABLE_READ, True
            try:
                with db.transaction():
                    yield db
            finally:
                db.isolation_level, db.read_only = IsolationLevel.READ_COMMITTED, None

    @contextmanager
    def autocommit(self) -> Iterator[Connection]:
        """Yield a connection outside a transaction, for statements that cannot run in one, such as VACUUM.

        Raises:
            UnavailableError: the database cannot be reached.
        """
        with _as_gallery_errors(), self._pool.connection() as db:
            db.autocommit = True
            try:
                yield db
            finally:
                db.autocommit = False

    def submit(self, write: Write[T]) -> Future[T]:
        """Run `write` in a transaction of its own in another thread; the future has its result once it is durable."""
        return self._writers.submit(self.write, write)

    def write(self, write: Write[T]) -> T:
        """Run `write` in a transaction, and return its result once that is durable. If `write` raises, undo it.

        Raises:
            UnavailableError: the database cannot be reached; the change may have been made. DiskFullError.
        """
        left = TRIES
        while True:
            try:
                with _as_gallery_errors(), self._pool.connection() as db, db.transaction():
                    return write(db)
            except ABORTED as error:
                left -= 1
                if not left:
                    raise UnavailableError("the database was too busy with concurrent changes") from error
                time.sleep(PAUSE_S)


class SharedDatabase:
    """A database that is opened at its first use, and again after `close`."""

    def __init__(self, url: str, clock: Callable[[], float] | None = None):
        self._url = url
        self._clock = clock
        self._opening = threading.Lock()
        self._database: Database | None = None

    def get(self) -> Database:
        """Return the open database.

        Raises:
            UnavailableError, TooNewError, GalleryError: see `Database`.
        """
        with self._opening:
            if self._database is None:
                self._database = Database(self._url, self._clock)
            return self._database

    def close(self) -> None:
        """Close the database, if it is open."""
        with self._opening:
            if self._database is not None:
                self._database.close()
            self._database = None


@contextmanager
def _as_gallery_errors() -> Iterator[None]:
    """Convert errors of the connection, of a full disk and of values."""
    try:
        yield
    except sql_errors.DiskFull as error:
        raise DiskFullError("the database's disk is full") from error
    except ABORTED:
        raise
    except psycopg.DataError as error:
        raise InvalidError("the database cannot store a value") from error
    except (psycopg.OperationalError, psycopg.InterfaceError, sql_errors.ReadOnlySqlTransaction) as error:
        raise UnavailableError("the database cannot be reached, or accepts no changes at present") from error


def scalar(db: Connection, statement: sql.SQL | sql.Composed, values: Row | Mapping[str, Any] = ()) -> Any:
    """Return the first column of the first row; None if there is no row."""
    row = db.execute(statement, values).fetchone()
    return None if row is None else row[0]


def execute_each(db: Connection, statement: sql.SQL | sql.Composed, rows: Sequence[Row]) -> list[Row]:
    """Run the statement once for each of the rows, and return the first row that each run returns, if any do."""
    if len(rows) == 1:  # one round trip to the server instead of three
        cursor = db.execute(statement, rows[0])
        return [cursor.fetchone() or ()] if cursor.description else []
    cursor = db.cursor()
    cursor.executemany(statement, rows, returning=True)
    return [result.fetchone() or () for result in cursor.results() if result.description]


@dataclass(frozen=True)
class Change(EngineChange[Connection, T]):
    """A transaction that is not submitted yet."""

    database: Database

    def once(self, key: str, request: bytes, encode: Callable[[T], str], decode: Callable[[str], T]) -> Change[T]:
        """See `index.protocol.PlannedChange`."""

        def write(db: Connection) -> T:
            # A second transaction with this key waits here until the first has committed or was undone.
            lookup = db.lookups.idempotency(key)
            inserted = db.execute(
                "INSERT INTO idempotency_keys VALUES (%s, %s, '', '', %s) ON CONFLICT DO NOTHING",
                (lookup, request, self.database.now(db)),
            ).rowcount
            if not inserted:
                row = db.execute(
                    "SELECT request, salt, sealed FROM idempotency_keys WHERE lookup = %s", (lookup,)
                ).fetchone()
                if row is None or row[0] != request:
                    raise ConflictError("the Idempotency-Key was used for another request")
                return decode(unseal(db.lookups.idempotency_seal(key, row[1]), row[2]).decode())
            result = self.write(db)
            # The result can name a subject that is erased later: without the client's key, nobody can read it.
            salt = secrets.token_bytes(16)
            sealed = seal_with(db.lookups.idempotency_seal(key, salt), encode(result).encode())
            db.execute("UPDATE idempotency_keys SET salt = %s, sealed = %s WHERE lookup = %s", (salt, sealed, lookup))
            return result

        return replace(self, write=write)

    def submit(self) -> Future[T]:
        """See `Database.submit`."""
        return self.database.submit(self.write)

    def commit(self) -> T:
        """Commit the change in this thread, and return its result."""
        return self.database.write(self.write)


class committing(CommittingDecorator[Connection, P, T]):  # noqa: N801  a decorator
    """Decorate a method that runs in a transaction of `self.database`; see `CommittingDecorator`."""

    def change(self, instance: Any, write: Write[T]) -> Change[T]:
        """See `CommittingDecorator`."""
        return Change(write, instance.database)
