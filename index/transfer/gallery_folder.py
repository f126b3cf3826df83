"""Export of a whole gallery to a folder, and import of such a folder into a gallery of any storage engine.

The folder has for each collection a file of subjects, one of faces, which `collection_file` can import alone, and one
of feedback; a file with the receipts of all erasures; and a manifest, which is written last. All are of one moment.

An import loads each row of an export at most once, also if it is repeated: each transaction records how far it came. So
what is erased in the gallery after it was imported does not come back. For the same reason an import never adds to a
collection that it did not create, and an export is refused after a later one of the same gallery.

The audit log stays with its gallery: the manifest has its head, which the import records in the new gallery's log. So
do the tombstones, which consist of ids of their own gallery. Left out are sightings, alerts and their rules, results of
bulk jobs and of idempotency keys, and what an undo of a merge needs.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from index import types
from index.errors import ConflictError, GalleryError, InvalidError
from index.folders import make_folder, sync_folder
from index.manifests import file_sha256
from index.operator_key import OperatorKey
from index.protocol import GallerySnapshot, Transfer
from index.records import Export, ExportPart, Kind, validated_face, validated_rejection, validated_subject
from index.transfer.manifest import ExportManifest, part_path, read_export, write_export
from index.transfer.tables import FACES, FEEDBACK, RECEIPTS, SUBJECTS, R, TableFormat, open_table, write_table
from index.validation import check_timestamp


@dataclass(frozen=True)
class LoadedPart:
    """Rows of a part, of which `before` were loaded or left out by earlier imports, and `new` were loaded by this one.

    The others were left out: their subject expired, or was erased, since the export.
    """

    rows: int
    before: int
    new: int


@dataclass(frozen=True)
class GalleryImport:
    """What an import loaded, by the collection's name; None for one that was dropped after an earlier import."""

    manifest: ExportManifest
    collections: dict[str, dict[Kind, LoadedPart] | None]
    receipts: LoadedPart

    @property
    def is_new(self) -> bool:
        """Whether there was anything left to load."""
        parts = [part for loaded in self.collections.values() if loaded for part in loaded.values()]
        return any(part.before < part.rows for part in (*parts, self.receipts))


def export_gallery(transfer: Transfer, folder: Path, key: OperatorKey | None = None) -> ExportManifest:
    """Write the whole gallery to a new or empty folder. Expired subjects are left out.

    `key`: the operator's, for encrypted collections.

    Raises:
        ConflictError: a bulk job or a re-embedding has not ended; neither can be exported. GalleryError: the folder is
        not empty, or pyarrow is missing. LockedError: the operator's key is missing. CorruptError: a row is damaged.
    """
    make_folder(folder)
    folder.chmod(0o700)
    if any(folder.iterdir()):
        raise GalleryError(f"{folder} is not empty")
    export = Export(secrets.token_hex(16), transfer.gallery_id, transfer.clock(), transfer.head())
    try:
        with transfer.snapshot() as snapshot:
            if unfinished := snapshot.unfinished():
                names = ", ".join(map(repr, unfinished))
                raise ConflictError(f"wait for the bulk jobs and re-embeddings of {names} to end, or cancel them")
            manifest = _write_parts(snapshot, folder, export, key)
        write_export(folder, manifest)
    except BaseException:
        for path in folder.iterdir():
            path.unlink()
        raise
    sync_folder(folder)
    return manifest


def _write_parts(snapshot: GallerySnapshot, folder: Path, export: Export, key: OperatorKey | None) -> ExportManifest:
    rows: dict[str, int] = {}
    sha256: dict[str, str] = {}
    unfinished = 0

    def write(
        part: ExportPart, format: TableFormat[R], pages: Iterable[list[R]], collection: types.Collection | None = None
    ) -> None:
        path = part_path(folder, part.name)
        rows[part.name] = write_table(path, format, pages, collection, key)
        sha256[part.name] = file_sha256(path)

    def receipts() -> Iterable[list[types.Receipt]]:
        nonlocal unfinished
        for page in snapshot.receipts():
            unfinished += sum(receipt.erased_at is None for receipt in page)
            yield page

    collections = snapshot.collections()
    for number, collection in enumerate(collections):
        write(ExportPart(export, "subjects", number), SUBJECTS, snapshot.subjects(collection), collection)
        write(ExportPart(export, "faces", number), FACES, snapshot.faces(collection), collection)
        write(ExportPart(export, "feedback", number), FEEDBACK, snapshot.rejections(collection), collection)
    write(ExportPart(export, "receipts"), RECEIPTS, receipts())
    described = tuple(map(snapshot.describe, collections))
    return ExportManifest(export, described, rows, sha256, unfinished, snapshot.left_behind())


def import_gallery(
    transfer: Transfer, folder: Path, key: OperatorKey | None = None, without: Collection[str] = ()
) -> GalleryImport:
    """Load the export in the folder, except the collections `without`. After a crash the same call loads the rest.

    All rows are validated by the rules of the API before anything is changed. Vectors are scaled to length 1.

    Raises:
        InvalidError: `without` has an unknown name, a row is invalid, or the export has an encrypted collection, which
        the gallery cannot have. ConflictError: see `Transfer.begin_import`; or a token belongs to another face.
        CorruptError: a file is missing or damaged. GalleryError: pyarrow is missing. LockedError, TooNewError.
    """
    manifest = read_export(folder)
    if unknown := set(without) - {exported.collection.name for exported in manifest.collections}:
        raise InvalidError(f"the export has no collection {min(unknown)!r}")
    chosen = {number: it for number, it in enumerate(manifest.collections) if it.collection.name not in without}
    encrypted = [exported.collection.name for exported in chosen.values() if exported.collection.encrypted]
    if encrypted and not transfer.encrypts:
        raise InvalidError(
            f"a database cannot have encrypted collections yet: import without {', '.join(map(repr, encrypted))}"
        )
    loading = _CollectionImport(transfer, folder, manifest, key)
    for number, exported in chosen.items():
        loading.check(number, exported.collection.dimensions)
    loading.check_receipts()
    done = transfer.begin_import(manifest.export, chosen)
    collections = {
        it.collection.name: None if done[loading.part("subjects", number).name] is None else loading.load(number, done)
        for number, it in chosen.items()
    }
    return GalleryImport(manifest, collections, loading.load_receipts(done))


class _CollectionImport:
    """Checks and loads the parts of an export."""

    def __init__(self, transfer: Transfer, folder: Path, manifest: ExportManifest, key: OperatorKey | None):
        self._transfer = transfer
        self._folder = folder
        self._manifest = manifest
        self._key = key

    def part(self, kind: Kind, number: int) -> ExportPart:
        return ExportPart(self._manifest.export, kind, number)

    def check(self, number: int, dimensions: int) -> None:
        """Raise InvalidError if a row of the collection cannot be loaded."""
        self._check(self.part("subjects", number), SUBJECTS, validated_subject)
        self._check(self.part("faces", number), FACES, partial(validated_face, dimensions=dimensions))
        self._check(self.part("feedback", number), FEEDBACK, partial(validated_rejection, dimensions=dimensions))

    def check_receipts(self) -> None:
        """Raise InvalidError if a receipt cannot be loaded."""
        part = ExportPart(self._manifest.export, "receipts")
        self._check(part, RECEIPTS, lambda receipt: check_timestamp(receipt.requested_at, "requested_at"))

    def _check(self, part: ExportPart, format: TableFormat[R], validate: Callable[[R], object]) -> None:
        with open_table(part_path(self._folder, part.name), format, self._key) as file:
            file.check(validate)

    def load(self, number: int, done: dict[str, int | None]) -> dict[Kind, LoadedPart]:
        """Load the rows of a collection that were not loaded before; `done`: see `Transfer.begin_import`."""
        transfer = self._transfer
        return {
            "subjects": self._load(self.part("subjects", number), SUBJECTS, transfer.load_subjects, done),
            "faces": self._load(self.part("faces", number), FACES, transfer.load_faces, done),
            "feedback": self._load(self.part("feedback", number), FEEDBACK, transfer.load_rejections, done),
        }

    def load_receipts(self, done: dict[str, int | None]) -> LoadedPart:
        """Load the receipts that were not loaded before."""
        return self._load(ExportPart(self._manifest.export, "receipts"), RECEIPTS, self._transfer.load_receipts, done)

    def _load(
        self,
        part: ExportPart,
        format: TableFormat[R],
        load: Callable[[ExportPart, int, Sequence[R]], int],
        done: dict[str, int | None],
    ) -> LoadedPart:
        before = done[part.name] or 0
        first = new = 0
        if before < self._manifest.rows[part.name]:
            with open_table(part_path(self._folder, part.name), format, self._key) as file:
                for rows in file.pages():
                    new += load(part, first, rows) if first + len(rows) > before else 0
                    first += len(rows)
        return LoadedPart(self._manifest.rows[part.name], before, new)
