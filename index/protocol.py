"""The interfaces of a storage engine that app/ uses; they name no engine and no files.

`index.factory.open_storage` opens a `Storage`, whose attributes are the other interfaces.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, cast

from index.audit_chain import AuditEntry, LogFault, LogHead
from index.types import (
    ApiKey,
    Collection,
    CollectionUsage,
    CountedSubject,
    Face,
    Floats,
    Fusion,
    Item,
    ItemStatus,
    Job,
    JobResult,
    Match,
    NewFace,
    Outcome,
    PendingCrop,
    ProcessedItem,
    Receipt,
    Reembedding,
    ReembeddingProgress,
    Rejection,
    SearchScope,
    Subject,
    Where,
)

# Seconds for which a worker holds a job or a re-embedding without renewing its lease.
LEASE_S = 15.0
FIRST = -(2**63)  # less than every id of a `PendingCrop`

P = ParamSpec("P")
T = TypeVar("T")
U = TypeVar("U")


class PlannedChange(Protocol[T]):
    """A change of a gallery that is not submitted yet."""

    def then(self, answer: Callable[[T], U]) -> PlannedChange[U]:
        """Return the same change with the result `answer(result)`, computed before the commit.

        If `answer` raises, nothing is changed.
        """
        ...

    def once(
        self, key: str, request: bytes, encode: Callable[[T], str], decode: Callable[[str], T]
    ) -> PlannedChange[T]:
        """Return a change that is made at most once for the idempotency key `key`.

        The encoded result is stored in the change's own transaction for at least a day. If a change with this key was
        committed before, nothing is changed, and the result is the stored one, decoded. `request` is a digest of what
        the caller sent: `submit`'s future raises ConflictError if the stored change had another.

        Encode ids and measurements only, no names, metadata, crops or vectors: the stored result may outlive the
        erasure of its subject. `request` must depend on data that nobody can guess, such as an image, because an engine
        may encrypt the result by it.
        """
        ...

    def submit(self) -> Future[T]:
        """Submit the change; the future has its result once it is durable."""
        ...


class ChangingMethod(Protocol[P, T]):
    """A method that changes a gallery."""

    @property
    def planned(self) -> Callable[P, PlannedChange[T]]:
        """The method that returns the change without submitting it, for callers that await it in no thread."""
        ...

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """Commit the change, wait until it is durable, and return its result."""
        ...


class _ChangingMethodDescriptor(Protocol[P, T]):
    def __get__(self, instance: object, owner: type) -> ChangingMethod[P, T]: ...


def changes(method: Callable[Concatenate[Any, P], T]) -> _ChangingMethodDescriptor[P, T]:
    """Declare a method of the interface as a ChangingMethod."""
    return cast("_ChangingMethodDescriptor[P, T]", method)


class Gallery(Protocol):
    """Collections of subjects, which have faces. Every change is durable when it returns.

    Several processes may use the same gallery at the same time.

    Every method raises NotFoundError if a collection, a subject or a face does not exist, and LockedError if it needs a
    key that is missing. An expired subject does not exist, although it can still be erased. Every change is in the
    audit log; `actor` is the id of the API key that asked for it, and anything else raises InvalidError.
    """

    def clock(self) -> float:
        """Return the time by which subjects expire and leases end, in seconds since 1970."""
        ...

    @changes
    def create(
        self,
        /,  # else no setting could be called `self`
        name: str,
        embedder: str,
        fingerprint: str,
        dimensions: int,
        *,
        encrypted: bool = False,
        actor: str | None = None,
        **settings: Any,
    ) -> Collection:
        """Create a collection for the vectors of one pipeline.

        `encrypted`: nothing that identifies a subject is stored as plain text.

        Raises:
            ConflictError: a collection of that name exists. LockedError: it is to be encrypted, and there is no
                operator's key.
        """
        ...

    def collection(self, name: str) -> Collection:
        """Return the collection."""
        ...

    def collections(self, after: str = "", limit: int = 100) -> list[Collection]:
        """Return at most `limit` collections whose names are greater than `after`, sorted by name."""
        ...

    @changes
    def drop(self, name: str, *, actor: str | None = None) -> Receipt:
        """Erase the collection and everything in it."""
        ...

    @changes
    def put_subject(
        self,
        collection: str,
        key: str,
        *,
        name: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        expires_at: float | None = None,
        actor: str | None = None,
    ) -> CountedSubject:
        """Create the subject, or replace its properties. `expires_at`: seconds since 1970.

        Raises:
            InvalidError: see `index.validation.check_subject`; or `expires_at` is in the past.
        """
        ...

    def subject(self, collection: str, key: str) -> CountedSubject:
        """Return the subject."""
        ...

    def subjects(self, collection: str, after: str = "", limit: int = 100) -> list[CountedSubject]:
        """Return at most `limit` subjects that follow the key `after`, in an order that does not change."""
        ...

    @changes
    def remove_subject(self, collection: str, key: str, *, actor: str | None = None) -> Receipt:
        """Erase the subject and all its faces."""
        ...

    @changes
    def enrol(
        self, collection: str, faces: Sequence[NewFace], fingerprint: str, *, actor: str | None = None
    ) -> list[Face]:
        """Add the faces, whose vectors come from the pipeline `fingerprint`, all or none, and return them.

        Subjects that do not exist are created. Vectors are scaled to length 1.

        Raises:
            ConflictError: the collection has another pipeline. InvalidError: a vector is not finite, is zero or has
                another number of dimensions; or a key or details cannot be stored.
        """
        ...

    def faces(self, collection: str, key: str, after: int = 0, limit: int = -1) -> list[Face]:
        """Return at most `limit` faces of the subject (-1: all) with ids above `after`, in the order of enrolment."""
        ...

    def crop(self, collection: str, face: str) -> bytes:
        """Return the encoded crop that was stored with a face."""
        ...

    @changes
    def remove_faces(self, collection: str, faces: Sequence[str], *, actor: str | None = None) -> Receipt:
        """Erase the faces with these tokens, all or none; their subjects are kept."""
        ...

    def receipt(self, token: str) -> Receipt:
        """Return the receipt of an erasure."""
        ...

    def size(self, collection: str) -> int:
        """Return how many faces a search compares or looks up."""
        ...

    def usage(self, collection: str) -> CollectionUsage:
        """Return the size of the collection."""
        ...

    def note_search(self, collection: str, found: Iterable[Subject], *, actor: str | None = None) -> None:
        """Add a search and the subjects in its results to the audit log; durable within seconds."""
        ...


class Searches(Protocol):
    """Searches of a gallery. All methods raise NotFoundError, and LockedError as `Gallery` does.

    `fingerprint`: the pipeline of the queries, None for the collection's; ConflictError if it is another, for example
    because the collection was re-embedded meanwhile. Queries are scaled to length 1; InvalidError as `Gallery.enrol`.
    """

    def scope(self, collection: str, where: Where | None = None) -> SearchScope:
        """Return the collection, its usage and the numbers that the filter selects, of one moment."""
        ...

    def search(
        self,
        collection: str,
        queries: Floats,
        k: int = 5,
        *,
        fusion: Fusion = "best",
        where: Where | None = None,
        fingerprint: str | None = None,
    ) -> list[list[Match]]:
        """Return for each query [N, D] the `k` most similar subjects that match the filter, the most similar first.

        The similarity of a subject is that of its nearest face ("best"), or the mean over all its faces ("mean").
        Subjects that feedback rules out for a query are left out. Filter and feedback apply before the best `k` are
        taken, so that `k` subjects are returned if there are that many.
        """
        ...

    def compare(
        self,
        collection: str,
        key: str,
        query: Floats,
        *,
        fusion: Fusion = "best",
        fingerprint: str | None = None,
    ) -> tuple[Match | None, bool]:
        """Compare a face [D] with one subject.

        Return the match, None where the subject has no face, and whether feedback rules it out.
        """
        ...


class Feedback(Protocol):
    """Faces that callers reported not to be a subject.

    A search does not return a subject for a face that is at least as similar to such a rejected face as to the subject.
    """

    @changes
    def add(
        self,
        collection: str,
        key: str,
        vectors: Floats,
        crops: Sequence[bytes | None] | None = None,
        fingerprint: str | None = None,
        actor: str | None = None,
    ) -> list[Rejection]:
        """Store that these faces [N, D] are not the subject. They are erased with the subject.

        Raises:
            NotFoundError: no such collection or subject. InvalidError, ConflictError: see `Searches`.
        """
        ...

    def of_subject(
        self, collection: str, key: str, after: tuple[float, int] = (0.0, 0), limit: int = -1
    ) -> list[Rejection]:
        """Return at most `limit` rejected faces of the subject (-1: all), by `created_at` and `id`, above `after`.

        Raises:
            NotFoundError: no such collection or subject.
        """
        ...

    @changes
    def remove(self, collection: str, key: str, token: str, *, actor: str | None = None) -> Receipt:
        """Erase a rejected face, so that it no longer affects searches.

        Raises:
            NotFoundError: no such collection, subject or rejected face.
        """
        ...


class JobQueue(Protocol):
    """Submit, list and cancel bulk jobs: many faces that are uploaded at once and enrolled in the background."""

    @changes
    def begin(self, collection: str, settings: Mapping[str, object], *, actor: str | None = None) -> Job:
        """Create a job, which no worker takes before `ready`. `actor`, as in `Gallery`, is also that of its enrolments.

        Raises:
            NotFoundError: no such collection. InvalidError: the actor may be a name.
        """
        ...

    @changes
    def append(self, job: Job, items: Sequence[Item | Outcome]) -> None:
        """Add items to the job; an Outcome stands for an item that cannot be enrolled.

        Raises:
            NotFoundError: the collection was dropped. InvalidError: see `index.validation.check_item`.
        """
        ...

    @changes
    def ready(self, job: Job) -> Job:
        """Queue the job for the workers once all items were appended. From then on it survives a crash.

        Raises:
            NotFoundError: the collection was dropped.
        """
        ...

    @changes
    def abandon(self, job: Job) -> None:
        """Delete a job whose upload was not completed."""
        ...

    def job(self, collection: str, token: str) -> Job:
        """Return the job.

        Raises:
            NotFoundError: no such collection or job.
        """
        ...

    def list_jobs(self, collection: str, after: int, limit: int) -> list[Job]:
        """Return at most `limit` jobs with ids greater than `after`, oldest first.

        Raises:
            NotFoundError: no such collection.
        """
        ...

    def counts(self, job: Job) -> dict[ItemStatus, int]:
        """Return the number of items by status, without statuses that no item has."""
        ...

    def outcomes(self, job: Job, after: int, limit: int) -> list[Outcome]:
        """Return at most `limit` outcomes with numbers greater than `after`, in the order of the items."""
        ...

    @changes
    def cancel(self, collection: str, token: str, *, actor: str | None = None) -> Job:
        """Cancel the job unless it is finished, and return it. Faces that it enrolled stay enrolled.

        Raises:
            NotFoundError: no such collection or job.
        """
        ...

    @changes
    def remove_subject(self, collection: str, key: str, *, actor: str | None = None) -> Receipt:
        """Erase the subject as `Gallery.remove_subject` does, and its pending items.

        Raises:
            NotFoundError: no such collection; or no such subject, and no pending item of it.
        """
        ...


class JobWorker(Protocol):
    """Works on one bulk job at a time. No two workers of any process work on the same job.

    A worker holds a job for LEASE_S seconds after `claim` and each `keep`.
    """

    @changes
    def claim(self, postponed: Container[int] = ()) -> Job | None:
        """Take the oldest job that no other worker has and whose id is not in `postponed`; None if there is none."""
        ...

    @changes
    def keep(self, job: Job) -> bool:
        """Renew the lease; False where the job is finished or another worker's."""
        ...

    @changes
    def release(self, job: Job) -> None:
        """Release the lease."""
        ...

    def pending(self, job: Job, pictures: int) -> list[Item]:
        """Return the next batch of items, all of one kind; at most `pictures` images."""
        ...

    @changes
    def enrol(self, job: Job, results: Sequence[ProcessedItem], fingerprint: str) -> bool:
        """Enrol faces that the pipeline `fingerprint` found; False if the job is finished or another worker's.

        Items that are no longer pending, because their subject was erased, are skipped.

        Raises:
            ConflictError: the collection belongs to another pipeline.
        """
        ...

    @changes
    def finish(self, job: Job, state: JobResult, problem: str | None = None) -> None:
        """Finish the job and delete its items, unless it is another worker's now.

        A job that is done has failed if all its items failed.
        """
        ...


class Reembeddings(Protocol):
    """Request, watch and cancel re-embeddings of collections by another pipeline, from the stored crops."""

    @changes
    def begin(
        self,
        collection: str,
        embedder: str,
        fingerprint: str,
        dimensions: int,
        *,
        actor: str | None = None,
    ) -> ReembeddingProgress:
        """Request a re-embedding with this pipeline; `actor` as in `Gallery`.

        Raises:
            NotFoundError: no such collection. ConflictError: it has vectors of that pipeline already, or is being
            re-embedded, or a face has no crop. InvalidError: the actor may be a name.
        """
        ...

    def progress(self, collection: str) -> ReembeddingProgress:
        """Return the progress of the collection's re-embedding.

        Raises:
            NotFoundError: no such collection, or it is not being re-embedded.
        """
        ...

    @changes
    def cancel(self, collection: str, *, actor: str | None = None) -> ReembeddingProgress:
        """Cancel the re-embedding and return its last progress. The collection keeps its vectors.

        Raises:
            NotFoundError: see `progress`.
        """
        ...


class ReembeddingWorker(Protocol):
    """Works on one re-embedding at a time. No two workers of any process work on the same collection."""

    def waiting(self) -> list[Reembedding]:
        """Return the re-embeddings without a worker whose keys are available, oldest first."""
        ...

    @changes
    def claim(self, reembedding: Reembedding) -> bool:
        """Take the lease; False where another worker has it, or the re-embedding has ended."""
        ...

    @changes
    def keep(self, reembedding: Reembedding) -> bool:
        """Renew the lease; False where another worker has it, or the re-embedding has ended."""
        ...

    @changes
    def release(self, reembedding: Reembedding) -> None:
        """Release the lease."""
        ...

    def pending(self, reembedding: Reembedding, after: int, limit: int) -> list[PendingCrop]:
        """Return at most `limit` crops without a new vector, whose ids are greater than `after`, ascending."""
        ...

    @changes
    def stage(self, reembedding: Reembedding, vectors: Mapping[int, Floats]) -> bool:
        """Store new vectors [D] by the ids of `pending`; False where another worker has the lease, or it has ended.

        Faces that were erased meanwhile are skipped.

        Raises:
            InvalidError: see `Gallery.enrol`.
        """
        ...

    @changes
    def switch(self, reembedding: Reembedding) -> int | None:
        """Replace the old vectors unless new ones are missing; return the number of missing vectors (0: done).

        None where another worker has the lease, or the re-embedding has ended. The switch is recorded in the audit log
        and has a receipt.
        """
        ...

    @changes
    def block(self, reembedding: Reembedding, problem: str) -> None:
        """Store why the re-embedding cannot continue. A worker retries it when the lease has expired."""
        ...


class Maintenance(Protocol):
    """Background work on a gallery: it finishes erasures, erases expired subjects and keeps searches fast."""

    def run(self) -> bool:
        """Run one round. Return False where another process does maintenance.

        A step that fails, because of a damaged row for example, does not prevent the others.

        Raises:
            MaintenanceError: some steps failed.
        """
        ...

    def release(self) -> None:
        """Let another process do maintenance."""
        ...


class Storage(Protocol):
    """An open storage engine. Use it from any thread."""

    @property
    def gallery(self) -> Gallery:
        """Collections, subjects, faces and receipts."""
        ...

    @property
    def searches(self) -> Searches:
        """Searches of the gallery."""
        ...

    @property
    def feedback(self) -> Feedback:
        """Feedback on the gallery's subjects."""
        ...

    @property
    def jobs(self) -> JobQueue:
        """The queue of bulk jobs."""
        ...

    @property
    def job_worker(self) -> JobWorker:
        """A worker for bulk jobs, of this process."""
        ...

    @property
    def reembeddings(self) -> Reembeddings:
        """The requested re-embeddings."""
        ...

    @property
    def reembedding_worker(self) -> ReembeddingWorker:
        """A worker for re-embeddings, of this process."""
        ...

    @property
    def maintenance(self) -> Maintenance:
        """The maintenance."""
        ...

    def warnings(self) -> list[str]:
        """Return what an operator should know at startup, one sentence each."""
        ...

    def problems(self) -> list[str]:
        """Return why the storage is degraded now, such as a full disk. Names no contents of the gallery.

        Does not wait: the event loop calls it.
        """
        ...

    def close(self) -> None:
        """Close all files and connections. No other thread may use the storage any more."""
        ...


class AuditLog(Protocol):
    """A log of changes, whose lines form a hash chain (index/audit_chain.py)."""

    def head(self) -> LogHead:
        """Return number and hash of the last line, after all events that were recorded so far."""
        ...

    def read(self, cursor: int = 0, limit: int = 100) -> tuple[list[AuditEntry], int]:
        """Return at most `limit` entries from `cursor` on (0: the first), and the cursor of the next page.

        Raises:
            InvalidError: no entry begins at the cursor. CorruptError: a line is malformed; see `verify`. TooNewError.
        """
        ...

    def verify(self, heads: Iterable[LogHead] = ()) -> LogFault | None:
        """Check the whole log, also against `heads` that were stored elsewhere; return the first fault or None.

        Raises:
            TooNewError.
        """
        ...


class KeyStore(Protocol):
    """API keys, by the hashes of their secrets, and the audit log of changes to keys and models.

    Opened at the first use, and again after `close`. Revoked and expired keys stay in it, so that a service that had
    keys once never becomes open again. All methods raise UnavailableError if the keys cannot be read at present.
    """

    def clock(self) -> float:
        """Return the time by which keys expire, in seconds since 1970."""
        ...

    def version(self) -> int:
        """Return a number that differs after each change by any process. Called for each request."""
        ...

    def by_hash(self) -> Mapping[bytes, ApiKey]:
        """Return every key ever created by its hash, oldest first, as of `version` or later."""
        ...

    def insert(self, key: ApiKey, hash: bytes) -> None:
        """Store a new key; this object's next `version` is another."""
        ...

    def revoke(self, key: str) -> None:
        """Revoke the key with this id; this object's next `version` is another.

        Raises:
            NotFoundError. ConflictError: it is revoked already.
        """
        ...

    def record_reload(self, version: str | None, actor: str | None) -> None:
        """Record in the audit log that `version` of a model is now served; None: that the model was removed."""
        ...

    @property
    def audit(self) -> AuditLog:
        """The audit log that has the changes of keys and models; it may have others, too."""
        ...

    def close(self) -> None:
        """Close all files and connections."""
        ...


class Reloads(Protocol):
    """A token for each model that was reloaded, which all processes of the service see."""

    def tokens(self) -> Mapping[str, str]:
        """Return the tokens by model.

        Raises:
            OSError, UnavailableError: they cannot be read at present.
        """
        ...

    def announce(self, model: str, token: str) -> None:
        """Replace the model's token.

        Raises:
            OSError, UnavailableError: it cannot be written at present.
        """
        ...


class Quota(Protocol):
    """Requests of one API key, which all replicas of the service count together."""

    def take(self) -> float:
        """Count a request and return 0, or return the seconds until the next may be allowed. Waits for nothing."""
        ...


class Quotas(Protocol):
    """Quotas of API keys. Use it from one thread."""

    def quota(self, key: str, per_minute: int) -> Quota:
        """Return the quota of the key with this id."""
        ...

    def close(self) -> None:
        """Stop the background work. Quotas that are used later count for this process only."""
        ...


class ServiceState(Protocol):
    """What the processes and replicas of the service share besides the gallery."""

    @property
    def keys(self) -> KeyStore:
        """The API keys."""
        ...

    @property
    def reloads(self) -> Reloads:
        """The reloads of models."""
        ...

    @property
    def quotas(self) -> Quotas | None:
        """The quotas of API keys; None if each process counts for itself."""
        ...

    def close(self) -> None:
        """Close all files and connections."""
        ...
