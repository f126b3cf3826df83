"""A call as a value: the request, and how the response is read. The clients send it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, cast
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from vestibule_client.errors import TimedOut, UnexpectedAnswer, Unreachable, read_problem
from vestibule_client.files import File
from vestibule_client.pictures import Part
from vestibule_client.retries import retry_after

T = TypeVar("T", bound=BaseModel | File)


@dataclass(frozen=True)
class Call(Generic[T]):
    """`path` is the OpenAPI document's, whose parameters are `names`. Values of `query` that are None are not sent.

    The body is one of `files` (parts of a form), `json` or `content`, or empty.
    """

    method: str
    path: str
    answer: type[T]
    names: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[Part, ...] = ()
    json: Any = None
    content: bytes | None = None
    content_type: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def request(self) -> dict[str, Any]:
        """The arguments of `httpx.Client.build_request`.

        Raises:
            ValueError: a name that would change the path.
        """
        arguments: dict[str, Any] = {
            "method": self.method,
            "url": self.path.format_map({key: _segment(name) for key, name in self.names.items()}),
            "params": {key: value for key, value in self.query.items() if value is not None},
        }
        headers: dict[str, str | None] = dict(self.headers)
        if self.files:
            # File names are not sent, since they may reveal more than the image.
            arguments["files"] = [(name, ("picture", data, "application/octet-stream")) for name, data in self.files]
        if self.json is not None:
            arguments["json"] = self.json
        if self.content is not None:
            arguments |= {"content": self.content}
            headers["content-type"] = self.content_type
        if headers:
            arguments["headers"] = headers
        return arguments

    def read(self, response: httpx.Response) -> T:
        """The response as a model.

        Raises:
            Problem: the service reports an error. UnexpectedAnswer: the response cannot be read.
        """
        request_id = response.headers.get("x-request-id")
        if not response.is_success:
            raise read_problem(response.status_code, response.content).error(request_id, retry_after(response))
        if issubclass(self.answer, File):
            return cast(T, _file(response))
        try:
            return cast(T, self.answer.model_validate_json(response.content))
        except ValidationError as error:
            raise UnexpectedAnswer(f"{self.method} {self.path}: unexpected response: {error}") from error


def _segment(name: str) -> str:
    """A name as a segment of a path."""
    if name in ("", ".", "..") or "/" in name:
        raise ValueError(f"{name!r} cannot be a name")
    return quote(name, safe="")


def _file(response: httpx.Response) -> File:
    media_type = response.headers.get("content-type", "")
    if not media_type.startswith("image/"):
        raise UnexpectedAnswer(f"expected an image, got {media_type or 'no media type'}")
    seed = response.headers.get("x-seed")
    return File(response.content, media_type, int(seed) if seed else None, response.headers.get("etag"))


@contextmanager
def translated(url: httpx.URL) -> Iterator[None]:
    """Convert errors of httpx to `VestibuleError`."""
    try:
        yield
    except httpx.ConnectTimeout as error:
        raise Unreachable(f"no service responds at {url}") from error
    except httpx.TimeoutException as error:
        raise TimedOut(f"no response from {url} within the timeout") from error
    except httpx.ConnectError as error:
        raise Unreachable(f"no service responds at {url}: {error}") from error
    except httpx.HTTPError as error:
        raise Unreachable(f"the connection to {url} was lost: {error}") from error
