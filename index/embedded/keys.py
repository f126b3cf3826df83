"""API keys in a ledger of their own, which all processes of one machine share, beside their audit log."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import apsw

from index.audit_chain import AuditEvent
from index.embedded.audit import log as audit
from index.embedded.store.ledger import Ledger, Watcher
from index.embedded.store.schema.gallery import AUDITED
from index.errors import ConflictError, NotFoundError
from index.folders import make_folder
from index.types import ApiKey

LEDGER_FILE, AUDIT_FILE = "ledger.db", "audit.log"

STEPS: tuple[str, ...] = (
    """
    CREATE TABLE keys (
        id TEXT PRIMARY KEY,
        hash BLOB NOT NULL UNIQUE,
        name TEXT NOT NULL,
        scopes TEXT NOT NULL,
        created_at REAL NOT NULL,
        expires_at REAL,
        revoked_at REAL,
        rate_per_minute INTEGER,
        concurrency INTEGER
    ) STRICT;
    CREATE TABLE owner (id TEXT NOT NULL) STRICT;
    INSERT INTO owner VALUES (lower(hex(randomblob(16))));
    """,
    AUDITED,
)


class EmbeddedKeys:
    """The keys in a folder, which is created with the first key; see `index.protocol.KeyStore`.

    Raises:
        GalleryError: see `Ledger`. apsw.Error: the folder cannot be read or written.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time):
        self._folder = folder
        self._file = folder / LEDGER_FILE
        self.clock = clock
        self._store: _OpenStore | None = None
        self._opening = threading.Lock()
        self._openings = 0

    def close(self) -> None:
        """See `KeyStore`."""
        if self._store is not None:
            self._store.ledger.close()
            self._store = None

    def version(self) -> int:
        """See `KeyStore`."""
        if self._store is None and not self._file.exists():
            return -1
        store = self._opened()
        # A reopened ledger restarts its version numbers, so they count from a number that no other opening uses.
        return (self._openings << 32) + store.watcher.version()

    def by_hash(self) -> Mapping[bytes, ApiKey]:
        """See `KeyStore`."""
        if self._store is None and not self._file.exists():
            return {}
        return {row[0]: _key(*row[1:]) for row in self._opened().ledger.reader().execute(_ALL)}

    def insert(self, key: ApiKey, hash: bytes) -> None:
        """See `KeyStore`."""
        scopes = json.dumps(sorted(key.scopes))
        row = (key.id, hash, key.name, scopes, key.created_at, key.expires_at, key.rate_per_minute, key.concurrency)

        def write(db: apsw.Connection) -> None:
            db.execute(
                "INSERT INTO keys (id, hash, name, scopes, created_at, expires_at, rate_per_minute, concurrency)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                row,
            )
            audit.record(db, AuditEvent("create_key", key.created_at, of=key.id))

        self._write(write)

    def revoke(self, key: str) -> None:
        """See `KeyStore`."""
        now = self.clock()

        def write(db: apsw.Connection) -> None:
            row = db.execute("SELECT revoked_at FROM keys WHERE id = ?", (key,)).fetchone()
            if row is None:
                raise NotFoundError(f"there is no key {key}")
            if row[0] is not None:
                raise ConflictError(f"the key {key} is revoked already")
            db.execute("UPDATE keys SET revoked_at = ? WHERE id = ?", (now, key))
            audit.record(db, AuditEvent("revoke_key", now, of=key))

        self._write(write)

    def record_reload(self, version: str | None, actor: str | None) -> None:
        """See `KeyStore`."""
        self._write(partial(audit.record, event=AuditEvent("reload", self.clock(), actor, of=version)))

    @property
    def audit(self) -> audit.AuditLog:
        """See `KeyStore`."""
        return self._opened().audit

    def _write(self, write: Callable[[apsw.Connection], None]) -> None:
        store = self._opened()
        store.ledger.write(write)
        store.audit.flush()

    def _opened(self) -> _OpenStore:
        with self._opening:
            if self._store is None:
                make_folder(self._folder)
                with ExitStack() as on_error:
                    ledger = Ledger(self._file, steps=STEPS)
                    on_error.callback(ledger.close)
                    owner = ledger.reader().execute("SELECT id FROM owner").get
                    log = audit.AuditLog(self._folder / AUDIT_FILE, ledger, owner)
                    log.flush(recover=True)
                    self._store = _OpenStore(ledger, ledger.watcher(), log)
                    self._openings += 1
                    on_error.pop_all()
            return self._store


@dataclass(frozen=True)
class _OpenStore:
    ledger: Ledger
    watcher: Watcher
    audit: audit.AuditLog


_ALL = (
    "SELECT hash, id, name, scopes, created_at, expires_at, revoked_at, rate_per_minute, concurrency FROM keys"
    " ORDER BY created_at, id"
)


def _key(id: str, name: str, scopes: str, *rest: float | None) -> ApiKey:
    return ApiKey(id, name, frozenset(json.loads(scopes)), *rest)  # type: ignore[arg-type]  # STRICT columns have these types
