"""Rows of changes with an idempotency key: a repeated change returns the stored result of the first."""

from __future__ import annotations

import hashlib

import apsw

from index.embedded.encryption import AeadCipher
from index.errors import ConflictError
from index.protocol import IDEMPOTENCY_S


def find(db: apsw.Connection, key: str, request: bytes) -> str | None:
    """Return the result that is stored for the key, None if there is none.

    Raises:
        ConflictError: it is of another request.
    """
    row = db.execute("SELECT request, result FROM idempotency_keys WHERE key = ?", (key,)).fetchone()
    if row is None:
        return None
    digest, result = row
    if digest != hashlib.sha256(request).digest():
        raise ConflictError("the Idempotency-Key was used for another request")
    return AeadCipher(request).decrypt(result, "result", key).decode()


def insert(db: apsw.Connection, key: str, request: bytes, result: str) -> None:
    """Store the result for the key, encrypted by `request`, of which only the SHA-256 is stored."""
    db.execute(
        "INSERT INTO idempotency_keys (key, request, result) VALUES (?, ?, ?)",
        (key, hashlib.sha256(request).digest(), AeadCipher(request).encrypt(result.encode(), "result", key)),
    )


def delete_old(db: apsw.Connection) -> None:
    """Delete results that are older than IDEMPOTENCY_S, also those of a clock that was ahead for as long."""
    db.execute(
        "DELETE FROM idempotency_keys"
        " WHERE created_at < unixepoch('subsec') - ?1 OR created_at > unixepoch('subsec') + ?1",
        (IDEMPOTENCY_S,),
    )
