"""Sealing: each value is encrypted by a key of its own, which is stored in the row that an erasure overwrites.

PostgreSQL stores long values apart from their row and leaves the bytes of deleted ones in its files. Whoever has the
row's 32 bytes can read the value; once they are overwritten, nobody can. This does not protect against a reader of the
database: who can read a row can read its key.
"""

from __future__ import annotations

import hmac
import json
import secrets

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from index.errors import CorruptError

_NONCE = bytes(12)  # each key encrypts one value, so that the nonce may be constant
_LOOKUP_BYTES = 16


def seal(value: bytes) -> tuple[bytes, bytes]:
    """Return a new key and the value encrypted by it (AES-256-GCM)."""
    key = secrets.token_bytes(32)
    return key, seal_with(key, value)


def seal_with(key: bytes, value: bytes) -> bytes:
    """Return the value encrypted by the key, 32 bytes, which must encrypt no other value."""
    return AESGCM(key).encrypt(_NONCE, value, None)


def unseal(key: bytes, sealed: bytes) -> bytes:
    """Return the value.

    Raises:
        CorruptError: the value was not sealed with this key, or was changed.
    """
    try:
        return AESGCM(key).decrypt(_NONCE, sealed, None)
    except (InvalidTag, ValueError) as error:
        raise CorruptError("a sealed value is damaged") from error


class Lookups:
    """HMACs under which subjects and values of metadata are found. `secret`: the gallery's."""

    def __init__(self, secret: bytes):
        self._secret = secret

    def subject(self, collection_id: int, key: str) -> bytes:
        """Return the lookup of a subject's key in Unicode form C, 16 bytes."""
        return self._hmac("subject", collection_id, key)[:_LOOKUP_BYTES]

    def value(self, collection_id: int, key: str, value: str | float | bool) -> bytes:
        """Return the lookup of a value of metadata, 16 bytes. Equal numbers have the same one, as 1 and 1.0."""
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        return self._hmac("value", collection_id, key, value)[:_LOOKUP_BYTES]

    def idempotency(self, key: str) -> bytes:
        """Return the lookup of an idempotency key, 16 bytes."""
        return self._hmac("idempotency", key)[:_LOOKUP_BYTES]

    def idempotency_seal(self, key: str, salt: bytes) -> bytes:
        """Return the key that seals the result of the change with this idempotency key, 32 bytes."""
        return self._hmac("idempotency seal", key, salt.hex())

    def _hmac(self, *parts: object) -> bytes:
        return hmac.digest(self._secret, json.dumps(parts).encode(), "sha256")
