"""API keys: made, found again by their hash, revoked; in a small ledger of their own that every process reads.

A key is 256 random bits. Only its SHA-256 is kept: a slow hash (bcrypt, argon2) protects what people think of, by
making each guess dear, and nobody guesses 256 random bits at any price; it would only make each request dear.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import apsw

from index.embedded.audit import log as audit
from index.embedded.audit.entries import AuditEvent
from index.embedded.audit.log import AuditLog
from index.embedded.store.atomic_files import make_folder
from index.embedded.store.ledger import Ledger, Watcher
from index.embedded.store.migrations import AUDITED
from index.errors import ConflictError, NotFoundError

Scope = Literal["infer", "enrol", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

# A key that lies around is known for what it is: by people, and by programs that look for secrets.
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
class Key:
    """What is known of a key but itself. Times in seconds since 1970; a limit of None is the service's own."""

    id: str
    name: str
    scopes: frozenset[Scope]
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None
    rate_per_minute: int | None = None
    concurrency: int | None = None

    def holds(self, now: float) -> bool:
        """Whether it opens anything at this time."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


class Keys:
    """The keys in a folder, which is made with the first of them.

    Keys that were revoked or ran out are still known: a service that had keys once is not open again without them.

    Raises:
        GalleryError: see `Ledger`. apsw.Error: the folder cannot be read or written.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time):
        self._folder = folder
        self._file = folder / LEDGER_FILE
        self._clock = clock
        self._store: _Store | None = None
        self._opening = threading.Lock()
        self._known: tuple[int, Mapping[bytes, Key]] = (-1, {})

    def close(self) -> None:
        """Let go of the files."""
        if self._store is not None:
            self._store.ledger.close()
            self._store = None

    def known(self) -> Mapping[bytes, Key]:
        """Every key there ever was, by its hash, as of the last commit of any process."""
        if self._store is None and not self._file.exists():
            return {}
        store = self._opened()
        # Before the keys are read: what is committed in between is read the next time.
        version = store.watcher.version()
        if version != self._known[0]:
            self._known = (version, {row[0]: _key(*row[1:]) for row in store.ledger.reader().execute(_ALL)})
        return self._known[1]

    def all(self) -> list[Key]:
        """Every key there ever was, the oldest first."""
        return list(self.known().values())

    def holder(self, secret: str) -> Key | None:
        """The key that this is, if it is one and holds."""
        # What a look-up's time may tell is how a hash begins, and no key can be made to fit that.
        found = self.known().get(_hash(secret))
        return found if found is not None and found.holds(self._clock()) else None

    def create(
        self,
        name: str,
        scopes: Iterable[Scope],
        *,
        expires_at: float | None = None,
        rate_per_minute: int | None = None,
        concurrency: int | None = None,
    ) -> tuple[Key, str]:
        """A new key, and the only time that it is told. It holds once this returns, in every process."""
        secret, now = PREFIX + secrets.token_urlsafe(32), self._clock()
        made = Key(secrets.token_hex(8), name, frozenset(scopes), now, expires_at, None, rate_per_minute, concurrency)
        scope_list = json.dumps(sorted(made.scopes))
        row = (made.id, _hash(secret), name, scope_list, now, expires_at, rate_per_minute, concurrency)

        def write(db: apsw.Connection) -> None:
            db.execute(
                "INSERT INTO keys (id, hash, name, scopes, created_at, expires_at, rate_per_minute, concurrency)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                row,
            )
            audit.record(db, AuditEvent("create_key", now, of=made.id))

        self._write(write)
        return made, secret

    def revoke(self, key: str) -> None:
        """From now on the key opens nothing.

        Raises:
            NotFoundError. ConflictError: it is revoked.
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
        """Put it into the audit log that another version of a model is served (None: none any more)."""
        self._write(partial(audit.record, event=AuditEvent("reload", self._clock(), actor, of=version)))

    @property
    def audit(self) -> AuditLog:
        """The log of what was done to keys and models."""
        return self._opened().audit

    def _write(self, write: Callable[[apsw.Connection], None]) -> None:
        store = self._opened()
        store.ledger.write(write)
        store.audit.flush()

    def _opened(self) -> _Store:
        with self._opening:
            if self._store is None:
                make_folder(self._folder)
                ledger = Ledger(self._file, steps=STEPS)
                log = AuditLog(self._folder / AUDIT_FILE, ledger, ledger.reader().execute("SELECT id FROM owner").get)
                log.flush(recover=True)
                self._store = _Store(ledger, ledger.watcher(), log)
            return self._store


@dataclass(frozen=True)
class _Store:
    ledger: Ledger
    watcher: Watcher
    audit: AuditLog


_ALL = (
    "SELECT hash, id, name, scopes, created_at, expires_at, revoked_at, rate_per_minute, concurrency FROM keys"
    " ORDER BY created_at, id"
)


def _key(id: str, name: str, scopes: str, *rest: float | None) -> Key:
    return Key(id, name, frozenset(json.loads(scopes)), *rest)  # type: ignore[arg-type]  # STRICT columns have these types


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
