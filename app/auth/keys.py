"""API keys: create, look up by hash and revoke them, in a ledger that all processes share.

A key is 256 random bits, of which only the SHA-256 is stored. A slow hash (bcrypt, argon2) protects guessable passwords
by making each guess expensive; 256 random bits cannot be guessed, and it would make each request expensive.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import apsw

from index.audit_chain import AuditEvent
from index.embedded.audit import log as audit
from index.embedded.store.atomic_files import make_folder
from index.embedded.store.ledger import Ledger, Watcher
from index.embedded.store.migrations import AUDITED
from index.errors import ConflictError, NotFoundError

Scope = Literal["infer", "enrol", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

# The prefix of every key, by which people and secret scanners recognise a leaked one.
PREFIX = "vst_"
FOLDER, LEDGER_FILE, AUDIT_FILE = "keys", "ledger.db", "audit.log"

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


@dataclass(frozen=True)
class ApiKey:
    """A key without its secret. Times in seconds since 1970; where a limit is None the service's default applies."""

    id: str
    name: str
    scopes: frozenset[Scope]
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None
    rate_per_minute: int | None = None
    concurrency: int | None = None

    def is_valid(self, now: float) -> bool:
        """Whether the key is neither revoked nor expired at this time."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


class ApiKeys:
    """The keys in a folder, which is created with the first key.

    Revoked and expired keys stay in it, so that a service that had keys once never becomes open again.

    Raises:
        GalleryError: see `Ledger`. apsw.Error: the folder cannot be read or written.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time):
        self._folder = folder
        self._file = folder / LEDGER_FILE
        self._clock = clock
        self._store: _OpenStore | None = None
        self._opening = threading.Lock()
        self._cached: tuple[int, Mapping[bytes, ApiKey]] = (-1, {})

    def close(self) -> None:
        """Close the files."""
        if self._store is not None:
            self._store.ledger.close()
            self._store, self._cached = None, (-1, {})  # a reopened ledger restarts its version numbers

    def by_hash(self) -> Mapping[bytes, ApiKey]:
        """Return every key ever created by its hash, oldest first, as of the last commit of any process."""
        if self._store is None and not self._file.exists():
            return {}
        store = self._opened()
        # Read before the keys, so that a commit in between is noticed by the next call.
        version = store.watcher.version()
        if version != self._cached[0]:
            self._cached = (version, {row[0]: _key(*row[1:]) for row in store.ledger.reader().execute(_ALL)})
        return self._cached[1]

    def all(self) -> list[ApiKey]:
        """Return every key ever created, oldest first."""
        return list(self.by_hash().values())

    def find_valid(self, secret: str) -> ApiKey | None:
        """Return the key with this secret if it is valid now, else None."""
        # The time of the look-up can reveal how a stored hash begins, from which no secret can be derived.
        key = self.by_hash().get(_hash(secret))
        return key if key is not None and key.is_valid(self._clock()) else None

    def create(
        self,
        name: str,
        scopes: Iterable[Scope],
        *,
        expires_at: float | None = None,
        rate_per_minute: int | None = None,
        concurrency: int | None = None,
    ) -> tuple[ApiKey, str]:
        """Create a key and return it with its secret, which is not stored. Every process accepts it from now on."""
        secret, now = PREFIX + secrets.token_urlsafe(32), self._clock()
        key = ApiKey(secrets.token_hex(8), name, frozenset(scopes), now, expires_at, None, rate_per_minute, concurrency)
        scope_list = json.dumps(sorted(key.scopes))
        row = (key.id, _hash(secret), name, scope_list, now, expires_at, rate_per_minute, concurrency)

        def write(db: apsw.Connection) -> None:
            db.execute(
                "INSERT INTO keys (id, hash, name, scopes, created_at, expires_at, rate_per_minute, concurrency)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                row,
            )
            audit.record(db, AuditEvent("create_key", now, of=key.id))

        self._write(write)
        return key, secret

    def revoke(self, key: str) -> None:
        """Revoke the key with this id, in every process.

        Raises:
            NotFoundError. ConflictError: it is revoked already.
        """
        now = self._clock()

        def write(db: apsw.Connection) -> None:
            row = db.execute("SELECT revoked_at FROM keys WHERE id = ?", (key,)).fetchone()
            if row is None:
                raise NotFoundError(f"there is no key {key}")
            if row[0] is not None:
                raise ConflictError(f"the key {key} is revoked already")
            db.execute("UPDATE keys SET revoked_at = ? WHERE id = ?", (now, key))
            audit.record(db, AuditEvent("revoke_key", now, of=key))

        self._write(write)

    def note_reload(self, version: str | None, actor: str | None) -> None:
        """Log in the audit log that `version` of a model is now served; None: that the model was removed."""
        self._write(partial(audit.record, event=AuditEvent("reload", self._clock(), actor, of=version)))

    @property
    def audit(self) -> audit.AuditLog:
        """The audit log of changes to keys and models."""
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


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
