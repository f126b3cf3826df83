"""Chooses the storage engine. The only module through which app/ uses one while the service runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from index.embedded.storage import EmbeddedStorage
from index.operator_key import OperatorKey
from index.protocol import Storage


def open_storage(
    folder: Path, *, key: OperatorKey | None = None, database: str | None = None, standbys: Sequence[str] = ()
) -> Storage:
    """Open the storage in the folder, which is created if it is missing, or in the database with this URL.

    `key`: that of encrypted collections, which only a folder can have. `standbys`: URLs of the database's copies, whose
    files an erasure must leave, too.

    Raises:
        GalleryError: the storage cannot be opened. CorruptError: it is damaged. TooNewError: a later version of this
        program wrote it. UnavailableError: the database cannot be reached.
    """
    if database is None:
        return EmbeddedStorage(folder, key=key)
    from index.postgres.storage import PostgresStorage  # psycopg takes a while to import

    return PostgresStorage.open(database, standbys)
