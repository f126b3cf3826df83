"""Export of a collection's faces to a Parquet file with one row per face, and import of such a file.

Faces keep their tokens, so that importing a file again enrols no face twice. A subject without faces has no row. An
import enrols what the file has: a face that was erased since the export comes back. The file of an encrypted collection
can only be imported into an encrypted collection.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from index.errors import GalleryError, NotFoundError
from index.operator_key import OperatorKey
from index.protocol import Transfer
from index.records import validated_face
from index.transfer.tables import FACES, open_table, write_table
from index.validation import normalised


@dataclass(frozen=True)
class ImportResult:
    """The numbers of faces newly enrolled, enrolled before (`present`), and skipped because their subject expired."""

    collection: str
    enrolled: int
    present: int
    expired: int = 0


def export_collection(transfer: Transfer, name: str, path: Path, key: OperatorKey | None = None) -> int:
    """Write the collection's faces of one moment to a new file, and return their number; leave out expired subjects.

    `key`: the operator's, for an encrypted collection.

    Raises:
        NotFoundError: no such collection. GalleryError: the file exists, or pyarrow is missing. LockedError: the
        operator's key is missing.
    """
    if path.exists():
        raise GalleryError(f"{path} exists already")
    with transfer.snapshot() as snapshot:
        collections = {collection.name: collection for collection in snapshot.collections()}
        collection = collections.get(name) or collections.get(normalised(name))
        if collection is None:
            raise NotFoundError(f"there is no collection {name!r}")
        return write_table(path, FACES, snapshot.faces(collection), collection, key)


def import_collection(
    transfer: Transfer, path: Path, name: str | None = None, key: OperatorKey | None = None
) -> ImportResult:
    """Enrol the faces of a file in the collection `name` (default: its original name), which is created if missing.

    All rows are validated by the rules of the API before the first face is enrolled. Then each transaction enrols a
    batch of faces; after a crash the same call enrols the rest. Vectors are scaled to length 1. Expired subjects are
    skipped.

    Raises:
        InvalidError: the file is not an export, is damaged, or has an invalid row. ConflictError: the collection is of
        another pipeline, or is not encrypted although the file is, or a token belongs to another face. GalleryError:
        pyarrow is missing. LockedError, TooNewError.
    """
    with open_table(path, FACES, key) as file:
        source = file.collection()
        source = replace(source, name=name or source.name)
        count = file.check(lambda face: validated_face(face, source.dimensions))
        enrolled, expired = transfer.enrol(source, []), 0
        for faces in file.pages():
            now = transfer.clock()
            current = [face for face in faces if face.expires_at is None or face.expires_at > now]
            expired += len(faces) - len(current)
            enrolled += transfer.enrol(source, current)
    return ImportResult(source.name, enrolled, count - enrolled - expired, expired)
