"""Data types of a gallery, independent of the storage engine. Times are seconds since 1970."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

Fusion = Literal["best", "mean"]

# A metadata filter: for each key the allowed values. A subject must have an allowed value under every key.
Where = Mapping[str, Sequence[str | float | bool]]


@dataclass(frozen=True)
class Collection:
    """Face vectors of one pipeline.

    `fingerprint` identifies detector, alignment, preprocessing and weights of the `embedder`. `generation` is
    incremented by each re-embedding. `encrypted`: nothing that identifies a subject is stored as plain text.
    """

    id: int
    name: str
    embedder: str
    fingerprint: str
    dimensions: int
    settings: dict[str, Any]
    created_at: float
    generation: int = 0
    encrypted: bool = False


@dataclass(frozen=True)
class Subject:
    """A person, or a thing, identified by the caller's own `key`."""

    id: int
    key: str
    name: str | None
    metadata: dict[str, Any]
    created_at: float
    expires_at: float | None


@dataclass(frozen=True)
class CountedSubject(Subject):
    """A subject and its number of faces."""

    faces: int


@dataclass(frozen=True)
class Face:
    """An enrolled face of the subject with the key `subject`.

    `token` is the face's public id; `details` are measurements of the image.
    """

    id: int
    token: str
    subject: str
    details: dict[str, Any]
    created_at: float


@dataclass(frozen=True)
class NewFace:
    """A vector [D] to enrol, which is scaled to length 1, and optionally the encoded crop of the face to store."""

    subject: str
    vector: Floats
    details: Mapping[str, Any] = field(default_factory=dict)
    crop: bytes | None = None


@dataclass(frozen=True)
class Receipt:
    """Proof of an erasure. `erased_at`: None until no file contains the data any more."""

    token: str
    subjects: int
    faces: int
    requested_at: float
    erased_at: float | None
    sightings: int = 0


@dataclass(frozen=True)
class Match:
    """A subject found by a search, its cosine similarity to the query, and the token of its nearest face."""

    subject: Subject
    similarity: float
    face: str


@dataclass(frozen=True)
class CollectionUsage:
    """Size of a collection.

    `exact`: searches compare every face, because there is no approximate index. `file_bytes`: size of its segments and
    its index.
    """

    subjects: int
    faces: int
    exact: bool
    file_bytes: int


JobResult = Literal["done", "failed", "cancelled"]
JobState = Literal["receiving", "queued", "running"] | JobResult
ItemStatus = Literal["pending", "enrolled", "rejected", "failed", "erased", "cancelled"]
ItemKind = Literal["picture", "vector"]


@dataclass(frozen=True)
class Job:
    """A bulk enrolment job. `problem`: why it failed; `actor`: id of the key that sent it."""

    id: int
    collection: str
    collection_id: int
    token: str
    state: JobState
    settings: dict[str, Any]
    created_at: float
    finished_at: float | None
    problem: str | None
    actor: str | None = None


@dataclass(frozen=True)
class Properties:
    """Properties that replace those of a subject."""

    name: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    expires_at: float | None = None


@dataclass(frozen=True)
class Item:
    """An item of a job: an encoded image, or a vector as little-endian float32, to enrol for the key `subject`."""

    number: int
    subject: str
    kind: ItemKind
    data: bytes
    properties: Properties | None = None


@dataclass(frozen=True)
class Outcome:
    """Status of an item of a job; `result` is JSON without personal data."""

    number: int
    status: ItemStatus
    result: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ProcessedItem:
    """An item, its outcome, and the faces to enrol for its subject."""

    item: Item
    outcome: Outcome
    faces: Sequence[NewFace] = ()


@dataclass(frozen=True)
class Calibration:
    """A calibration of a collection for one pipeline, fitted on site; `data` is JSON without personal data.

    `token` identifies it in the API, `version` counts the calibrations of the collection from 1.
    """

    id: int
    token: str
    version: int
    fingerprint: str
    data: str
    created_at: float
    in_use: bool


@dataclass(frozen=True)
class SearchScope:
    """A collection, its usage, and the numbers of subjects and faces that the filter selects (None: no filter).

    `calibration`: that of the collection for its pipeline; None if the embedder's own is used.
    """

    collection: Collection
    usage: CollectionUsage
    selected: tuple[int, int] | None
    calibration: Calibration | None = None


@dataclass(frozen=True)
class Rejection:
    """A face that is not the subject's. `token` identifies it in the API, `id` is its row."""

    token: str
    created_at: float
    id: int


@dataclass(frozen=True)
class Merge:
    """A merge of subjects, by the keys of the subject that was kept and of those that it absorbed.

    `faces`: the number of faces that changed their subject. Until `undo_until` the merge can be undone; `undone_at`:
    when it was.
    """

    id: int
    token: str
    subject: str
    absorbed: tuple[str, ...]
    faces: int
    created_at: float
    undo_until: float
    undone_at: float | None = None


@dataclass(frozen=True)
class MovedFaces:
    """The result of moving faces to `subject`: the tokens of those that were another subject's before.

    `withdrawn`: the receipt for the subject's rejected faces that are the moved faces; None where there were none.
    """

    subject: CountedSubject
    faces: tuple[str, ...]
    withdrawn: Receipt | None = None


@dataclass(frozen=True)
class SubjectVectors:
    """A subject, and the tokens and vectors [N, D] of some of its faces, in the order of their ids."""

    subject: Subject
    faces: tuple[str, ...]
    vectors: Floats


ReembeddingState = Literal["queued", "running", "blocked"]


@dataclass(frozen=True)
class Reembedding:
    """The target pipeline of a collection. `token` becomes the token of the receipt for its replaced vectors.

    `problem` says why the re-embedding cannot continue at present.
    """

    collection: str
    collection_id: int
    token: str
    embedder: str
    fingerprint: str
    dimensions: int
    actor: str | None
    requested_at: float
    problem: str | None


@dataclass(frozen=True)
class ReembeddingProgress:
    """`done` of `faces` faces have a new vector. `lost` of `feedback` rejected faces have no crop and get discarded."""

    reembedding: Reembedding
    state: ReembeddingState
    faces: int
    done: int
    feedback: int
    lost: int


@dataclass(frozen=True)
class PendingCrop:
    """The crop of a face without a new vector. `id`: the face's id; negative for a rejected face."""

    id: int
    crop: bytes


@dataclass(frozen=True)
class ApiKey:
    """A key without its secret. Times in seconds since 1970; where a limit is None the service's default applies."""

    id: str
    name: str
    scopes: frozenset[str]
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None
    rate_per_minute: int | None = None
    concurrency: int | None = None

    def is_valid(self, now: float) -> bool:
        """Whether the key is neither revoked nor expired at this time."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)
