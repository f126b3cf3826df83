"""Data keys of the encrypted collections: one per collection, stored in the ledger wrapped by the operator's key.

Dropping a collection deletes its data key, and everything encrypted with it becomes unreadable. The operator's key is
never stored. Code with a connection to the ledger calls `cipher_of` to encrypt and decrypt a collection's values.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import Any

import apsw

from index.embedded.encryption.aead import KEY_BYTES, PLAINTEXT, AeadCipher, Cipher, OperatorKey
from index.errors import LockedError

SETTINGS = "VESTIBULE_ENCRYPTION_KEY or VESTIBULE_ENCRYPTION_KEY_FILE"


@dataclass(frozen=True)
class CollectionKeys:
    """The operator's key, if there is one, and the ciphers of the data keys unwrapped so far, by the data keys' names.

    Not by ids of collections: after a rollback the next collection gets the same id again.
    """

    operator: OperatorKey | None = None
    ciphers: dict[str, AeadCipher] = field(default_factory=dict)

    def operator_key(self, id: str, purpose: str) -> OperatorKey:
        """Return the operator's key if it has this id; `purpose` is the subject of the error's sentence.

        Raises:
            LockedError: there is none, or another one.
        """
        if self.operator is None:
            raise LockedError(f"{purpose} needs the operator's key {id}, and none is given: set {SETTINGS}")
        if self.operator.id != id:
            raise LockedError(f"{purpose} needs the operator's key {id}; the one that is given is {self.operator.id}")
        return self.operator


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
        operator = keys.operator_key(wrapped_by, repr(collection))
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
        key = _keys(db).operator_key(wrapped_by, about).unwrap(wrapped, about)
        db.execute(
            "UPDATE collection_keys SET wrapped_by = ?, wrapped = ? WHERE collection_id = ?",
            (new.id, new.wrap(key, about), collection_id),
        )
    return len(rows)


def _about(db: apsw.Connection, collection_id: int) -> str:
    gallery = db.execute("SELECT id FROM gallery").get
    return f"data key of collection {collection_id} of gallery {gallery}"
