"""What an operator has done now and then: the ledger made smaller, the cache made anew, another key."""

from __future__ import annotations

from dataclasses import dataclass

import apsw

from index.embedded.audit import log as audit
from index.embedded.audit.entries import Act
from index.embedded.encryption.aead import OperatorKey
from index.embedded.encryption.data_keys import rewrap
from index.embedded.gallery import EmbeddedGallery
from index.embedded.store.ledger import BUSY_MS
from index.embedded.tasks.compaction import LEASE_S, Limits, Maintenance
from index.errors import GalleryError

# How often the log is tried to be emptied, a fifth of a second each: others may read from it.
_TRIES = 25


@dataclass(frozen=True)
class Compacted:
    """Bytes of all files of the gallery; not `emptied` where others kept on reading from the log."""

    before: int
    after: int
    emptied: bool


def compact(gallery: EmbeddedGallery, limits: Limits | None = None) -> Compacted:
    """A round of maintenance, then the ledger without its free pages. Others can read meanwhile, but not write.

    Raises:
        apsw.BusyError: another kept the ledger locked. apsw.FullError: no room for a second ledger, in the temporary
        folder or here.
    """
    before = _size(gallery)
    maintenance = Maintenance(gallery, limits)
    maintenance.run()
    maintenance.release()
    _vacuum(gallery)
    emptied = any(gallery.ledger.scrub() for _ in range(_TRIES))
    return Compacted(before, _size(gallery), emptied)


def rebuild(gallery: EmbeddedGallery, name: str | None = None, limits: Limits | None = None) -> list[str]:
    """Make all segments and inverted files anew from the ledger, of one collection or of all; their names.

    Searches go on: each old file is there until the new one is.

    Raises:
        NotFoundError: no such collection. GalleryError: another process does the background work. ConflictError.
    """
    collections = gallery.collections(limit=-1) if name is None else [gallery.collection(name)]
    maintenance = Maintenance(gallery, limits)
    if not maintenance.rebuild(collections):
        raise GalleryError(
            f"another process does the gallery's background work; stop it, or wait {LEASE_S:.0f} s where it died"
        )
    maintenance.release()
    return [collection.name for collection in collections]


def rekey(gallery: EmbeddedGallery, new: OperatorKey) -> int:
    """Let the `new` operator's key wrap the data keys of all encrypted collections, and nothing but it; how many.

    Data keys stay, so nothing is encrypted anew: a copy of the ledger from before can be read with the old key still.
    Who has used a collection can go on with it; else the service needs the new key from now on. Afterwards nothing in
    the ledger's files is wrapped by the old one, unless somebody keeps on reading from the log.

    Raises:
        LockedError: the gallery was opened with another key than wrapped them; then nothing has changed.
    """

    def write(db: apsw.Connection) -> int:
        if count := rewrap(db, new):
            audit.note(db, Act("rekey", gallery.clock()))
        return count

    count = gallery.ledger.write(write)
    any(gallery.ledger.scrub() for _ in range(_TRIES))
    return count


def _vacuum(gallery: EmbeddedGallery) -> None:
    # Not a connection of the ledger's: those keep temporary data in memory, where a second ledger may not fit. Its
    # temporary file has no name, and nothing in it that was erased.
    connection = apsw.Connection(str(gallery.ledger.path))
    try:
        connection.set_busy_timeout(BUSY_MS)
        connection.pragma("synchronous", "full")
        connection.pragma("secure_delete", True)
        connection.execute("VACUUM")
    finally:
        connection.close()


def _size(gallery: EmbeddedGallery) -> int:
    return sum(path.stat().st_size for path in gallery.files.parent.rglob("*") if path.is_file())
