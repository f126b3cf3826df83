"""Online backup of the ledger, and its restore.

A backup is a folder with the ledger and a manifest. It contains neither segments nor inverted files, which are rebuilt
from the ledger, nor the audit log, which stays in place and continues. A restore repeats the erasures that were made
after the backup, according to the tombstones beside the ledger (`index.embedded.store.tombstones`). It replaces the
old ledger by rename, so that no erased data remains.
"""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import apsw

from index.audit_chain import AuditEvent
from index.embedded.audit import log as audit
from index.embedded.gallery import (
    AUDIT_FILE,
    FILES_FOLDER,
    LEDGER_FILE,
    RESTORING_FILE,
    TOMBSTONES_FILE,
    EmbeddedGallery,
    remove_expired,
)
from index.embedded.store import collection_records, erasure_records, vector_records
from index.embedded.store.atomic_files import lock_folder
from index.embedded.store.ledger import Ledger
from index.embedded.store.tombstones import Tombstones
from index.errors import ConflictError, CorruptError, GalleryError
from index.folders import sync, sync_folder, write_atomically
from index.manifests import MANIFEST_FILE, dump_manifest, file_sha256, read_manifest

VERSION = 1


@dataclass(frozen=True)
class BackupManifest:
    """A backup's gallery, time in seconds since 1970, last removal, counts, and the SHA-256 of its ledger."""

    version: int
    gallery: str
    created_at: float
    last_removal: int
    collections: int
    subjects: int
    faces: int
    sha256: str


@dataclass(frozen=True)
class RestoreResult:
    """The manifest of the restored backup, and the numbers of faces, subjects and collections that were erased again.

    Not `remembered`: there were no tombstones beside the ledger, so erasures after the backup are unknown.
    """

    manifest: BackupManifest
    erased_collections: int
    erased_subjects: int
    erased_faces: int
    remembered: bool


def back_up(gallery: EmbeddedGallery, folder: Path) -> BackupManifest:
    """Copy one commit of the ledger into a new or empty folder. Others may use the gallery meanwhile.

    Raises:
        GalleryError: the folder is not empty. CorruptError: the ledger is damaged.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise GalleryError(f"{folder} is not empty")
    path = folder / LEDGER_FILE
    try:
        manifest = _copy_ledger(gallery, path)
        write_atomically(folder / MANIFEST_FILE, [dump_manifest(asdict(manifest)).encode()])
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    sync_folder(folder.parent)
    return manifest


def restore(
    gallery_folder: Path,
    folder: Path,
    *,
    clock: Callable[[], float] = time.time,
    gap: Callable[[], int] = lambda: 2**32 + secrets.randbelow(2**47),
) -> RestoreResult:
    """Replace the ledger, if there is one, by that of a backup, and repeat the erasures made since the backup.

    The gallery is unchanged until one final rename. `gap` returns the number of ids to skip, so that new rows get no id
    that the lost ledger may have assigned. By default it is random and large; of 2**63 ids, that leaves enough for tens
    of thousands of restores.

    Raises:
        CorruptError: the backup or the tombstones are damaged. ConflictError: the folder holds another gallery.
        GalleryError: the gallery is in use. TooNewError.
    """
    manifest = BackupManifest(**read_manifest(folder, "a backup", VERSION))
    gallery_folder.mkdir(parents=True, exist_ok=True)
    copy, tombstones = gallery_folder / RESTORING_FILE, Tombstones(gallery_folder / TOMBSTONES_FILE)
    with lock_folder(gallery_folder, exclusive=True):
        try:
            _copy_backup(folder / LEDGER_FILE, copy, manifest.sha256)
            _close_old_ledger(gallery_folder, tombstones, manifest.gallery, clock())
            result = _repeat_erasures(copy, tombstones, manifest, gap, clock())
            _replace_ledger(gallery_folder, copy)
        finally:
            for suffix in ("", "-wal", "-shm"):
                copy.with_name(copy.name + suffix).unlink(missing_ok=True)
    return result


def _copy_ledger(gallery: EmbeddedGallery, path: Path) -> BackupManifest:
    path.touch(mode=0o600)
    with closing(apsw.Connection(str(path))) as copy:
        with gallery.ledger.snapshot() as db:
            counts = (erasure_records.last_removal(db), *collection_records.totals(db))
            manifest = BackupManifest(VERSION, collection_records.gallery_id(db), gallery.clock(), *counts, sha256="")
            with copy.backup("main", db, "main") as backup:
                backup.step()  # in one step: a backup in several starts over at each commit
        copy.pragma("journal_mode", "delete")  # a single file, without a write-ahead log
        if (verdict := copy.pragma("integrity_check")) != "ok":
            raise CorruptError(f"the ledger is damaged: {verdict}")
    with path.open("rb+") as file:
        sync(file)
    return replace(manifest, sha256=file_sha256(path))


def _copy_backup(source: Path, target: Path, sha256: str) -> None:
    """Copy the ledger of a backup, and raise CorruptError if its hash is another."""
    target.unlink(missing_ok=True)
    target.touch(mode=0o600)
    try:
        shutil.copyfile(source, target)
    except FileNotFoundError as error:
        raise CorruptError(f"{source} is missing") from error
    if file_sha256(target) != sha256:
        raise CorruptError(f"{source} is damaged: its SHA-256 is not the manifest's")


def _close_old_ledger(folder: Path, tombstones: Tombstones, gallery: str, now: float) -> None:
    """Write the tombstones and the audit log of the old ledger, and empty its write-ahead log.

    Delete expired subjects first, since the backup may have them without an expiry. Ignore a ledger that cannot be
    read: that may be the reason for the restore.

    Raises:
        ConflictError: the folder holds another gallery, which is not empty.
    """
    path, is_other = folder / LEDGER_FILE, False
    if path.exists():
        with suppress(apsw.Error, GalleryError), closing(Ledger(path)) as ledger:
            db = ledger.reader()
            is_other = collection_records.gallery_id(db) != gallery and bool(collection_records.page(db, "", 1))
            ledger.write(partial(remove_expired, now=now, limit=-1))
            tombstones.append_new(db)
            audit.AuditLog(folder / AUDIT_FILE, ledger, collection_records.gallery_id(db)).flush(recover=True)
    erased = tombstones.read()
    if is_other or (erased is not None and erased[0] != gallery and any(erased[1])):
        raise ConflictError(f"{folder} holds another gallery than the backup; restore into an empty folder")


def _repeat_erasures(
    copy: Path, tombstones: Tombstones, manifest: BackupManifest, gap: Callable[[], int], now: float
) -> RestoreResult:
    """Repeat the erasures of the tombstones in the copy, and skip ids that may have been assigned since the backup."""
    erased = tombstones.read()
    remembered = erased is not None and erased[0] == manifest.gallery

    def write(db: apsw.Connection) -> None:
        for removal in erased[1] if erased is not None and remembered else ():
            erasure_records.replay(db, removal)
        erasure_records.skip_ids(db, gap)
        vector_records.forget_files(db)
        audit.record(db, AuditEvent("restore", now))

    with closing(Ledger(copy)) as ledger:  # closing it empties the write-ahead log
        before = collection_records.totals(ledger.reader())
        ledger.write(write)
        collections, subjects, faces = (
            a - b for a, b in zip(before, collection_records.totals(ledger.reader()), strict=True)
        )
        # Before the ledger is replaced: after a crash in between, no removal may be missing from both.
        tombstones.rewrite(ledger.reader())
        audit.AuditLog(copy.with_name(AUDIT_FILE), ledger, collection_records.gallery_id(ledger.reader())).adopt()
    with copy.open("rb+") as file:
        sync(file)
    return RestoreResult(manifest, collections, subjects, faces, remembered)


def _replace_ledger(folder: Path, copy: Path) -> None:
    """Rename the copy to the ledger, and delete all segments and inverted files."""
    ledger = folder / LEDGER_FILE
    for suffix in ("-wal", "-shm"):  # of an unreadable ledger; SQLite would apply them to the new one
        ledger.with_name(ledger.name + suffix).unlink(missing_ok=True)
    copy.replace(ledger)
    sync_folder(folder)
    files = folder / FILES_FOLDER
    files.mkdir(exist_ok=True)
    for path in files.iterdir():
        path.unlink()
    sync_folder(files)
