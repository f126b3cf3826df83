"""Occasional maintenance by an operator: compact the ledger, rebuild the files, change the operator's key."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass

import apsw

from index.audit_chain import AuditEvent
from index.embedded.audit import log as audit
from index.embedded.encryption import rewrap
from index.embedded.gallery import EmbeddedGallery
from index.embedded.store.ledger import BUSY_MS
from index.embedded.tasks.maintenance import Maintenance, MaintenanceLimits
from index.engine.maintenance import LEASE_S
from index.errors import GalleryError
from index.operator_key import OperatorKey

_SCRUB_TRIES = 25  # of a fifth of a second each, while readers use the write-ahead log


@dataclass(frozen=True)
class CompactionResult:
    """The size in bytes of all files of the gallery. `emptied`: False if readers kept the write-ahead log in use."""

    before: int
    after: int
    emptied: bool


def compact(gallery: EmbeddedGallery, limits: MaintenanceLimits | None = None) -> CompactionResult:
    """Run a round of maintenance, then remove the ledger's free pages. Others can read meanwhile, but not write.

    Raises:
        apsw.BusyError: another process kept the ledger locked. apsw.FullError: no space for a second ledger, in the
        temporary folder or in the gallery's.
    """
    before = _size(gallery)
    maintenance = Maintenance(gallery, limits)
    maintenance.run()
    maintenance.release()
    _vacuum(gallery)
    emptied = _scrub(gallery)
    return CompactionResult(before, _size(gallery), emptied)


def rebuild(gallery: EmbeddedGallery, name: str | None = None, limits: MaintenanceLimits | None = None) -> list[str]:
    """Rebuild all segments and inverted files of a collection (None: of all) from the ledger; return the names.

    Searches continue: each old file exists until the new one does.

    Raises:
        NotFoundError: no such collection. GalleryError: another process does maintenance. ConflictError: see
        `Maintenance.rebuild`.
    """
    collections = gallery.collections(limit=-1) if name is None else [gallery.collection(name)]
    maintenance = Maintenance(gallery, limits)
    if not maintenance.rebuild(collections):
        raise GalleryError(
            f"another process does the gallery's maintenance: stop it, or wait {LEASE_S:.0f} s if it has died"
        )
    maintenance.release()
    return [collection.name for collection in collections]


def rekey(gallery: EmbeddedGallery, new: OperatorKey) -> int:
    """Wrap the data keys of all encrypted collections with the `new` operator's key only; return their number.

    Data keys stay the same, so nothing is re-encrypted, and an older copy of the ledger can still be read with the old
    key. A process that has used a collection can continue to; otherwise the service needs the new key. Afterwards the
    ledger's files contain nothing wrapped with the old key, unless a reader keeps the write-ahead log in use.

    Raises:
        LockedError: the gallery was opened with another key than the data keys' own; nothing has changed.
    """

    def write(db: apsw.Connection) -> int:
        if count := rewrap(db, new):
            audit.record(db, AuditEvent("rekey", gallery.clock()))
        return count

    count = gallery.ledger.write(write)
    _scrub(gallery)
    return count


def _scrub(gallery: EmbeddedGallery) -> bool:
    return any(gallery.ledger.scrub() for _ in range(_SCRUB_TRIES))


def _vacuum(gallery: EmbeddedGallery) -> None:
    # The ledger's own connections keep temporary data in memory, where a second ledger may not fit. SQLite's temporary
    # file is unlinked, and contains nothing that was erased.
    with closing(apsw.Connection(str(gallery.ledger.path))) as connection:
        connection.set_busy_timeout(BUSY_MS)
        connection.pragma("synchronous", "full")
        connection.pragma("secure_delete", True)
        connection.execute("VACUUM")


def _size(gallery: EmbeddedGallery) -> int:
    return sum(path.stat().st_size for path in gallery.files.parent.rglob("*") if path.is_file())
