"""A copy of the ledger elsewhere, made while it is used, and the ledger put back from such a copy.

A backup is a folder with the ledger and a manifest. Segments and inverted files are not in it: the ledger makes them
anew. Nor is the audit log, which stays where it is and goes on. What was erased after the backup was made is erased
again when it is put back, as the tombstones beside the ledger tell (`index.embedded.store.tombstones`). The ledger that
was there is gone then: the new one takes its name, with whatever was erased in between nowhere in it.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import apsw

from index.embedded.audit import log as audit
from index.embedded.audit.entries import Act
from index.embedded.audit.log import Audit
from index.embedded.gallery import (
    AUDIT_FILE,
    FILES_FOLDER,
    LEDGER_FILE,
    RESTORING_FILE,
    TOMBSTONES_FILE,
    EmbeddedGallery,
    remove_expired,
)
from index.embedded.store import collection_records, erasure_records, folder_lock, vector_records
from index.embedded.store.atomic_files import sync_folder, write_atomically
from index.embedded.store.ledger import Ledger
from index.embedded.store.tombstones import Tombstones
from index.errors import ConflictError, CorruptError, GalleryError, TooNewError

MANIFEST_FILE, VERSION = "manifest.json", 1
_CHUNK = 2**20


@dataclass(frozen=True)
class Manifest:
    """What a backup is: of which gallery, when, up to which removal, and what its ledger's bytes hash to."""

    version: int
    gallery: str
    created_at: float
    last_removal: int
    collections: int
    subjects: int
    faces: int
    sha256: str


@dataclass(frozen=True)
class Restored:
    """The backup that was put back, and how much of it was erased again.

    Not `remembered`: there were no tombstones beside the ledger, so nobody knows what was erased after the backup.
    """

    manifest: Manifest
    erased_collections: int
    erased_subjects: int
    erased_faces: int
    remembered: bool


def back_up(gallery: EmbeddedGallery, folder: Path) -> Manifest:
    """Copy the ledger, as one commit left it, into a new or empty folder. Others may use the gallery meanwhile.

    Raises:
        GalleryError: the folder is not empty. CorruptError: the ledger is damaged.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise GalleryError(f"{folder} is not empty")
    path = folder / LEDGER_FILE
    try:
        made = _copied(gallery, path)
        write_atomically(folder / MANIFEST_FILE, [_text(made).encode()])
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    sync_folder(folder.parent)
    return made


def restore(
    gallery_folder: Path,
    folder: Path,
    *,
    clock: Callable[[], float] = time.time,
    gap: Callable[[], int] | None = None,
) -> Restored:
    """Put the ledger of a backup in place of the one that is there, if any, and erase again what was erased since.

    Nothing is changed before all is ready; then one rename does it. `gap`: how many ids are left out, so that new
    faces have none that the lost ledger may have given (at random, since nobody knows).

    Raises:
        CorruptError: the backup or the tombstones are damaged. ConflictError: the folder holds another gallery.
        GalleryError: the gallery is in use. TooNewError.
    """
    manifest = _manifest(folder)
    gallery_folder.mkdir(parents=True, exist_ok=True)
    copy, tombstones = gallery_folder / RESTORING_FILE, Tombstones(gallery_folder / TOMBSTONES_FILE)
    with folder_lock.lock(gallery_folder, exclusive=True):
        try:
            _copy(folder / LEDGER_FILE, copy, manifest.sha256)
            _settle(gallery_folder, tombstones, manifest.gallery, clock())
            restored = _forget(copy, tombstones, manifest, gap or _random_gap, clock())
            _swap(gallery_folder, copy)
        finally:
            for suffix in ("", "-wal", "-shm"):
                copy.with_name(copy.name + suffix).unlink(missing_ok=True)
    return restored


def _copied(gallery: EmbeddedGallery, path: Path) -> Manifest:
    path.touch(mode=0o600)
    copy = apsw.Connection(str(path))
    try:
        with gallery.ledger.snapshot() as db:
            numbers = (erasure_records.last_removal(db), *collection_records.totals(db))
            manifest = Manifest(VERSION, collection_records.gallery_id(db), gallery.clock(), *numbers, sha256="")
            with copy.backup("main", db, "main") as under_way:
                under_way.step()  # all at once, while others go on: in pieces it would begin anew at each commit
        copy.pragma("journal_mode", "delete")  # one file, without a log beside it
        if (verdict := copy.pragma("integrity_check")) != "ok":
            raise CorruptError(f"the ledger is damaged: {verdict}")
    finally:
        copy.close()
    with path.open("rb+") as file:
        os.fsync(file.fileno())
        return replace(manifest, sha256=hashlib.file_digest(file, "sha256").hexdigest())


def _text(manifest: Manifest) -> str:
    content = asdict(manifest)
    checksum = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return json.dumps(content | {"checksum": checksum}, indent=2) + "\n"


def _manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST_FILE
    try:
        text = path.read_text()
        content: dict[str, Any] = json.loads(text)
        version = content["version"]
        if isinstance(version, int) and version > VERSION:
            raise TooNewError(f"{path} is of version {version}; this program knows {VERSION}")
        del content["checksum"]
        manifest = Manifest(**content)
    except FileNotFoundError as error:
        raise CorruptError(f"{folder} is no backup, or one that was not finished: {path.name} is missing") from error
    except (ValueError, TypeError, KeyError) as error:
        raise CorruptError(f"{path} is not what was written") from error
    if _text(manifest) != text:
        raise CorruptError(f"{path} is not what was written")
    return manifest


def _copy(source: Path, target: Path, sha256: str) -> None:
    """Copy the ledger of a backup, and see that the bytes copied are those backed up."""
    digest = hashlib.sha256()
    target.unlink(missing_ok=True)
    target.touch(mode=0o600)
    try:
        with source.open("rb") as original, target.open("wb") as copy:
            while chunk := original.read(_CHUNK):
                digest.update(chunk)
                copy.write(chunk)
    except FileNotFoundError as error:
        raise CorruptError(f"{source} is missing") from error
    if digest.hexdigest() != sha256:
        raise CorruptError(f"{source} is not what was backed up")


def _settle(folder: Path, tombstones: Tombstones, gallery: str, now: float) -> None:
    """See that it is the same gallery (or an empty one) that is there, and write down what its ledger has erased.

    Who has expired in it is erased first: the backup may know of no end. All this as far as that ledger can be read:
    it may be why a backup is put back. Its log is empty afterwards.
    """
    path, others = folder / LEDGER_FILE, False
    if path.exists():
        with suppress(apsw.Error, GalleryError):
            ledger = Ledger(path)
            try:
                others = collection_records.gallery_id(ledger.reader()) != gallery and bool(
                    collection_records.page(ledger.reader(), "", 1)
                )
                ledger.write(partial(remove_expired, now=now, limit=-1))
                tombstones.append_new(ledger.reader())
                Audit(folder / AUDIT_FILE, ledger, collection_records.gallery_id(ledger.reader())).flush(recover=True)
            finally:
                ledger.close()
    told = tombstones.read()
    if others or (told is not None and told[0] != gallery and any(told[1])):
        raise ConflictError(f"{folder} holds another gallery than the backup; put it back into an empty folder")


def _forget(copy: Path, tombstones: Tombstones, manifest: Manifest, gap: Callable[[], int], now: float) -> Restored:
    """Make the copy a ledger that knows nothing of what was erased, and that gives no id a second time."""
    told = tombstones.read()
    remembered = told is not None and told[0] == manifest.gallery

    def write(db: apsw.Connection) -> None:
        for removal in told[1] if told is not None and remembered else ():
            erasure_records.replay(db, removal)
        erasure_records.skip_ids(db, gap)
        vector_records.forget_files(db)
        audit.note(db, Act("restore", now))

    ledger = Ledger(copy)
    try:
        before = collection_records.totals(ledger.reader())
        ledger.write(write)
        collections, subjects, faces = (
            a - b for a, b in zip(before, collection_records.totals(ledger.reader()), strict=True)
        )
        # Before the ledger takes its place: a crash in between must not cost what only one of the two knows.
        tombstones.rewrite(ledger.reader())
        Audit(copy.with_name(AUDIT_FILE), ledger, collection_records.gallery_id(ledger.reader())).adopt()
    finally:
        ledger.close()  # empties the log, too
    with copy.open("rb+") as file:
        os.fsync(file.fileno())
    return Restored(manifest, collections, subjects, faces, remembered)


def _random_gap() -> int:
    # Of 2**63 ids, so that tens of thousands of restores find room.
    return 2**32 + secrets.randbelow(2**47)


def _swap(folder: Path, copy: Path) -> None:
    """The copy is the ledger from now on; what was made of the old one goes with it."""
    ledger = folder / LEDGER_FILE
    for suffix in ("-wal", "-shm"):  # left where the old one could not be read; it would be taken for the new one's
        ledger.with_name(ledger.name + suffix).unlink(missing_ok=True)
    copy.replace(ledger)
    sync_folder(folder)
    files = folder / FILES_FOLDER
    files.mkdir(exist_ok=True)
    for path in files.iterdir():
        path.unlink()
    sync_folder(files)
