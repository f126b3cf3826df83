"""Run reads and changes of the gallery off the event loop, and raise its errors as those of the API."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

from pydantic_core import to_jsonable_python

from app.errors import Conflict, Locked, NotFound, Unprocessable, full_disk
from app.inference.executors import Executors
from index import errors as index_errors
from index.embedded.store.ledger import Change

T = TypeVar("T")
U = TypeVar("U")


class PipelineChanged(Exception):
    """The collection was re-embedded after the request's vectors were computed."""


class GalleryExecutor:
    """Runs calls of the gallery in threads. All methods raise NotFound, Conflict, Locked and Unprocessable."""

    def __init__(self, executors: Executors):
        self._executors = executors

    async def read(self, function: Callable[[], T]) -> T:
        """Run a function that reads the gallery and return its result."""
        with _api_errors():
            return await self._executors.run_io(function)

    async def run_background(self, function: Callable[[], T]) -> T:
        """Run a step of background work, which may wait for commits, in a thread that no request needs.

        Raises:
            DiskFull.
        """
        with _api_errors():
            return await self._executors.run_background(function)

    async def commit(self, change: Change[T]) -> T:
        """Commit the change and return its result. No thread waits for the disk.

        Raises:
            DiskFull.
        """
        with _api_errors():
            return await asyncio.wrap_future(change.submit())

    async def commit_response(self, change: Change[T], to_response: Callable[[T], U]) -> U:
        """Commit the change and return `to_response` of its result.

        The response is built and serialised before the commit: if that fails, the change is rolled back.

        Raises:
            DiskFull.
        """

        def checked(result: T) -> U:
            response = to_response(result)
            json.dumps(to_jsonable_python(response), ensure_ascii=False, allow_nan=False).encode()
            return response

        return await self.commit(change.then(checked))


@contextmanager
def _api_errors() -> Iterator[None]:
    """Raise the gallery's errors as those of the API."""
    try:
        with full_disk():
            yield
    except index_errors.NotFoundError as error:
        raise NotFound(str(error)) from error
    except index_errors.ConflictError as error:
        raise Conflict(str(error)) from error
    except index_errors.LockedError as error:
        raise Locked(str(error)) from error
    except index_errors.InvalidError as error:
        raise Unprocessable(str(error)) from error


@contextmanager
def conflict_as_pipeline_changed() -> Iterator[None]:
    """Raise PipelineChanged for a Conflict, in calls that pass vectors of the pipeline which the collection had."""
    try:
        yield
    except Conflict as error:
        raise PipelineChanged from error


async def retry_once(attempt: Callable[[], Awaitable[T]]) -> T:
    """Return the result of `attempt`, which is repeated once if it raises PipelineChanged.

    Raises:
        Conflict: both attempts did.
    """
    for _ in range(2):
        with suppress(PipelineChanged):
            return await attempt()
    raise Conflict("the collection was re-embedded while the request ran; send the request again")
