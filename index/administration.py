"""Operations of an operator on a gallery, whether the service runs or not.

`open_storage` opens any storage engine, `open_gallery` the gallery in a folder of this machine, for the operations that
only such a gallery has.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path

from index import factory
from index.embedded.admin.backup import back_up, restore
from index.embedded.admin.repair import compact, rebuild, rekey
from index.embedded.audit.id_normalisation import Clash
from index.embedded.audit.id_normalisation import clashes as find_clashes
from index.embedded.gallery import LEDGER_FILE
from index.embedded.gallery import EmbeddedGallery as LocalGallery
from index.embedded.store.ledger import gallery_errors
from index.operator_key import OperatorKey
from index.protocol import Storage

__all__ = [
    "LocalGallery",
    "back_up",
    "clashes",
    "compact",
    "open_gallery",
    "open_storage",
    "rebuild",
    "rekey",
    "restore",
]


@contextmanager
def open_storage(folder: Path, *, key: OperatorKey | None = None, database: str | None = None) -> Iterator[Storage]:
    """Open the storage in the folder, or in the database with this URL, and close it when the context ends.

    Raises:
        GalleryError: see `index.factory.open_storage`; also for errors of SQLite in the context.
    """
    errors = gallery_errors(folder / LEDGER_FILE) if database is None else nullcontext()
    with errors, closing(factory.open_storage(folder, key=key, database=database)) as storage:
        yield storage


@contextmanager
def open_gallery(folder: Path, *, key: OperatorKey | None = None) -> Iterator[LocalGallery]:
    """Open the gallery for the other functions of this module, and close it when the context ends.

    Raises:
        GalleryError: see `EmbeddedGallery`; also for errors of SQLite in the context.
    """
    with gallery_errors(folder / LEDGER_FILE), closing(LocalGallery(folder, key=key)) as gallery:
        yield gallery


def clashes(gallery: LocalGallery) -> Iterator[Clash]:
    """Yield the names of subjects and collections that could not be normalised to Unicode form C."""
    return find_clashes(gallery.ledger.reader())
