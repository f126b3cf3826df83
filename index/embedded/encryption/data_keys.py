"""Which collections are encrypted, and by which keys: each by a data key of its own, which the operator's key wraps.

The data key lies in the ledger, wrapped, and goes with its collection: then what was sealed by it means nothing. The
operator's key is never written. Who has a connection to the ledger asks `cipher_of` for what a collection's values are
sealed by.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import apsw

from index.embedded.encryption.aead import KEY_BYTES, PLAINTEXT, AeadCipher, Cipher, OperatorKey
from index.errors import LockedError

SETTINGS = "VESTIBULE_ENCRYPTION_KEY or VESTIBULE_ENCRYPTION_KEY_FILE"


@dataclass(frozen=True)
class CollectionKeys:
    """The operator's key, if there is one, and what it has unlocked so far, by names of data keys.

    Not by ids of collections: those of one whose making was undone are given again.
    """

    operator: OperatorKey | None = None
    ciphers: dict[str, AeadCipher] = field(default_factory=dict)

    def wrapping(self, id: str, what: str) -> OperatorKey:
        """The operator's key of that id, for what it is needed for.

        Raises:
            LockedError: it is not here.
        """
        if self.operator is None:
            raise LockedError(f"{what} needs the operator's key {id}, and none is given: set {SETTINGS}")
        if self.operator.id != id:
            raise LockedError(f"{what} needs the operator's key {id}; the one that is given is {self.operator.id}")
        return self.operator


class Connection(apsw.Connection):
    """A connection to a ledger that knows the keys to it."""

    keys = CollectionKeys()


def _keys(db: apsw.Connection) -> CollectionKeys:
    return db.keys if isinstance(db, Connection) else Connection.keys


def insert_key(db: apsw.Connection, collection_id: int) -> None:
    """From now on, before anything is in it, the collection is encrypted.

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
    """What the collection's values are sealed by.

    Raises:
        LockedError: it is encrypted, and the operator's key is not here, or the data key is gone.
    """
    row: tuple[Any, ...] | None = db.execute(
        "SELECT collections.name, encrypted, collection_keys.name, wrapped_by, wrapped FROM collections"
        " LEFT JOIN collection_keys ON collection_id = id WHERE id = ?",
        (collection_id,),
    ).fetchone()
    # Of a collection that was dropped there is nothing.
    collection, encrypted, name, wrapped_by, wrapped = row or (None, False, None, None, None)
    if not encrypted:
        return PLAINTEXT
    if name is None:
        raise LockedError(f"the data key of {collection!r} is gone, and with it all that was sealed by it")
    keys = _keys(db)
    found = keys.ciphers.get(name)
    if found is None:
        operator = keys.wrapping(wrapped_by, repr(collection))
        found = keys.ciphers[name] = AeadCipher(operator.unwrap(wrapped, _about(db, collection_id)))
    return found


def ciphers(db: apsw.Connection) -> Callable[[int], Cipher]:
    """`cipher_of`, for rows of several collections."""
    return cache(partial(cipher_of, db))


def is_locked(db: apsw.Connection, collection_id: int) -> bool:
    """Whether the collection is encrypted, and the operator's key is not here."""
    try:
        cipher_of(db, collection_id)
    except LockedError:
        return True
    return False


def rewrap(db: apsw.Connection, new: OperatorKey) -> int:
    """Let the `new` operator's key wrap every data key that it does not wrap yet; how many.

    Raises:
        LockedError: one was wrapped by a third one.
    """
    rows: list[tuple[Any, ...]] = db.execute(
        "SELECT collection_id, wrapped_by, wrapped FROM collection_keys WHERE wrapped_by != ?", (new.id,)
    ).fetchall()
    for collection_id, wrapped_by, wrapped in rows:
        about = _about(db, collection_id)
        key = _keys(db).wrapping(wrapped_by, about).unwrap(wrapped, about)
        db.execute(
            "UPDATE collection_keys SET wrapped_by = ?, wrapped = ? WHERE collection_id = ?",
            (new.id, new.wrap(key, about), collection_id),
        )
    return len(rows)


def _about(db: apsw.Connection, collection_id: int) -> str:
    gallery = db.execute("SELECT id FROM gallery").get
    return f"data key of collection {collection_id} of gallery {gallery}"
