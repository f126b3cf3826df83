"""Values and files of an encrypted collection: sealed before they are written, unsealed after they are read.

AES-256-GCM (NIST SP 800-38D) by the collection's own data key. What is sealed is a random nonce of 96 bits, the
ciphertext and its tag. It can be unsealed only where it belongs: what it is, and of which row or file, is associated
data. Random nonces are safe for 2**32 values of one key, far more than a collection has in its life.

What is sealed where: docs/adr/0003-encryption-by-collection.md.
"""

from __future__ import annotations

import base64
import hmac
import secrets
import struct
from collections.abc import Iterator
from typing import Protocol, TypeAlias

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from index.errors import CorruptError, InvalidError, LockedError

KEY_BYTES, NONCE_BYTES, TAG_BYTES = 32, 12, 16
# By how much a sealed value is longer.
OVERHEAD = NONCE_BYTES + TAG_BYTES
# Bytes of a file that are sealed together, so that no file is in memory twice, nor larger than a call may be.
PIECE = 2**24


Data: TypeAlias = bytes | bytearray | memoryview


class Cipher(Protocol):
    """What becomes of a collection's values before they are written and after they are read.

    `about` says what a value is, and of which row: ids, or texts without "|".
    """

    @property
    def encrypted(self) -> bool:
        """Whether anything is changed at all."""
        ...

    def encrypt(self, data: bytes, *about: object) -> bytes:
        """The value as it is written."""
        ...

    def decrypt(self, data: bytes | None, *about: object) -> bytes:
        """The value that was written there.

        Raises:
            CorruptError: it was not.
        """
        ...

    def lookup(self, text: str) -> str:
        """What stands for a text where rows are found by it: the same for the same text."""
        ...

    def encrypt_file(self, data: Data, *about: Data) -> Iterator[Data]:
        """What is large, as it is written, in pieces; `about` begins with the file's name."""
        ...

    def decrypt_file(self, data: Data, *about: Data) -> Data:
        """What was written so.

        Raises:
            CorruptError: it was not.
        """
        ...

    def encrypted_size(self, size: int) -> int:
        """How many bytes `seal` makes of so many."""
        ...

    def encrypted_file_size(self, size: int) -> int:
        """How many bytes `seal_file` makes of so many."""
        ...


class PlaintextCipher:
    """Of a collection that is not encrypted: all is written as it is."""

    encrypted = False

    def encrypt(self, data: bytes, *about: object) -> bytes:
        """See `Cipher`."""
        return data

    def decrypt(self, data: bytes | None, *about: object) -> bytes:
        """See `Cipher`."""
        return data or b""

    def lookup(self, text: str) -> str:
        """See `Cipher`."""
        return text

    def encrypt_file(self, data: Data, *about: Data) -> Iterator[Data]:
        """See `Cipher`."""
        yield data

    def decrypt_file(self, data: Data, *about: Data) -> Data:
        """See `Cipher`."""
        return data

    def encrypted_size(self, size: int) -> int:
        """See `Cipher`."""
        return size

    def encrypted_file_size(self, size: int) -> int:
        """See `Cipher`."""
        return size


class AeadCipher:
    """Of an encrypted collection, by its data key of 32 bytes."""

    encrypted = True

    def __init__(self, key: bytes):
        self._aead = AESGCM(_derived(key, "seal"))
        self._lookup = _derived(key, "lookup")

    def encrypt(self, data: bytes, *about: object) -> bytes:
        """See `Cipher`."""
        return _seal(self._aead, data, _text(about))

    def decrypt(self, data: bytes | None, *about: object) -> bytes:
        """See `Cipher`."""
        try:
            return _unseal(self._aead, data or b"", _text(about))
        except InvalidTag:
            raise CorruptError(f"the sealed {about[0]} of {about[-1]} is not what was written") from None

    def lookup(self, text: str) -> str:
        """See `Cipher`: 128 bits of an HMAC-SHA256, in hexadecimal digits."""
        return hmac.digest(self._lookup, text.encode(), "sha256")[:16].hex()

    def encrypt_file(self, data: Data, *about: Data) -> Iterator[Data]:
        """See `Cipher`: each piece is bound to its place, and to the size of the whole."""
        whole = memoryview(data)
        for number, start in enumerate(range(0, len(whole), PIECE)):
            yield _seal(self._aead, whole[start : start + PIECE], _piece(about, number, len(whole)))

    def decrypt_file(self, data: Data, *about: Data) -> Data:
        """See `Cipher`."""
        sealed, longer = memoryview(data), PIECE + OVERHEAD
        size = max(0, len(sealed) - OVERHEAD * -(-len(sealed) // longer))
        found = bytearray(size)
        try:
            for number, start in enumerate(range(0, len(sealed), longer)):
                nonce, piece = sealed[start:][:NONCE_BYTES], sealed[start + NONCE_BYTES : start + longer]
                into = memoryview(found)[number * PIECE :][:PIECE]
                self._aead.decrypt_into(nonce, piece, _piece(about, number, size), into)
        except (InvalidTag, ValueError):
            raise CorruptError(f"{bytes(about[0]).decode()} has something sealed that was not written there") from None
        return found

    def encrypted_size(self, size: int) -> int:
        """See `Cipher`."""
        return size + OVERHEAD

    def encrypted_file_size(self, size: int) -> int:
        """See `Cipher`."""
        return size + OVERHEAD * -(-size // PIECE)


PLAINTEXT = PlaintextCipher()


class OperatorKey:
    """Encrypts the data keys of collections and of exports, and nothing else. `id` tells it from others, openly.

    Raises:
        InvalidError: not 32 bytes.
    """

    def __init__(self, key: bytes):
        if len(key) != KEY_BYTES:
            raise InvalidError(f"expected a key of {KEY_BYTES} bytes, got {len(key)}")
        self.id = _derived(key, "id")[:8].hex()
        self._aead = AESGCM(_derived(key, "wrap"))

    @classmethod
    def from_text(cls, text: str) -> OperatorKey:
        """Of base64, as `openssl rand -base64 32` prints it.

        Raises:
            InvalidError: not base64, or not of 32 bytes.
        """
        try:
            key = base64.b64decode(text.strip(), validate=True)
        except ValueError:
            raise InvalidError("expected a key in base64") from None
        return cls(key)

    def wrap(self, key: bytes, about: str) -> bytes:
        """A data key as it may be written."""
        return _seal(self._aead, key, about.encode())

    def unwrap(self, wrapped: bytes, about: str) -> bytes:
        """The data key.

        Raises:
            LockedError: it was wrapped by another key, or is not what was written.
        """
        try:
            return _unseal(self._aead, wrapped, about.encode())
        except InvalidTag:
            raise LockedError(f"the {about} cannot be unwrapped by the operator's key {self.id}") from None


def _seal(aead: AESGCM, data: Data, about: bytes) -> bytes:
    nonce = secrets.token_bytes(NONCE_BYTES)
    return nonce + aead.encrypt(nonce, data, about)


def _unseal(aead: AESGCM, data: bytes, about: bytes) -> bytes:
    if len(data) < OVERHEAD:
        raise InvalidTag
    return aead.decrypt(data[:NONCE_BYTES], data[NONCE_BYTES:], about)


def _derived(key: bytes, purpose: str) -> bytes:
    """A key of its own for each purpose."""
    return hmac.digest(key, b"vestibule " + purpose.encode(), "sha256")


def _text(about: tuple[object, ...]) -> bytes:
    return "|".join(map(str, about)).encode()


def _piece(about: tuple[Data, ...], number: int, size: int) -> bytes:
    return b"".join((*about, struct.pack("<QQ", number, size)))
