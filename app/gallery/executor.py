"""Run reads and changes of the gallery off the event loop, and raise its errors as those of the API."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from typing import ParamSpec, TypeVar

from pydantic_core import to_jsonable_python

from app.errors import Conflict, Locked, NotFound, Unprocessable, VestibuleError, full_disk
from app.inference.executors import Executors
from index.errors import ConflictError, InvalidError, LockedError, NotFoundError
from index.protocol import PlannedChange

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

    async def commit(self, change: PlannedChange[T]) -> T:
        """Commit the change and return its result. No thread waits for the disk.

        Raises:
            DiskFull.
        """
        with _api_errors():
            return await asyncio.wrap_future(change.submit())

    async def commit_response(self, change: PlannedChange[T], to_response: Callable[[T], U]) -> U:
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
    except tuple(_API_ERRORS) as error:
        raise _API_ERRORS[type(error)](str(error)) from error


@contextmanager
def conflict_as_pipeline_changed() -> Iterator[None]:
    """Raise PipelineChanged for a Conflict, in calls that pass vectors of the pipeline which the collection had."""
    try:
        yield
    except Conflict as error:
        raise PipelineChanged from error


def retry_once(function: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
    """Decorate a function that is called again if it raises PipelineChanged; the second time it is a Conflict."""

    @wraps(function)
    async def retrying(*args: P.args, **kwargs: P.kwargs) -> T:
        for _ in range(2):
            with suppress(PipelineChanged):
                return await function(*args, **kwargs)
        raise Conflict("the collection was re-embedded while the request ran; send the request again")

    return retrying
