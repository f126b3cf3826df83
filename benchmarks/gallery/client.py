"""What benchmarks ask of a running service's gallery: make a collection, enrol, search, erase it."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx

Json = dict[str, Any]
TIMEOUT_S = 120
AT_ONCE = 8  # pictures of one search request: the service has a deadline for each
NO_FACE = "urn:vestibule:problem:no-face"


class GalleryClient:
    """`concurrency` requests at a time.

    Each method raises httpx.HTTPError where a request or one of its pictures fails: figures would be wrong without it.
    """

    def __init__(self, client: httpx.AsyncClient, concurrency: int):
        self._client = client
        self._places = asyncio.Semaphore(concurrency)

    async def classes(self, classifier: str) -> list[str]:
        """The names of a classifier's classes, in order."""
        names: list[str] = _succeeded(await self._client.get(f"/models/{classifier}")).json()["card"]["classes"]
        return names

    @asynccontextmanager
    async def collection(self, name: str, embedder: str | None = None) -> AsyncIterator[None]:
        """An empty collection of that name, of the default face embedder unless another is named; erased in the end.

        What a run that broke off left is erased first.
        """
        path = f"/collections/{name}"
        if (await self._client.get(path)).is_success:
            _succeeded(await self._client.delete(path))
        _succeeded(await self._client.put(path, json={"embedder": embedder}))
        yield
        _succeeded(await self._client.delete(path))

    async def enrol(self, collection: str, subject: str, picture: bytes) -> Json:
        """The answer to one picture of a subject, whose largest face is enrolled whatever is against it.

        No face to enrol is an answer, too.
        """
        path = f"/collections/{collection}/subjects/{subject}/faces"
        answer = await self._post(path, [picture], {"quality_gate": False})
        _all_answered(path, (one for one in answer["failed"] if one["problem"]["type"] != NO_FACE))
        return answer

    async def search(self, pictures: Sequence[bytes], **params: str | float | bool) -> tuple[Json, list[list[Json]]]:
        """The last answer without its data, which say how was decided; the faces found in each picture, in order."""
        starts = range(0, len(pictures), AT_ONCE)
        answers = await asyncio.gather(
            *(self._post("/search", pictures[start : start + AT_ONCE], params) for start in starts)
        )
        data = [one for answer in answers for one in answer.pop("data")]
        _all_answered("/search", (one for one in data if "problem" in one))
        return answers[-1], [one["faces"] for one in data]

    async def _post(self, path: str, pictures: Sequence[bytes], params: Json) -> Json:
        """The answer to a list of pictures."""
        async with self._places:
            sent = {"input": [base64.b64encode(picture).decode() for picture in pictures]}
            body: Json = _succeeded(await self._client.post(path, params=params, json=sent)).json()
            return body


def _all_answered(path: str, failed: Iterable[Json]) -> None:
    for one in failed:
        raise httpx.HTTPError(f"{path}: {one['problem']}")


def _succeeded(answer: httpx.Response) -> httpx.Response:
    """As `raise_for_status`, which would not tell what the service says is wrong."""
    if not answer.is_success:
        message = f"{answer.request.url.path}: {answer.status_code} {answer.text[:500]}"
        raise httpx.HTTPStatusError(message, request=answer.request, response=answer)
    return answer
