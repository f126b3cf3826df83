"""Base class of the gallery's services: call the gallery outside the event loop, and convert errors to API errors."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from typing import ParamSpec, TypeVar

from pydantic_core import to_jsonable_python

from app.errors import Conflict, Locked, NotFound, StorageUnavailable, Unprocessable, VestibuleError, raise_if_full
from app.gallery.embedding_pipeline import EmbeddingPipeline, ImageEmbedder
from app.gallery.schemas import ErasureReceipt
from app.inference.executors import Executors
from index.errors import ConflictError, InvalidError, LockedError, NotFoundError, UnavailableError
from index.protocol import PlannedChange, Storage
from index.types import Collection, Receipt

T = TypeVar("T")
U = TypeVar("U")
P = ParamSpec("P")

_API_ERRORS: dict[type[Exception], type[VestibuleError]] = {
    NotFoundError: NotFound,
    ConflictError: Conflict,
    LockedError: Locked,
    InvalidError: Unprocessable,
}


class PipelineChanged(Exception):
    """The collection was re-embedded after the request's vectors were computed."""


class StorageAccess:
    """Base of services that read and change a storage.

    All methods raise NotFound, Conflict, Locked, StorageUnavailable, Unprocessable.

    `actor`, an argument of many methods: the id of the caller's key for the audit log; None without keys.
    """

    def __init__(self, executors: Executors, backup_days: float | None):
        self._executors = executors
        self._backup_days = backup_days

    async def _read(self, function: Callable[[], T]) -> T:
        """Run a function that reads the gallery, in a thread, and return its result."""
        with _api_errors():
            return await self._executors.run_io(function)

    async def _run_background(self, function: Callable[[], T]) -> T:
        """Run a step of background work, which may wait for commits, in a thread that serves no requests.

        Raises:
            DiskFull.
        """
        with _api_errors():
            return await self._executors.run_background(function)

    async def _commit(self, change: PlannedChange[T]) -> T:
        """Commit the change and return its result. No thread waits for the disk.

        Raises:
            DiskFull.
        """
        with _api_errors():
            return await asyncio.wrap_future(change.submit())

    async def _commit_response(self, change: PlannedChange[T], to_response: Callable[[T], U]) -> U:
        """Commit the change and return `to_response` of its result.

        The response is built and serialised before the commit: if that fails, the change is rolled back.

        Raises:
            DiskFull.
        """

        def checked(result: T) -> U:
            response = to_response(result)
            json.dumps(to_jsonable_python(response), ensure_ascii=False, allow_nan=False).encode()
            return response

        return await self._commit(change.then(checked))

    async def _erase(self, change: PlannedChange[Receipt]) -> ErasureReceipt:
        """Commit an erasure and return its receipt.

        Raises:
            DiskFull.
        """
        return await self._commit_response(change, self._receipt_response)

    def _receipt_response(self, receipt: Receipt) -> ErasureReceipt:
        return ErasureReceipt.from_receipt(receipt, self._backup_days)


class GalleryAccess(StorageAccess):
    """Base of services that read and change one gallery, and compute vectors for it."""

    def __init__(self, storage: Storage, embedder: ImageEmbedder):
        super().__init__(embedder.predictor.executors, embedder.predictor.settings.backup_days)
        self._storage = storage
        self._gallery = storage.gallery
        self._embedder = embedder

    async def _collection(self, name: str) -> Collection:
        return await self._read(lambda: self._gallery.collection(name))

    async def _pipeline(self, name: str) -> tuple[Collection, EmbeddingPipeline]:
        collection = await self._collection(name)
        return collection, await self._embedder.collection_pipeline(collection)


@contextmanager
def _api_errors() -> Iterator[None]:
    """Convert the gallery's errors, and errors of a full disk, to errors of the API."""
    try:
        yield
    except Exception as error:
        raise_if_full(error)
        if isinstance(error, UnavailableError):  # its text may name hosts
            advice = "send the request again; an enrolment with the same Idempotency-Key"
            raise StorageUnavailable(advice, {"Retry-After": "1"}) from error
        if type(error) in _API_ERRORS:
            raise _API_ERRORS[type(error)](str(error)) from error
        raise


@contextmanager
def conflict_as_pipeline_changed() -> Iterator[None]:
    """Convert a Conflict to PipelineChanged, for calls with vectors of the collection's earlier pipeline."""
    try:
        yield
    except Conflict as error:
        raise PipelineChanged from error


def retry_once(function: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
    """Decorate a function: if it raises PipelineChanged, call it again; if it does again, raise Conflict."""

    @wraps(function)
    async def retrying(*args: P.args, **kwargs: P.kwargs) -> T:
        for _ in range(2):
            with suppress(PipelineChanged):
                return await function(*args, **kwargs)
        raise Conflict("the collection was re-embedded while the request ran; send the request again")

    return retrying
