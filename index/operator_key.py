"""The operator's key, and the encryption on which all encryption of a gallery is based: AES-256-GCM (NIST SP 800-38D).

Ciphertexts begin with a random nonce of 96 bits and end with the tag.
"""

from __future__ import annotations

import base64
import hmac
import secrets
from typing import TypeAlias

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from index.errors import InvalidError, LockedError

KEY_BYTES, NONCE_BYTES, TAG_BYTES = 32, 12, 16
# Bytes that encryption adds to a value.
OVERHEAD = NONCE_BYTES + TAG_BYTES

SETTINGS = "VESTIBULE_ENCRYPTION_KEY or VESTIBULE_ENCRYPTION_KEY_FILE"

Data: TypeAlias = bytes | bytearray | memoryview


class OperatorKey:
    """The operator's key, which encrypts ("wraps") the data keys of collections and of exports, and nothing else.

    `id` identifies the key without revealing it.

    Raises:
        InvalidError: it does not have 32 bytes.
    """

    def __init__(self, key: bytes):
        if len(key) != KEY_BYTES:
            raise InvalidError(f"expected a key of {KEY_BYTES} bytes, got {len(key)}")
        self.id = derived_key(key, "id")[:8].hex()
        self._aead = AESGCM(derived_key(key, "wrap"))

    @classmethod
    def from_text(cls, text: str) -> OperatorKey:
        """Return the key from base64, as `openssl rand -base64 32` prints it.

        Raises:
            InvalidError: not base64, or not 32 bytes.
        """
        try:
            key = base64.b64decode(text.strip(), validate=True)
        except ValueError:
            raise InvalidError("expected a key in base64") from None
        return cls(key)

    def wrap(self, key: bytes, about: str) -> bytes:
        """Return the data key encrypted, with `about` as associated data."""
        return encrypt(self._aead, key, about.encode())

    def unwrap(self, wrapped: bytes, about: str) -> bytes:
        """Return the data key.

        Raises:
            LockedError: another key wrapped it, or it is damaged.
        """
        try:
            return decrypt(self._aead, wrapped, about.encode())
        except InvalidTag:
            raise LockedError(f"the {about} cannot be unwrapped by the operator's key {self.id}") from None


def matching_key(key: OperatorKey | None, id: str, purpose: str) -> OperatorKey:
    """Return the operator's key if it has this id; the error's text begins with `purpose`.

    Raises:
        LockedError: if there is no operator's key, or it has another id.
    """
    if key is None:
        raise LockedError(f"{purpose} needs the operator's key {id}, but no key is set: set {SETTINGS}")
    if key.id != id:
        raise LockedError(f"{purpose} needs the operator's key {id}, but the key that is set is {key.id}")
    return key


def encrypt(aead: AESGCM, data: Data, about: bytes) -> bytes:
    """Return the ciphertext, with `about` as associated data."""
    nonce = secrets.token_bytes(NONCE_BYTES)
    return nonce + aead.encrypt(nonce, data, about)


def decrypt(aead: AESGCM, data: bytes, about: bytes) -> bytes:
    """Return the content of a ciphertext.

    Raises:
        InvalidTag: it is damaged, or was encrypted by another key or with other associated data.
    """
    if len(data) < OVERHEAD:
        raise InvalidTag
    return aead.decrypt(data[:NONCE_BYTES], data[NONCE_BYTES:], about)


def derived_key(key: bytes, purpose: str) -> bytes:
    """Return the key for one purpose."""
    return hmac.digest(key, b"vestibule " + purpose.encode(), "sha256")
