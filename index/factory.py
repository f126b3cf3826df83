"""Chooses the storage engine. The only module through which app/ uses one while the service runs."""

from __future__ import annotations

from pathlib import Path

from index.embedded.storage import EmbeddedStorage
from index.operator_key import OperatorKey
from index.protocol import Storage


def open_storage(folder: Path, *, key: OperatorKey | None = None) -> Storage:
    """Open the storage in the folder, which is created if it is missing. `key`: that of encrypted collections.

    Raises:
        GalleryError: the storage cannot be opened. CorruptError: it is damaged. TooNewError: a later version of this
        program wrote it.
    """
    return EmbeddedStorage(folder, key=key)
