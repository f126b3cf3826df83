"""API keys: create and revoke them, and look them up by the hash of their secret.

A key is 256 random bits, of which only the SHA-256 is stored. A slow hash (bcrypt, argon2) protects guessable passwords
by making each guess expensive; 256 random bits cannot be guessed, and it would make each request expensive.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Mapping
from typing import Literal, get_args

from index.protocol import AuditLog, KeyStore
from index.types import ApiKey

Scope = Literal["infer", "enrol", "observe", "review", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

# The prefix of every key, by which people and secret scanners recognise a leaked one.
PREFIX = "vst_"


class ApiKeys:
    """The keys in a store.

    Raises:
        GalleryError: the store cannot be opened. UnavailableError: it cannot be read at present.
    """

    def __init__(self, store: KeyStore):
        self._store = store
        self._cached: tuple[int | None, Mapping[bytes, ApiKey]] = (None, {})

    def close(self) -> None:
        """Close the store; the next use opens it again."""
        self._store.close()

    def by_hash(self) -> Mapping[bytes, ApiKey]:
        """Return every key ever created by its hash, oldest first."""
        # Read before the keys, so that a change in between is noticed by the next call.
        version = self._store.version()
        if version != self._cached[0]:
            self._cached = (version, self._store.by_hash())
        return self._cached[1]

    def all(self) -> list[ApiKey]:
        """Return every key ever created, oldest first."""
        return list(self.by_hash().values())

    def find_valid(self, secret: str) -> ApiKey | None:
        """Return the key with this secret if it is valid now, else None."""
        # The time of the look-up can reveal how a stored hash begins, from which no secret can be derived.
        key = self.by_hash().get(_hash(secret))
        return key if key is not None and key.is_valid(self._store.clock()) else None

    def create(
        self,
        name: str,
        scopes: Iterable[Scope],
        *,
        expires_at: float | None = None,
        rate_per_minute: int | None = None,
        concurrency: int | None = None,
    ) -> tuple[ApiKey, str]:
        """Create a key and return it with its secret, which is not stored. Every process accepts it from now on.

        On PostgreSQL, other replicas accept it within a second.
        """
        secret, now = PREFIX + secrets.token_urlsafe(32), self._store.clock()
        key = ApiKey(secrets.token_hex(8), name, frozenset(scopes), now, expires_at, None, rate_per_minute, concurrency)
        self._store.insert(key, _hash(secret))
        return key, secret

    def revoke(self, key: str) -> None:
        """Revoke the key with this id, in every process.

        Raises:
            NotFoundError. ConflictError: it is revoked already.
        """
        self._store.revoke(key)

    def note_reload(self, version: str | None, actor: str | None) -> None:
        """Log in the audit log that `version` of a model is now served; None: that the model was removed."""
        self._store.record_reload(version, actor)

    @property
    def audit(self) -> AuditLog:
        """The audit log of changes to keys and models."""
        return self._store.audit


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
