"""Operations of an operator on the gallery in a folder of this machine, whether the service runs or not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from index.embedded.admin.backup import back_up, restore
from index.embedded.admin.parquet import export_collection, import_collection
from index.embedded.admin.repair import compact, rebuild, rekey
from index.embedded.admin.verify import find_faults
from index.embedded.audit.id_normalisation import Clash
from index.embedded.audit.id_normalisation import clashes as find_clashes
from index.embedded.gallery import LEDGER_FILE
from index.embedded.gallery import EmbeddedGallery as LocalGallery
from index.embedded.store.ledger import gallery_errors
from index.operator_key import OperatorKey

__all__ = [
    "LocalGallery",
    "back_up",
    "clashes",
    "compact",
    "export_collection",
    "find_faults",
    "import_collection",
    "ledger_bytes",
    "open_gallery",
    "rebuild",
    "rekey",
    "restore",
]


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


def ledger_bytes(gallery: LocalGallery) -> int:
    """Return the size of the ledger with its write-ahead log."""
    path = gallery.ledger.path
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))
