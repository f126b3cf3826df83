"""Stored rows of a gallery, as exports and imports read and write them, independent of the storage engine.

Metadata and details are JSON, vectors [D] are little-endian float32. `id` is the row's id in the gallery that it was
read from, 0 in a file; a gallery that loads the row gives it an id of its own. Times are seconds since 1970.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeVar, get_args

import numpy as np

from index.audit_chain import LogHead
from index.errors import ConflictError, InvalidError
from index.sightings import SightingSettings
from index.types import Calibration, Collection
from index.validation import (
    check_key,
    check_subject,
    check_timestamp,
    normalised,
    normalised_json,
    parse_object,
    unit_vectors,
)

T = TypeVar("T")
U = TypeVar("U")

BATCH = 4096  # rows that are read, or loaded in one transaction, at once
_TOKEN = re.compile("[0-9a-f]{32}")


# The records are not frozen, which takes several times as long: an enrolment creates one for each face.
@dataclass(slots=True)
class SubjectRecord:
    """Everything stored about a subject."""

    id: int
    subject: str
    name: str | None
    metadata: str
    created_at: float
    expires_at: float | None


@dataclass(slots=True)
class FaceRecord:
    """Everything stored about a face and its subject, but the time of the subject's creation."""

    id: int
    subject: str
    name: str | None
    metadata: str
    expires_at: float | None
    token: str
    details: str
    created_at: float
    vector: bytes
    crop: bytes | None


@dataclass(slots=True)
class RejectionRecord:
    """Everything stored about a rejected face, and the key of its subject."""

    id: int
    subject: str
    token: str
    created_at: float
    vector: bytes
    crop: bytes | None


@dataclass(frozen=True)
class ExportedCollection:
    """A collection with what belongs to it as a whole: its calibrations by version, and its settings of sightings."""

    collection: Collection
    calibrations: tuple[Calibration, ...]
    sightings: SightingSettings


@dataclass(frozen=True)
class Export:
    """An export of a whole gallery: its own random id, its gallery's id, its time, and the head of the audit log."""

    id: str
    gallery: str
    created_at: float
    head: LogHead


Kind = Literal["subjects", "faces", "feedback"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class ExportPart:
    """A part of an export, whose rows are loaded in their order: rows of one kind of a collection, or the receipts.

    `collection`: the collection's number in the export.
    """

    export: Export
    kind: Kind | Literal["receipts"]
    collection: int = 0

    @property
    def name(self) -> str:
        """The name of the part within its export."""
        return self.kind if self.kind == "receipts" else f"{self.collection}-{self.kind}"


def validated_subject(record: SubjectRecord) -> SubjectRecord:
    """Return the subject with key and metadata in Unicode form C.

    Raises:
        InvalidError: it cannot be stored; see `index.validation.check_subject` and `check_timestamp`.
    """
    check_subject(record.subject, record.name, parse_object(record.metadata, "metadata"), record.expires_at)
    check_timestamp(record.created_at, "created_at")
    return replace(record, subject=normalised(record.subject), metadata=normalised_json(record.metadata))


def validated_face(record: FaceRecord, dimensions: int) -> FaceRecord:
    """Return the face with its vector scaled to length 1, and its metadata in Unicode form C.

    Raises:
        InvalidError: it cannot be stored; see `unit_vectors`, `check_subject`, `check_object` and `check_timestamp`.
    """
    check_subject(record.subject, record.name, parse_object(record.metadata, "metadata"), record.expires_at)
    parse_object(record.details, "details")
    check_timestamp(record.created_at, "created_at")
    vector = _scaled(record.vector, dimensions)
    return replace(record, vector=vector, metadata=normalised_json(record.metadata))


def validated_rejection(record: RejectionRecord, dimensions: int) -> RejectionRecord:
    """Return the rejected face with its vector scaled to length 1, and its subject's key in Unicode form C.

    Raises:
        InvalidError: it cannot be stored; see `unit_vectors`, `check_key` and `check_timestamp`.
    """
    check_key(record.subject, "subject")
    check_timestamp(record.created_at, "created_at")
    return replace(record, subject=normalised(record.subject), vector=_scaled(record.vector, dimensions))


def check_token(token: str) -> None:
    """Raise InvalidError if this is not the public id of a face or of a receipt."""
    if not _TOKEN.fullmatch(token):
        raise InvalidError(f"expected an id of 32 hexadecimal digits, got {token!r}")


def check_same_pipeline(source: Collection, target: Collection) -> None:
    """Raise ConflictError unless faces of the collection `source`, of a file, can be loaded into `target`."""
    for name in ("embedder", "fingerprint", "dimensions"):
        theirs, ours = getattr(source, name), getattr(target, name)
        if theirs != ours:
            raise ConflictError(f"{source.name!r} has the {name} {ours!r}; the file has {theirs!r}")
    if source.encrypted and not target.encrypted:
        raise ConflictError(f"the file is encrypted, and {source.name!r} is not")


def new_faces(
    faces: Iterable[FaceRecord], enrolled: Mapping[str, tuple[Hashable, bytes]], owner: Callable[[str], Hashable]
) -> list[FaceRecord]:
    """Return the faces whose tokens are not enrolled yet, each token once.

    `enrolled`: by the tokens that are enrolled, the owner and the vector of the face; `owner`: of a face's subject.

    Raises:
        ConflictError: another face has the token.
    """
    known = dict(enrolled)
    added = []
    for face in faces:
        identity = owner(face.subject), face.vector
        if face.token not in known:
            known[face.token] = identity
            added.append(face)
        elif known[face.token] != identity:
            raise ConflictError(f"face {face.token} is enrolled with another collection, subject or vector")
    return added


def pages(read: Callable[[T], list[U]], first: T, position: Callable[[U], T]) -> Iterator[list[U]]:
    """Yield pages of rows; `read` returns those behind a position."""
    after = first
    while rows := read(after):
        after = position(rows[-1])  # before the caller can change the row
        yield rows


def _scaled(vector: bytes, dimensions: int) -> bytes:
    return unit_vectors(np.frombuffer(vector, "<f4")[None], dimensions).astype("<f4").tobytes()
