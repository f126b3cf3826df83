"""Export of a collection to a Parquet file with one row per face, and import of such a file.

The collection's properties (embedder, fingerprint, ...) are JSON in the file's metadata, under `vestibule`. Faces keep
their tokens, so that importing a file again enrols no face twice. A subject without faces has no row. The file of an
encrypted collection can only be imported into an encrypted collection. It uses Parquet modular encryption
(https://parquet.apache.org/docs/file-format/data-pages/encryption/): AES-GCM of every module, including the footer with
the schema, with a data key per file, which the operator's key wraps. Needs pyarrow.
"""

from __future__ import annotations

import base64
import importlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import apsw
import numpy as np

from index.audit_chain import AuditEvent
from index.embedded.audit import log as audit
from index.embedded.encryption import CollectionKeys
from index.embedded.gallery import EmbeddedGallery, remove_expired_among
from index.embedded.store import collection_records, face_records
from index.embedded.store.atomic_files import temporary_file
from index.errors import ConflictError, GalleryError, InvalidError, LockedError, NotFoundError, TooNewError
from index.types import Collection
from index.validation import normalised

KEY, VERSION = b"vestibule", 1
BATCH = 4096  # faces per row group and per transaction
_ENCRYPTED_MAGIC = b"PARE"  # of a file whose footer is encrypted
_KEY_ABOUT = "data key of a parquet file"
_TOKEN = re.compile("[0-9a-f]{32}")


@dataclass(frozen=True)
class ImportResult:
    """The numbers of faces newly enrolled, enrolled before (`present`), and skipped because their subject expired."""

    collection: str
    enrolled: int
    present: int
    expired: int = 0


def export_collection(gallery: EmbeddedGallery, name: str, path: Path) -> int:
    """Write the collection's faces to a new file, and return their number. Each row group is read from one commit.

    Leaves out expired subjects, and faces that are erased before their row group is written.

    Raises:
        NotFoundError: no such collection. GalleryError: the file exists, or pyarrow is missing. ConflictError: the
        collection was re-embedded meanwhile. LockedError: the operator's key is missing.
    """
    arrow, parquet = _pyarrow()
    collection = gallery.collection(name)
    schema = _schema(arrow, collection.dimensions).with_metadata({KEY: json.dumps(_properties(collection))})
    if path.exists():
        raise GalleryError(f"{path} exists already")
    count = 0
    options = {"encryption_properties": _encryption_properties(gallery.ledger.keys)} if collection.encrypted else {}
    with (
        temporary_file(path) as temporary,
        parquet.ParquetWriter(temporary, schema, write_page_checksum=True, **options) as writer,
    ):
        for faces in face_batches(gallery, collection, gallery.clock):
            writer.write_batch(_record_batch(arrow, schema, faces, collection.dimensions))
            count += len(faces)
    return count


def import_collection(gallery: EmbeddedGallery, path: Path, name: str | None = None) -> ImportResult:
    """Enrol the faces of a file in the collection `name` (default: its original name), which is created if missing.

    All rows are validated by the rules of the API before the first face is enrolled. Then each transaction enrols
    `BATCH` faces; after a crash the same call enrols the rest. Vectors are scaled to length 1. Expired subjects are
    skipped.

    Raises:
        InvalidError: the file is not an export, is damaged, or has an invalid row. ConflictError: the collection is of
        another pipeline, or is not encrypted although the file is, or a token belongs to another face. GalleryError:
        pyarrow is missing. LockedError, TooNewError.
    """
    arrow, parquet = _pyarrow()
    try:
        encrypted = _is_encrypted(path)
        options = {"decryption_properties": _decryption_properties(gallery.ledger.keys)} if encrypted else {}
        with parquet.ParquetFile(path, page_checksum_verification=True, **options) as file:
            source = replace(_read_properties(file.schema_arrow.metadata or {}, name), encrypted=encrypted)
            _check_schema(file.schema_arrow, _schema(arrow, source.dimensions))
            row = 1
            forms: dict[str, str] = {}
            for batch in file.iter_batches(BATCH):
                _check_rows(batch, source.dimensions, row, forms)
                row += batch.num_rows
            gallery.ledger.write(partial(_get_or_create, source=source, now=gallery.clock()))
            enrolled = expired = 0
            for batch in file.iter_batches(BATCH):
                now, faces = gallery.clock(), _faces(batch)
                current = [face for face in faces if face.expires_at is None or face.expires_at > now]
                expired += len(faces) - len(current)
                enrolled += gallery.ledger.write(partial(_enrol, source=source, faces=current, now=now))
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InvalidError(f"{path.name} cannot be read as parquet: {error}") from error
    return ImportResult(source.name, enrolled, row - 1 - enrolled - expired, expired)


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


def _properties(collection: Collection) -> dict[str, Any]:
    kept = [name for name in collection.__dict__ if name not in ("id", "generation", "encrypted")]
    return {"version": VERSION, "collection": {name: getattr(collection, name) for name in kept}}


def face_batches(
    gallery: EmbeddedGallery, collection: Collection, clock: Callable[[], float]
) -> Iterator[list[face_records.FaceRecord]]:
    """Yield all faces, each batch from its own snapshot: a long one would keep erased data in the write-ahead log.

    Faces of subjects that have expired by the time of the batch, according to `clock`, are left out.
    """
    with gallery.snapshot_of(collection) as db:
        after, through = 0, face_records.last_id(db, collection.id)
    while True:
        with gallery.snapshot_of(collection) as db:
            faces = face_records.read_records(db, collection.id, after, through, BATCH, clock())
        if not faces:
            return
        after = faces[-1].id
        yield faces


def _record_batch(arrow: Any, schema: Any, faces: list[face_records.FaceRecord], dimensions: int) -> Any:
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


def _read_properties(metadata: dict[bytes, bytes], name: str | None) -> Collection:
    """Return the collection that the file's metadata describes, with id 0 and this name (None: its own)."""
    try:
        content = json.loads(metadata[KEY])
        version, properties = content["version"], content["collection"]
        collection = Collection(0, **properties)
    except (KeyError, ValueError, TypeError) as error:
        raise InvalidError("the file's metadata describes no collection; was it written by export?") from error
    if version > VERSION:
        raise TooNewError(f"the file has version {version}; this program reads up to version {VERSION}")
    texts, settings = (collection.name, collection.embedder, collection.fingerprint), collection.settings
    if (
        not all(isinstance(text, str) and text for text in texts)
        or not isinstance(settings, dict)
        or not isinstance(settings.get("keep_crops", False), bool)
        or not isinstance(collection.created_at, int | float)
    ):
        raise InvalidError("the file's metadata has a property of the wrong type")
    if not isinstance(collection.dimensions, int) or not 0 < collection.dimensions < 2**31:
        raise InvalidError(f"the number of dimensions is {collection.dimensions}")
    return Collection(**{**collection.__dict__, "name": name or collection.name})


def _check_schema(actual: Any, expected: Any) -> None:
    if actual.names != expected.names:
        raise InvalidError(f"expected the columns {', '.join(expected.names)}; got {', '.join(actual.names)}")
    for field in expected:
        if actual.field(field.name).type != field.type:
            type_ = actual.field(field.name).type
            raise InvalidError(f"expected the column {field.name!r} to be {field.type}; it is {type_}")


def _check_rows(batch: Any, dimensions: int, first: int, forms: dict[str, str]) -> None:
    """Raise InvalidError if a row cannot be enrolled; `first` is the number of the first row, for the message.

    Two subjects that differ only in their Unicode form are refused, since they would become one subject. `forms`: the
    subjects of earlier batches by their normalised form; those of this batch are added.
    """
    required = [name for name in batch.schema.names if name not in ("name", "expires_at", "crop")]
    for name in required:
        if batch.column(name).null_count:
            raise InvalidError(f"a row from {first} on has no {name}")
    for number, face in enumerate(_faces(batch), first):
        try:
            if not _TOKEN.fullmatch(face.token):
                raise InvalidError(f"expected a face of 32 hexadecimal digits, got {face.token!r}")
            face_records.validated(face, dimensions)
            if not face.subject.isascii() and forms.setdefault(normalised(face.subject), face.subject) != face.subject:
                raise InvalidError("the subject differs only in its Unicode form from that of another row")
        except InvalidError as error:
            raise InvalidError(f"row {number}: {error}") from error


def _faces(batch: Any) -> list[face_records.FaceRecord]:
    vectors = np.asarray(batch.column("vector").flatten().to_numpy(zero_copy_only=False), "<f4")
    others = [batch.column(name).to_pylist() for name in batch.schema.names if name != "vector"]
    rows: Iterable[tuple[Any, ...]] = zip(*others, vectors.reshape(batch.num_rows, -1), strict=True)
    return [
        face_records.FaceRecord(
            0, subject, name, metadata, expires_at, token, details, created_at, vector.tobytes(), crop
        )
        for subject, name, metadata, expires_at, token, details, created_at, crop, vector in rows
    ]


def _get_or_create(db: apsw.Connection, source: Collection, now: float) -> Collection:
    """Return the collection of the source's name, created like the source if it is missing.

    Raises:
        ConflictError: it has other properties than the source.
    """
    try:
        target = collection_records.find(db, source.name)
    except NotFoundError:
        target = collection_records.insert(db, source)
        audit.record(db, AuditEvent("create_collection", now, None, target.id))
        return target
    for name in ("embedder", "fingerprint", "dimensions"):
        theirs, ours = getattr(source, name), getattr(target, name)
        if theirs != ours:
            raise ConflictError(f"{source.name!r} has the {name} {ours!r}; the file has {theirs!r}")
    if source.encrypted and not target.encrypted:
        raise ConflictError(f"the file is encrypted, and {source.name!r} is not")
    return target


def _enrol(db: apsw.Connection, source: Collection, faces: list[face_records.FaceRecord], now: float) -> int:
    """Enrol the faces that are not enrolled yet, and return their number."""
    target = _get_or_create(db, source, now)
    remove_expired_among(db, target.id, {face.subject for face in faces}, now)
    enrolled = [face.token for face in faces if face_records.insert_record(db, target.id, face)]
    if enrolled:
        ids = face_records.ids_of_tokens(db, target.id, enrolled)
        audit.record(db, AuditEvent("enrol", now, None, target.id, face_records.subjects_of(db, ids), ids))
    return len(enrolled)


def _is_encrypted(path: Path) -> bool:
    """Return whether a parquet file is encrypted.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return file.read(len(_ENCRYPTED_MAGIC)) == _ENCRYPTED_MAGIC


def _encryption_properties(keys: CollectionKeys) -> Any:
    """Return the `encryption_properties` for pyarrow's writer.

    Raises:
        LockedError: there is no operator's key.
    """
    if keys.operator is None:
        raise LockedError("a file cannot be encrypted without an operator's key")
    parquet, factory = _crypto_factory(keys)
    configuration = parquet.EncryptionConfiguration(
        footer_key=keys.operator.id, uniform_encryption=True, double_wrapping=False, data_key_length_bits=256
    )
    return factory.file_encryption_properties(parquet.KmsConnectionConfig(), configuration)


def _decryption_properties(keys: CollectionKeys) -> Any:
    """Return the `decryption_properties` for pyarrow's reader, which raises LockedError if the key is missing."""
    parquet, factory = _crypto_factory(keys)
    return factory.file_decryption_properties(parquet.KmsConnectionConfig())


def _crypto_factory(keys: CollectionKeys) -> tuple[Any, Any]:
    """Return the module `pyarrow.parquet.encryption`, and its factory over the operator's key."""
    parquet = importlib.import_module("pyarrow.parquet.encryption")

    class OperatorKeyClient(parquet.KmsClient):  # type: ignore[misc,name-defined]
        """A key management service for pyarrow that wraps keys with the operator's key, in this process."""

        def wrap_key(self, key: bytes, id: str) -> str:
            """Return the data key, wrapped, in the form that the file stores."""
            return base64.b64encode(keys.operator_key(id, "the file").wrap(key, _KEY_ABOUT)).decode()

        def unwrap_key(self, wrapped: str, id: str) -> bytes:
            """Return the file's data key."""
            try:
                return keys.operator_key(id, "the file").unwrap(base64.b64decode(wrapped, validate=True), _KEY_ABOUT)
            except ValueError as error:
                raise InvalidError("the file's key is not valid base64") from error

    return parquet, parquet.CryptoFactory(lambda _: OperatorKeyClient())
