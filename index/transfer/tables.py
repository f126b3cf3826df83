"""Parquet files of rows of a gallery. Needs pyarrow.

The properties of the rows' collection (embedder, fingerprint, ...) are JSON in a file's metadata, under `vestibule`.
The files of an encrypted collection are encrypted (index/transfer/parquet_encryption.py).
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from index.errors import GalleryError, InvalidError, TooNewError
from index.folders import temporary_file
from index.operator_key import OperatorKey
from index.records import BATCH, FaceRecord, RejectionRecord, SubjectRecord, check_token
from index.transfer import parquet_encryption
from index.types import Collection, Receipt
from index.validation import normalised

R = TypeVar("R", bound=SubjectRecord | FaceRecord | RejectionRecord | Receipt)

KEY, VERSION = b"vestibule", 1


@dataclass(frozen=True)
class Column:
    """A column of a file. `type`: the name of a type of Arrow, or `vector`; `attribute`: of the record."""

    name: str
    type: str
    attribute: str
    nullable: bool = False


@dataclass(frozen=True)
class TableFormat(Generic[R]):
    """The columns of a kind of file; each row is a record."""

    record: type[R]
    columns: tuple[Column, ...]

    def schema(self, arrow: Any, dimensions: int) -> Any:
        """Return the schema for vectors of this many numbers."""
        vector = arrow.list_(arrow.float32(), dimensions)
        types = [vector if column.type == "vector" else getattr(arrow, column.type)() for column in self.columns]
        return arrow.schema(
            [arrow.field(it.name, type_, it.nullable) for it, type_ in zip(self.columns, types, strict=True)]
        )

    def to_batch(self, arrow: Any, schema: Any, rows: list[R]) -> Any:
        """Return the records as a batch of Arrow."""
        arrays = []
        for column in self.columns:
            values, type_ = [getattr(row, column.attribute) for row in rows], schema.field(column.name).type
            if column.type == "vector":
                numbers = arrow.array(np.frombuffer(b"".join(values), "<f4"), arrow.float32())
                arrays.append(arrow.FixedSizeListArray.from_arrays(numbers, type_.list_size))
            else:
                arrays.append(arrow.array(values, type_))
        return arrow.record_batch(arrays, schema=schema)

    def from_batch(self, batch: Any) -> list[R]:
        """Return the records of a batch of Arrow."""
        columns = {column.attribute: _values(batch.column(column.name), column) for column in self.columns}
        defaults: dict[str, Any] = {} if self.record is Receipt else {"id": 0}
        return [
            self.record(**defaults, **dict(zip(columns, values, strict=True)))
            for values in zip(*columns.values(), strict=True)
        ]


_SUBJECT = Column("subject", "string", "subject")
_PROPERTIES = (Column("name", "string", "name", True), Column("metadata", "string", "metadata"))
_CREATED_AT, _EXPIRES_AT = (
    Column("created_at", "float64", "created_at"),
    Column("expires_at", "float64", "expires_at", True),
)
_VECTOR, _CROP = Column("vector", "vector", "vector"), Column("crop", "binary", "crop", True)
_FACE, _DETAILS = Column("face", "string", "token"), Column("details", "string", "details")

SUBJECTS = TableFormat(SubjectRecord, (_SUBJECT, *_PROPERTIES, _CREATED_AT, _EXPIRES_AT))
FACES = TableFormat(FaceRecord, (_SUBJECT, *_PROPERTIES, _EXPIRES_AT, _FACE, _DETAILS, _CREATED_AT, _VECTOR, _CROP))
FEEDBACK = TableFormat(RejectionRecord, (_SUBJECT, _FACE, _CREATED_AT, _VECTOR, _CROP))
RECEIPTS = TableFormat(
    Receipt,
    (
        Column("receipt", "string", "token"),
        Column("subjects", "int64", "subjects"),
        Column("faces", "int64", "faces"),
        Column("sightings", "int64", "sightings"),
        Column("requested_at", "float64", "requested_at"),
        Column("erased_at", "float64", "erased_at", True),
    ),
)


class TableFile(Generic[R]):
    """An open file; `file`: pyarrow's."""

    def __init__(self, path: Path, file: Any, format: TableFormat[R], *, encrypted: bool):
        self._path = path
        self._file = file
        self._format = format
        self._encrypted = encrypted

    def collection(self) -> Collection:
        """Return the collection of the rows, with the id 0.

        Raises:
            InvalidError: the file describes none. TooNewError.
        """
        return _read_collection(self._file.schema_arrow.metadata or {}, encrypted=self._encrypted)

    def pages(self) -> Iterator[list[R]]:
        """Yield the records in batches of at most BATCH.

        Raises:
            InvalidError: the file is damaged, or a row lacks a value.
        """
        first = 1
        for batch in self._batches():
            for column in self._format.columns:
                if not column.nullable and batch.column(column.name).null_count:
                    raise InvalidError(f"{self._path.name}: a row from {first} on has no {column.name}")
            first += batch.num_rows
            yield self._format.from_batch(batch)

    def _batches(self) -> Iterator[Any]:
        batches = self._file.iter_batches(BATCH)
        while True:
            with _reading(self._path):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def check(self, validate: Callable[[R], object]) -> int:
        """Return the number of rows; `validate` raises InvalidError if a record cannot be loaded.

        Raises:
            InvalidError: also where two subjects differ only in their Unicode form, since they would become one.
        """
        forms: dict[str, str] = {}
        count = 0
        for page in self.pages():
            for number, record in enumerate(page, count + 1):
                try:
                    if not isinstance(record, SubjectRecord):
                        check_token(record.token)
                    validate(record)
                    if not isinstance(record, Receipt):
                        _check_form(record.subject, forms)
                except InvalidError as error:
                    raise InvalidError(f"{self._path.name}, row {number}: {error}") from error
            count += len(page)
        return count


def write_table(
    path: Path,
    format: TableFormat[R],
    pages: Iterable[list[R]],
    collection: Collection | None = None,
    key: OperatorKey | None = None,
) -> int:
    """Write the records to a new file, encrypted where `collection` is, and return their number.

    Raises:
        GalleryError: pyarrow is missing. LockedError: the file must be encrypted, and there is no operator's key.
    """
    arrow, parquet = _pyarrow()
    properties = {"version": VERSION, **({} if collection is None else {"collection": _properties(collection)})}
    schema = format.schema(arrow, collection.dimensions if collection else 0)
    schema = schema.with_metadata({KEY: json.dumps(properties)})
    encrypted = collection is not None and collection.encrypted
    options = {"encryption_properties": parquet_encryption.for_writing(key)} if encrypted else {}
    count = 0
    with (
        temporary_file(path) as temporary,
        parquet.ParquetWriter(temporary, schema, write_page_checksum=True, **options) as writer,
    ):
        for rows in pages:
            writer.write_batch(format.to_batch(arrow, schema, rows))
            count += len(rows)
    return count


@contextmanager
def open_table(path: Path, format: TableFormat[R], key: OperatorKey | None = None) -> Iterator[TableFile[R]]:
    """Open a file that `write_table` has written.

    Raises:
        InvalidError: the file is damaged, or of another format. GalleryError: pyarrow is missing. LockedError: it is
        encrypted, and the operator's key for it is missing. TooNewError.
    """
    arrow, parquet = _pyarrow()
    with _reading(path):
        encrypted = parquet_encryption.is_encrypted(path)
        options = {"decryption_properties": parquet_encryption.for_reading(key)} if encrypted else {}
        file = parquet.ParquetFile(path, page_checksum_verification=True, **options)
    with file:
        table = TableFile(path, file, format, encrypted=encrypted)
        dimensions = 0 if format.record is Receipt else table.collection().dimensions
        _check_schema(file.schema_arrow, format.schema(arrow, dimensions))
        yield table


def _pyarrow() -> tuple[Any, Any]:
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise GalleryError("parquet files need pyarrow, which is not installed: `pip install pyarrow`") from error


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    arrow, _ = _pyarrow()
    try:
        yield
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InvalidError(f"{path.name} cannot be read as parquet: {error}") from error


def _values(array: Any, column: Column) -> list[Any]:
    if column.type != "vector":
        values: list[Any] = array.to_pylist()
        return values
    numbers = np.asarray(array.flatten().to_numpy(zero_copy_only=False), "<f4")
    return [row.tobytes() for row in numbers.reshape(len(array), -1)]


def _properties(collection: Collection) -> dict[str, Any]:
    kept = [name for name in collection.__dict__ if name not in ("id", "generation", "encrypted")]
    return {name: getattr(collection, name) for name in kept}


def _read_collection(metadata: dict[bytes, bytes], *, encrypted: bool) -> Collection:
    """Return the collection that the file's metadata describes, with the id 0."""
    try:
        content = json.loads(metadata[KEY])
        version, properties = content["version"], content["collection"]
        collection = Collection(0, **properties, encrypted=encrypted)
    except (KeyError, ValueError, TypeError) as error:
        raise InvalidError("the file's metadata describes no collection; was it written by export?") from error
    if version > VERSION:
        raise TooNewError(f"the file has version {version}; this program reads up to version {VERSION}")
    check_collection(collection)
    return collection


def check_collection(collection: Collection) -> None:
    """Raise InvalidError if a property of a file's collection has the wrong type."""
    texts, settings = (collection.name, collection.embedder, collection.fingerprint), collection.settings
    if (
        not all(isinstance(text, str) and text for text in texts)
        or not isinstance(settings, dict)
        or not all(isinstance(settings.get(option, False), bool) for option in ("keep_crops", "allow_int8"))
        or not isinstance(collection.created_at, int | float)
    ):
        raise InvalidError("the file's metadata has a property of the wrong type")
    if not isinstance(collection.dimensions, int) or not 0 < collection.dimensions < 2**31:
        raise InvalidError(f"the number of dimensions is {collection.dimensions}")


def _check_schema(actual: Any, expected: Any) -> None:
    if actual.names != expected.names:
        raise InvalidError(f"expected the columns {', '.join(expected.names)}; got {', '.join(actual.names)}")
    for field in expected:
        if actual.field(field.name).type != field.type:
            type_ = actual.field(field.name).type
            raise InvalidError(f"expected the column {field.name!r} to be {field.type}; it is {type_}")


def _check_form(subject: str, forms: dict[str, str]) -> None:
    """Raise InvalidError if an earlier row's subject differs only in its Unicode form; add this one to `forms`."""
    if not subject.isascii() and forms.setdefault(normalised(subject), subject) != subject:
        raise InvalidError("the subject differs only in its Unicode form from that of another row")
