"""API keys in the database, which all replicas share.

No request waits for the database: a thread reads changes every half second. So a key that another replica created or
revoked takes effect within a second, and the first key makes all replicas require keys. While the database cannot be
reached, the keys that were read last stay valid for TRUST_S; then all requests that may need a key are refused, also if
there was no key, because the first one may exist by now.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from psycopg import sql

from index.audit_chain import AuditEvent
from index.engine.repeater import Repeater
from index.errors import ConflictError, NotFoundError, UnavailableError
from index.postgres.audit import AuditLog
from index.postgres.store import audit_records
from index.postgres.store.database import Connection, SharedDatabase, scalar
from index.types import ApiKey

REFRESH_S, TRUST_S = 0.5, 60.0

_ALL = (
    "SELECT hash, id, name, scopes, created_at, expires_at, revoked_at, rate_per_minute, concurrency FROM api_keys"
    " ORDER BY created_at, id"
)
# A key is created once, revoked at most once, and never deleted: so this number increases with each change.
_VERSION = sql.SQL("SELECT count(*) + count(revoked_at) FROM api_keys")


@dataclass(frozen=True)
class _Known:
    """The keys as read at the monotonic time `at`. `ahead`: the database's clock less the monotonic one, in seconds."""

    version: int
    by_hash: Mapping[bytes, ApiKey]
    ahead: float
    at: float


class PostgresKeys:
    """See `index.protocol.KeyStore`."""

    def __init__(self, shared: SharedDatabase, refresh_s: float = REFRESH_S):
        self._shared = shared
        self._refresh_s = refresh_s
        self._known: _Known | None = None
        self._refreshing = threading.Lock()
        self._repeater: Repeater | None = None

    def close(self) -> None:
        """Stop reading changes; the next use starts again."""
        if self._repeater is not None:
            self._repeater.close()
        self._repeater = self._known = None

    def clock(self) -> float:
        """See `KeyStore`. The database's time, as of the last reading of the keys."""
        return time.monotonic() + self._current().ahead

    def version(self) -> int:
        """See `KeyStore`."""
        return self._current().version

    def by_hash(self) -> Mapping[bytes, ApiKey]:
        """See `KeyStore`."""
        return self._current().by_hash

    def insert(self, key: ApiKey, hash: bytes) -> None:
        """See `KeyStore`."""
        scopes = json.dumps(sorted(key.scopes))
        row = (key.id, hash, key.name, scopes, key.created_at, key.expires_at, key.rate_per_minute, key.concurrency)

        def write(db: Connection) -> None:
            db.execute(
                "INSERT INTO api_keys (id, hash, name, scopes, created_at, expires_at, rate_per_minute, concurrency)"
                " VALUES (%s, %s, %s, %s, %s, %s, %s, %s)",
                row,
            )
            audit_records.record(db, AuditEvent("create_key", key.created_at, of=key.id))

        self._shared.get().write(write)
        self._see_own_change()

    def revoke(self, key: str) -> None:
        """See `KeyStore`."""
        database = self._shared.get()

        def write(db: Connection) -> None:
            row = db.execute("SELECT revoked_at FROM api_keys WHERE id = %s FOR UPDATE", (key,)).fetchone()
            if row is None:
                raise NotFoundError(f"there is no key {key}")
            if row[0] is not None:
                raise ConflictError(f"the key {key} is revoked already")
            now = database.now(db)
            db.execute("UPDATE api_keys SET revoked_at = %s WHERE id = %s", (now, key))
            audit_records.record(db, AuditEvent("revoke_key", now, of=key))

        database.write(write)
        self._see_own_change()

    def record_reload(self, version: str | None, actor: str | None) -> None:
        """See `KeyStore`."""
        database = self._shared.get()

        def write(db: Connection) -> None:
            audit_records.record(db, AuditEvent("reload", database.now(db), actor, of=version))

        database.write(write)

    @property
    def audit(self) -> AuditLog:
        """The gallery's audit log, which has the events of keys and models, too."""
        return AuditLog(self._shared.get())

    def refresh(self) -> _Known:
        """Read the keys if they have changed, and return them.

        Raises:
            UnavailableError.
        """
        with self._refreshing:
            at, known, database = time.monotonic(), self._known, self._shared.get()
            with database.snapshot() as db:
                version, now = scalar(db, _VERSION), database.now(db)
                if known is not None and known.version == version:
                    by_hash = known.by_hash
                else:
                    by_hash = {row[0]: _key(*row[1:]) for row in db.execute(_ALL)}
            self._known = _Known(version, by_hash, now - time.monotonic(), at)
            return self._known

    def _current(self) -> _Known:
        """Return the keys, of at most TRUST_S ago.

        Raises:
            UnavailableError.
        """
        known = self._known
        if known is None or self._repeater is None:
            known = self._start()
        if time.monotonic() - known.at > TRUST_S:
            raise UnavailableError("the API keys cannot be read: the database cannot be reached")
        return known

    def _start(self) -> _Known:
        known = self.refresh()
        with self._refreshing:
            if self._repeater is None:
                self._repeater = Repeater("keys", self._refresh_s, self.refresh)
        return known

    def _see_own_change(self) -> None:
        with suppress(UnavailableError):  # the change is durable; the thread reads it later
            self.refresh()


def _key(id: str, name: str, scopes: str, *rest: float | None) -> ApiKey:
    return ApiKey(id, name, frozenset(json.loads(scopes)), *rest)  # type: ignore[arg-type]  # the columns' types
