"""Standbys that answer searches in place of the primary.

A change is visible to every process once it is acknowledged. Which changes other processes have made, only the primary
knows: so a search asks it how far its log is written, which includes the commits of all acknowledged changes. A standby
that has replayed the log up to there may answer the search, and otherwise the primary does. It also must follow the
primary's own timeline: after a failover, another standby may have replayed more, but of a log that was given up.

The answer of the primary costs a round trip, and a sixteenth of the processor time of a search of 20,000 faces with
approximate indexes (benchmarks/cluster/readers.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import psycopg
from psycopg import IsolationLevel, sql
from psycopg_pool import ConnectionPool

from index.postgres.store.database import MAX_CONNECTIONS, Connection, Database, Row, scalar

CONNECT_S = 2.0  # how long a search waits for a connection to a reader before another server answers it
LOST_MS = 5000  # after how long without an acknowledgement by its machine a connection is given up
UNREACHABLE = "cannot be reached, or has no gallery; other servers answer its searches"

# The primary's timeline and the end of its log; no row if a standby answers in place of the primary.
_END = """
SELECT ('x' || left(pg_walfile_name(pg_current_wal_flush_lsn()), 8))::bit(32)::integer, pg_current_wal_flush_lsn()::text
WHERE NOT pg_is_in_recovery()
"""
_HAS_REPLAYED = "SELECT received_tli = %s AND pg_last_wal_replay_lsn() >= %s::pg_lsn FROM pg_stat_wal_receiver"
_STATE = "SELECT id, (SELECT received_tli FROM pg_stat_wal_receiver) FROM gallery"


class Reader:
    """The standby at `url`. `problem`: why it answers no searches, None if it may; see `check`."""

    def __init__(self, name: str, url: str, database: Database):
        self._name = name
        self._gallery_id = database.gallery_id
        self._configure_as_in = database.configure
        self._pool = ConnectionPool(
            url,
            connection_class=Connection,
            min_size=1,
            max_size=MAX_CONNECTIONS,
            timeout=CONNECT_S,
            kwargs={"tcp_user_timeout": LOST_MS},
            configure=self._configure,
            open=True,
        )
        self.problem: str | None = None

    def close(self) -> None:
        """Close all connections."""
        self._pool.close()

    def _configure(self, connection: Connection) -> None:
        self._configure_as_in(connection)
        connection.autocommit = True  # the state of replication must be read before the snapshot of a search begins
        connection.isolation_level, connection.read_only = IsolationLevel.REPEATABLE_READ, True

    def check(self) -> None:
        """Update `problem`."""
        try:
            with self._pool.connection() as db:
                gallery_id, timeline = db.execute(_STATE).fetchone() or (None, None)
        except psycopg.Error:
            self.problem = f"{self._name} {UNREACHABLE}"
        else:
            self.problem = (
                f"{self._name} does not have this gallery"
                if gallery_id != self._gallery_id
                else f"{self._name} receives no log of the primary, or its user lacks pg_monitor"
                if timeline is None
                else None
            )

    def has_replayed(self, timeline: int, end: str) -> bool:
        """Return whether the standby follows this timeline and has replayed its log up to `end`."""
        try:
            with self._pool.connection() as db:
                return scalar(db, sql.SQL(_HAS_REPLAYED), (timeline, end)) is True
        except psycopg.Error:
            self.problem = f"{self._name} {UNREACHABLE}"
            return False

    @contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """Yield a connection in a read-only transaction: all reads see the same commits.

        Raises:
            psycopg.Error: the standby cannot be reached, or had to stop a statement in order to replay a change.
        """
        with self._pool.connection() as db, db.transaction():
            yield db


class Readers:
    """The standbys at these addresses, of the database's primary."""

    def __init__(self, database: Database, urls: Sequence[str] = ()):
        self._database = database
        self._readers = [Reader(f"the reader {number}", url, database) for number, url in enumerate(urls, 1)]
        self._turn = 0
        self.check()

    def close(self) -> None:
        """Close all connections."""
        for reader in self._readers:
            reader.close()

    def check(self) -> list[str]:
        """Check all standbys; return why some answer no searches."""
        for reader in self._readers:
            reader.check()
        return [reader.problem for reader in self._readers if reader.problem]

    def current(self) -> Iterator[Reader]:
        """Yield the standbys, the next one first, that have replayed all changes acknowledged before this call.

        Raises:
            UnavailableError: the primary cannot be reached.
        """
        readers = [reader for reader in self._readers if reader.problem is None]
        end = self._end() if readers else None
        if end is not None:
            self._turn += 1
            first = self._turn % len(readers)
            yield from (reader for reader in readers[first:] + readers[:first] if reader.has_replayed(*end))

    def _end(self) -> Row | None:
        with self._database.autocommit() as db:
            return db.execute(_END).fetchone()
