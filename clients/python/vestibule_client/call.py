"""A call as a value: what is asked, and how the answer is read. Both clients send these; nothing here does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, cast
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from vestibule_client.errors import UnexpectedAnswer, read_problem
from vestibule_client.files import File
from vestibule_client.pictures import Part
from vestibule_client.retries import retry_after

T = TypeVar("T", bound=BaseModel | File)


@dataclass(frozen=True)
class Call(Generic[T]):
    """`path` is the OpenAPI document's, to be filled with `names`. Of `query`, what is None is left out.

    The body is one of `files` (parts of a form), `json` or `content`, or there is none.
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

    def request(self) -> dict[str, Any]:
        """What `httpx.Client.build_request` takes.

        Raises:
            ValueError: a name that would make another path of it.
        """
        asked: dict[str, Any] = {
            "method": self.method,
            "url": self.path.format_map({key: _segment(name) for key, name in self.names.items()}),
            "params": {key: value for key, value in self.query.items() if value is not None},
        }
        if self.files:
            # Names of files stay here: a path says more than its picture.
            asked["files"] = [(name, ("picture", data, "application/octet-stream")) for name, data in self.files]
        if self.json is not None:
            asked["json"] = self.json
        if self.content is not None:
            asked |= {"content": self.content, "headers": {"content-type": self.content_type}}
        return asked

    def read(self, response: httpx.Response) -> T:
        """The answer.

        Raises:
            Problem: what the service says is wrong. UnexpectedAnswer: this cannot be read.
        """
        request_id = response.headers.get("x-request-id")
        if not response.is_success:
            raise read_problem(response.status_code, response.content).error(request_id, retry_after(response))
        if issubclass(self.answer, File):
            return cast(T, _file(response))
        try:
            return cast(T, self.answer.model_validate_json(response.content))
        except ValidationError as error:
            raise UnexpectedAnswer(f"{self.method} {self.path}: not what this client knows: {error}") from error


def _segment(name: str) -> str:
    """A name as one part of a path."""
    if name in ("", ".", "..") or "/" in name:
        raise ValueError(f"{name!r} cannot be a name")
    return quote(name, safe="")


def _file(response: httpx.Response) -> File:
    media_type = response.headers.get("content-type", "")
    if not media_type.startswith("image/"):
        raise UnexpectedAnswer(f"expected a picture, and got {media_type or 'something unnamed'}")
    seed = response.headers.get("x-seed")
    return File(response.content, media_type, int(seed) if seed else None, response.headers.get("etag"))
