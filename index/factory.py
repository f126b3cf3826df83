"""Chooses the storage engine: files of this machine, or a database that replicas share.

The only module through which app/ uses an engine while the service runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from index.embedded.keys import EmbeddedKeys
from index.embedded.reloads import FileReloads
from index.embedded.storage import EmbeddedStorage
from index.operator_key import OperatorKey
from index.protocol import KeyStore, ServiceState, Storage

KEYS_FOLDER, RELOADS_FOLDER = "keys", "reloads"


def open_storage(
    folder: Path,
    *,
    key: OperatorKey | None = None,
    database: str | None = None,
    standbys: Sequence[str] = (),
    readers: Sequence[str] = (),
) -> Storage:
    """Open the storage in the folder, which is created if it is missing, or in the database with this URL.

    `key`: that of encrypted collections, which only a folder can have. `standbys`, `readers`: URLs of the database's
    copies, whose files an erasure must leave, too; readers also answer searches.

    Raises:
        GalleryError: the storage cannot be opened. CorruptError: it is damaged. TooNewError: a later version of this
        program wrote it. UnavailableError: the database cannot be reached.
    """
    if database is None:
        return EmbeddedStorage(folder, key=key)
    from index.postgres.storage import PostgresStorage  # psycopg takes a while to import

    return PostgresStorage.open(database, standbys, readers)


@dataclass(frozen=True)
class _FileState:
    keys: EmbeddedKeys
    reloads: FileReloads
    quotas: None = None

    def close(self) -> None:
        self.keys.close()


def open_keys(state: Path, database: str | None = None) -> KeyStore:
    """Return the keys in the state folder, or in the database with this URL. Nothing is opened before the first use."""
    return open_service_state(state, database).keys


def open_service_state(state: Path, database: str | None = None) -> ServiceState:
    """Return what the processes of the service share, in the state folder or in the database with this URL.

    Nothing is opened before the first use.
    """
    if database is None:
        return _FileState(EmbeddedKeys(state / KEYS_FOLDER), FileReloads(state / RELOADS_FOLDER))
    from index.postgres.service_state import PostgresServiceState  # psycopg takes a while to import

    return PostgresServiceState(database)


def is_valid_url(url: str) -> bool:
    """Return whether the URL of a database can be parsed."""
    from psycopg import ProgrammingError
    from psycopg.conninfo import conninfo_to_dict

    try:
        conninfo_to_dict(url)
    except ProgrammingError:
        return False
    return True


def migrate_database(url: str) -> int:
    """Create or migrate the schema of the database with this URL, and return its version.

    Raises:
        UnavailableError: it cannot be reached. TooNewError: a later version of this program has migrated it.
        GalleryError: pgvector is missing or too old, or the role lacks a privilege.
    """
    from index.postgres.store import migrations

    return migrations.migrate_database(url)
