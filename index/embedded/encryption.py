"""Encryption of values and files of an encrypted collection: AES-256-GCM (NIST SP 800-38D) with its own data key.

Ciphertexts begin with a random nonce of 96 bits and end with the tag. The associated data names the kind of a value and
its row or file, so a value that is moved to another row cannot be decrypted. Random nonces are safe for 2**32 values
per key, far more than a collection ever has.

Which values are encrypted: docs/adr/0003-encryption-by-collection.md.

The data key of a collection is random, and stored in the ledger wrapped (encrypted) by the operator's key, which is
never stored. Dropping a collection deletes its data key, and everything encrypted with it becomes unreadable. Code with
a connection to the ledger calls `cipher_of` to encrypt and decrypt a collection's values.
"""

from __future__ import annotations

import hmac
import secrets
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import apsw
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from index.errors import CorruptError, LockedError
from index.operator_key import (
    KEY_BYTES,
    NONCE_BYTES,
    OVERHEAD,
    SETTINGS,
    Data,
    OperatorKey,
    decrypt,
    derived_key,
    encrypt,
    matching_key,
)

# Bytes of a file per ciphertext: no file is copied in memory as a whole, and AESGCM accepts less than 2**31 bytes.
CHUNK_BYTES = 2**24


class Cipher:
    """Encrypts and decrypts the values of a collection. This base class, for unencrypted collections, changes nothing.

    The parts of the associated data (`about`) are the kind of value and the ids of its row: numbers, or texts without
    "|". Those of a file are bytes and begin with its name.
    """

    encrypted = False
    overhead = 0  # bytes that encryption adds to a value, or to a chunk of a file

    def encrypt(self, data: bytes, *about: object) -> bytes:
        """Return the value's stored form."""
        return data

    def decrypt(self, data: bytes | None, *about: object) -> bytes:
        """Return the value of a stored form.

        Raises:
            CorruptError: if it was changed, or moved from another row.
        """
        return data or b""

    def lookup(self, text: str) -> str:
        """Return the text to store for finding rows by `text`: equal for equal texts."""
        return text

    def encrypt_file(self, data: Data, *about: Data) -> Iterator[Data]:
        """Yield the stored form of a file's content, chunk by chunk."""
        yield data

    def decrypt_file(self, data: Data, *about: Data) -> Data:
        """Return the content of a file from its stored form.

        Raises:
            CorruptError: it was changed, or belongs to another file.
        """
        return data

    def encrypted_file_size(self, size: int) -> int:
        """Return the stored size in bytes of a file of `size` bytes."""
        return size + self.overhead * -(-size // CHUNK_BYTES)


class AeadCipher(Cipher):
    """Cipher of an encrypted collection with the given data key of 32 bytes."""

    encrypted = True
    overhead = OVERHEAD

    def __init__(self, key: bytes):
        self._aead = AESGCM(derived_key(key, "seal"))
        self._lookup_key = derived_key(key, "lookup")

    def encrypt(self, data: bytes, *about: object) -> bytes:
        """See `Cipher`."""
        return encrypt(self._aead, data, _joined(about))

    def decrypt(self, data: bytes | None, *about: object) -> bytes:
        """See `Cipher`."""
        try:
            return decrypt(self._aead, data or b"", _joined(about))
        except InvalidTag:
            raise CorruptError(f"the encrypted {about[0]} of {about[-1]} is damaged or misplaced") from None

    def lookup(self, text: str) -> str:
        """Return 128 bits of the text's HMAC-SHA256 in hexadecimal; see `Cipher`."""
        return hmac.digest(self._lookup_key, text.encode(), "sha256")[:16].hex()

    def encrypt_file(self, data: Data, *about: Data) -> Iterator[Data]:
        """See `Cipher`. The associated data of a chunk includes its number and the size of the whole content."""
        content = memoryview(data)
        for number, start in enumerate(range(0, len(content), CHUNK_BYTES)):
            chunk = content[start : start + CHUNK_BYTES]
            yield encrypt(self._aead, chunk, _about_chunk(about, number, len(content)))

    def decrypt_file(self, data: Data, *about: Data) -> Data:
        """See `Cipher`."""
        stored, stored_chunk = memoryview(data), CHUNK_BYTES + OVERHEAD
        size = max(0, len(stored) - OVERHEAD * -(-len(stored) // stored_chunk))
        content = bytearray(size)
        try:
            for number, start in enumerate(range(0, len(stored), stored_chunk)):
                nonce, chunk = stored[start:][:NONCE_BYTES], stored[start + NONCE_BYTES : start + stored_chunk]
                target = memoryview(content)[number * CHUNK_BYTES :][:CHUNK_BYTES]
                self._aead.decrypt_into(nonce, chunk, _about_chunk(about, number, size), target)
        except (InvalidTag, ValueError):
            raise CorruptError(f"{bytes(about[0]).decode()}: the encrypted content is damaged or misplaced") from None
        return content


PLAINTEXT = Cipher()


@dataclass(frozen=True)
class CollectionKeys:
    """The operator's key, if there is one, and the ciphers of the data keys unwrapped so far, by the data keys' names.

    The ids of collections cannot be the names: after a rollback the next collection gets the same id again.
    """

    operator: OperatorKey | None = None
    ciphers: dict[str, AeadCipher] = field(default_factory=dict)


class LedgerConnection(apsw.Connection):
    """A connection to a ledger, with the keys of its encrypted collections."""

    keys = CollectionKeys()


def _keys(db: apsw.Connection) -> CollectionKeys:
    return db.keys if isinstance(db, LedgerConnection) else LedgerConnection.keys


def insert_data_key(db: apsw.Connection, collection_id: int) -> None:
    """Insert a new data key for the collection, which must be empty.

    Raises:
        LockedError: there is no operator's key.
    """
    operator = _keys(db).operator
    if operator is None:
        raise LockedError(f"a collection cannot be encrypted without an operator's key: set {SETTINGS}")
    wrapped = operator.wrap(secrets.token_bytes(KEY_BYTES), _about(db, collection_id))
    db.execute(
        "INSERT INTO collection_keys (collection_id, name, wrapped_by, wrapped) VALUES (?, ?, ?, ?)",
        (collection_id, secrets.token_hex(16), operator.id, wrapped),
    )


def cipher_of(db: apsw.Connection, collection_id: int) -> Cipher:
    """Return the collection's cipher; PLAINTEXT where the collection is not encrypted or does not exist.

    Raises:
        LockedError: it is encrypted, and the operator's key or the data key is missing.
    """
    row: tuple[Any, ...] | None = db.execute(
        "SELECT collections.name, encrypted, collection_keys.name, wrapped_by, wrapped FROM collections"
        " LEFT JOIN collection_keys ON collection_id = id WHERE id = ?",
        (collection_id,),
    ).fetchone()
    collection, encrypted, key_name, wrapped_by, wrapped = row or (None, False, None, None, None)
    if not encrypted:
        return PLAINTEXT
    if key_name is None:
        raise LockedError(f"the data key of {collection!r} is gone, and its encrypted data cannot be read without it")
    keys = _keys(db)
    cipher = keys.ciphers.get(key_name)
    if cipher is None:
        operator = matching_key(keys.operator, wrapped_by, repr(collection))
        cipher = keys.ciphers[key_name] = AeadCipher(operator.unwrap(wrapped, _about(db, collection_id)))
    return cipher


def is_locked(db: apsw.Connection, collection_id: int) -> bool:
    """Return whether the collection is encrypted and a key to it is missing."""
    try:
        cipher_of(db, collection_id)
    except LockedError:
        return True
    return False


def rewrap(db: apsw.Connection, new: OperatorKey) -> int:
    """Wrap all data keys with the `new` operator's key, and return how many were wrapped by another one.

    Raises:
        LockedError: a data key is wrapped by a third operator's key.
    """
    rows: list[tuple[Any, ...]] = db.execute(
        "SELECT collection_id, wrapped_by, wrapped FROM collection_keys WHERE wrapped_by != ?", (new.id,)
    ).fetchall()
    for collection_id, wrapped_by, wrapped in rows:
        about = _about(db, collection_id)
        key = matching_key(_keys(db).operator, wrapped_by, about).unwrap(wrapped, about)
        db.execute(
            "UPDATE collection_keys SET wrapped_by = ?, wrapped = ? WHERE collection_id = ?",
            (new.id, new.wrap(key, about), collection_id),
        )
    return len(rows)


def _about(db: apsw.Connection, collection_id: int) -> str:
    gallery = db.execute("SELECT id FROM gallery").get
    return f"data key of collection {collection_id} of gallery {gallery}"


def _joined(about: tuple[object, ...]) -> bytes:
    return "|".join(map(str, about)).encode()


def _about_chunk(about: tuple[Data, ...], number: int, size: int) -> bytes:
    return b"".join((*about, struct.pack("<QQ", number, size)))
