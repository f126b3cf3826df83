"""A collection as a parquet file, one row a face, and such a file as a collection.

What the collection is (embedder, fingerprint, ...) stands in the file's own metadata under `vestibule`, as JSON. Faces
keep their tokens, so that a file which is read again, after a crash or by mistake, enrols nobody twice. A subject
without faces has no row. The file of an encrypted collection is encrypted, too
(index/embedded/encryption/parquet_keys.py), and can only become one. Needs pyarrow.
"""

from __future__ import annotations

import importlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import apsw
import numpy as np

from index.embedded.audit import log as audit
from index.embedded.audit.entries import Act
from index.embedded.encryption.parquet_keys import decryption_properties, encryption_properties, is_encrypted
from index.embedded.gallery import EmbeddedGallery, remove_lapsed
from index.embedded.store import collection_records, face_records
from index.embedded.store.atomic_files import sync_folder
from index.embedded.store.face_records import FaceRecord
from index.errors import ConflictError, GalleryError, InvalidError, NotFoundError, TooNewError
from index.types import Collection
from index.unicode_forms import normalised

KEY, VERSION = b"vestibule", 1
# Faces of a row group, and of a transaction.
AT_ONCE = 4096
_TOKEN = re.compile("[0-9a-f]{32}")


@dataclass(frozen=True)
class Imported:
    """How many faces were enrolled, how many had been before, and of how many the subject's time is over."""

    collection: str
    enrolled: int
    present: int
    expired: int = 0


def export_collection(gallery: EmbeddedGallery, name: str, path: Path) -> int:
    """Write the faces that the collection has now to a new file; how many. Each row group is of one commit.

    Who is erased meanwhile, and who has expired, is left out as far as possible.

    Raises:
        NotFoundError: no such collection. GalleryError: there is a file of that name, or no pyarrow. ConflictError: the
        collection was embedded anew meanwhile. LockedError.
    """
    arrow, parquet = _pyarrow()
    found = gallery.collection(name)
    schema = _schema(arrow, found.dimensions).with_metadata({KEY: json.dumps(_described(found))})
    count = 0
    sealed = {"encryption_properties": encryption_properties(gallery.ledger.keys)} if found.encrypted else {}
    with (
        _new_file(path) as temporary,
        parquet.ParquetWriter(temporary, schema, write_page_checksum=True, **sealed) as writer,
    ):
        for faces in _all_faces(gallery, found):
            writer.write_batch(_batch(arrow, schema, faces, found.dimensions))
            count += len(faces)
    return count


def import_collection(gallery: EmbeddedGallery, path: Path, name: str | None = None) -> Imported:
    """Enrol the faces of a file in the collection `name` (by default of the name it had), which is made if need be.

    All rows are checked before the first face is enrolled, by the rules of the API. Then each transaction enrols some
    thousand; after a crash the same call enrols the rest. Vectors are scaled to length 1. Subjects whose time is over
    are left out.

    Raises:
        InvalidError: not such a file, or damaged, or some row cannot be a face. ConflictError: the collection is of
        another pipeline or not encrypted as the file is, or a token is that of another face. GalleryError: no pyarrow.
        LockedError, TooNewError.
    """
    arrow, parquet = _pyarrow()
    try:
        encrypted = is_encrypted(path)
        sealed = {"decryption_properties": decryption_properties(gallery.ledger.keys)} if encrypted else {}
        with parquet.ParquetFile(path, page_checksum_verification=True, **sealed) as file:
            wanted = replace(_wanted(file.schema_arrow.metadata or {}, name), encrypted=encrypted)
            _check_schema(file.schema_arrow, _schema(arrow, wanted.dimensions))
            row = 1
            forms: dict[str, str] = {}
            for batch in file.iter_batches(AT_ONCE):
                _check(batch, wanted.dimensions, row)
                _check_forms(batch, forms, row)
                row += batch.num_rows
            gallery.ledger.write(partial(_target, wanted=wanted, now=gallery.clock()))
            enrolled = expired = 0
            for batch in file.iter_batches(AT_ONCE):
                now, faces = gallery.clock(), _faces(batch)
                current = [face for face in faces if face.expires_at is None or face.expires_at > now]
                expired += len(faces) - len(current)
                enrolled += gallery.ledger.write(partial(_enrol, wanted=wanted, faces=current, now=now))
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InvalidError(f"{path.name} cannot be read as parquet: {error}") from error
    return Imported(wanted.name, enrolled, row - 1 - enrolled - expired, expired)


def _pyarrow() -> tuple[Any, Any]:
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise GalleryError("parquet files need pyarrow, which is not installed: `pip install pyarrow`") from error


def _schema(arrow: Any, dimensions: int) -> Any:
    return arrow.schema(
        [
            arrow.field("subject", arrow.string(), nullable=False),
            arrow.field("name", arrow.string()),
            arrow.field("metadata", arrow.string(), nullable=False),
            arrow.field("expires_at", arrow.float64()),
            arrow.field("face", arrow.string(), nullable=False),
            arrow.field("details", arrow.string(), nullable=False),
            arrow.field("created_at", arrow.float64(), nullable=False),
            arrow.field("vector", arrow.list_(arrow.float32(), dimensions), nullable=False),
            arrow.field("crop", arrow.binary()),
        ]
    )


def _described(found: Collection) -> dict[str, Any]:
    properties = {key: value for key, value in found.__dict__.items() if key not in ("id", "generation", "encrypted")}
    return {"version": VERSION, "collection": properties}


@contextmanager
def _new_file(path: Path) -> Iterator[Path]:
    """Where to write; it is in `path` when it is whole. Only its owner may read it."""
    if path.exists():
        raise GalleryError(f"{path} is there already")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    temporary.touch(mode=0o600)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def _all_faces(gallery: EmbeddedGallery, collection: Collection) -> Iterator[list[FaceRecord]]:
    """Not in one snapshot: that would keep erasures in the ledger's log for as long as it takes."""
    with gallery.snapshot_of(collection) as db:
        after, through = 0, face_records.last_id(db, collection.id)
    while True:
        with gallery.snapshot_of(collection) as db:
            faces = face_records.read_records(db, collection.id, after, through, AT_ONCE, gallery.clock())
        if not faces:
            return
        after = faces[-1].id
        yield faces


def _batch(arrow: Any, schema: Any, faces: list[FaceRecord], dimensions: int) -> Any:
    numbers = np.frombuffer(b"".join(face.vector for face in faces), "<f4")
    vectors = arrow.FixedSizeListArray.from_arrays(arrow.array(numbers, arrow.float32()), dimensions)
    columns: list[list[Any]] = [
        [face.subject for face in faces],
        [face.name for face in faces],
        [face.metadata for face in faces],
        [face.expires_at for face in faces],
        [face.token for face in faces],
        [face.details for face in faces],
        [face.created_at for face in faces],
        [face.crop for face in faces],
    ]
    fields = [field for field in schema if field.name != "vector"]
    arrays = [arrow.array(values, field.type) for values, field in zip(columns, fields, strict=True)]
    return arrow.record_batch([*arrays[:-1], vectors, arrays[-1]], schema=schema)


def _wanted(metadata: dict[bytes, bytes], name: str | None) -> Collection:
    """The collection that the file is of, under the name it is to have; its id does not count."""
    try:
        described = json.loads(metadata[KEY])
        version, properties = described["version"], described["collection"]
        found = Collection(0, **properties)
    except (KeyError, ValueError, TypeError) as error:
        raise InvalidError("the file does not say of which collection it is; was it written by export?") from error
    if version > VERSION:
        raise TooNewError(f"the file is of version {version}; this program knows {VERSION}")
    texts = (found.name, found.embedder, found.fingerprint)
    if not all(isinstance(text, str) and text for text in texts) or not isinstance(found.settings, dict):
        raise InvalidError("the file describes its collection with values of a wrong kind")
    if not isinstance(found.dimensions, int) or not 0 < found.dimensions < 2**31:
        raise InvalidError(f"a collection of {found.dimensions} dimensions cannot be")
    if not isinstance(found.created_at, int | float) or not isinstance(found.settings.get("keep_crops", False), bool):
        raise InvalidError("the file describes its collection with values of a wrong kind")
    return Collection(**{**found.__dict__, "name": name or found.name})


def _check_schema(actual: Any, expected: Any) -> None:
    if actual.names != expected.names:
        raise InvalidError(f"expected the columns {', '.join(expected.names)}; got {', '.join(actual.names)}")
    for field in expected:
        if actual.field(field.name).type != field.type:
            kind = actual.field(field.name).type
            raise InvalidError(f"expected the column {field.name!r} to be {field.type}; it is {kind}")


def _check(batch: Any, dimensions: int, first: int) -> None:
    """See that each row can be a face; `first` is the number of the first one, for the message."""
    columns = [name for name in batch.schema.names if name not in ("name", "expires_at", "crop")]
    for name in columns:
        if batch.column(name).null_count:
            raise InvalidError(f"a row from {first} on has no {name}")
    for number, face in enumerate(_faces(batch), first):
        try:
            if not _TOKEN.fullmatch(face.token):
                raise InvalidError(f"expected a face of 32 hexadecimal digits, got {face.token!r}")
            face_records.validated(face, dimensions)
        except InvalidError as error:
            raise InvalidError(f"row {number}: {error}") from error


def _check_forms(batch: Any, forms: dict[str, str], first: int) -> None:
    """Check that no subject differs only in its Unicode form from one of `forms`, or of this batch, which joins them.

    Two subjects would become one.
    """
    for number, subject in enumerate(batch.column("subject").to_pylist(), first):
        if not subject.isascii() and forms.setdefault(normalised(subject), subject) != subject:
            raise InvalidError(f"row {number}: the subject differs only in its Unicode form from that of another row")


def _faces(batch: Any) -> list[FaceRecord]:
    vectors = np.asarray(batch.column("vector").flatten().to_numpy(zero_copy_only=False), "<f4")
    others = [batch.column(name).to_pylist() for name in batch.schema.names if name != "vector"]
    rows: Iterable[tuple[Any, ...]] = zip(*others, vectors.reshape(batch.num_rows, -1), strict=True)
    return [
        FaceRecord(0, subject, name, metadata, expires_at, token, details, created_at, vector.tobytes(), crop)
        for subject, name, metadata, expires_at, token, details, created_at, crop, vector in rows
    ]


def _target(db: apsw.Connection, wanted: Collection, now: float) -> Collection:
    """The collection to enrol in, made unless it is there."""
    try:
        found = collection_records.find(db, wanted.name)
    except NotFoundError:
        made = collection_records.insert(db, wanted)
        audit.note(db, Act("create_collection", now, None, made.id))
        return made
    for what in ("embedder", "fingerprint", "dimensions"):
        theirs, ours = getattr(wanted, what), getattr(found, what)
        if theirs != ours:
            raise ConflictError(f"{wanted.name!r} has the {what} {ours!r}; the file has {theirs!r}")
    if wanted.encrypted and not found.encrypted:
        raise ConflictError(f"the file is encrypted, and {wanted.name!r} is not")
    return found


def _enrol(db: apsw.Connection, wanted: Collection, faces: list[FaceRecord], now: float) -> int:
    found = _target(db, wanted, now)
    remove_lapsed(db, found.id, {face.subject for face in faces}, now)
    enrolled = [face.token for face in faces if face_records.insert_record(db, found.id, face)]
    if enrolled:
        ids = face_records.ids_of_tokens(db, found.id, enrolled)
        audit.note(db, Act("enrol", now, None, found.id, audit.subjects_of(db, ids), ids))
    return len(enrolled)
