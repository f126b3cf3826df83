"""A request's body -> image bytes: multipart, a raw image, or JSON; counted before it is believed.

The three kinds cannot be declared as FastAPI parameters side by side, so they are read here and described to OpenAPI by
`IMAGE_BODY`.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import (
    BadRequest,
    BodyTooLarge,
    TooManyImages,
    UnsupportedMediaType,
    VestibuleError,
    error_response,
)
from app.schemas import EmbeddingsRequest, ImageInput, NoisyInput, PicturePair

Body = TypeVar("Body", bound=BaseModel)

PART = "file"
PAIR = ("source", "target")
REFERENCE = "reference"

IMAGE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "One picture or a list of them: JPEG, PNG, WebP, BMP or GIF.",
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": [PART],
                    "properties": {
                        PART: {"type": "array", "minItems": 1, "items": {"type": "string", "format": "binary"}}
                    },
                },
            },
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "application/json": {"schema": ImageInput.model_json_schema()},
        },
    }
}

_FILE = {"type": "string", "format": "binary"}

PAIR_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "Two pictures: JPEG, PNG, WebP, BMP or GIF.",
        "content": {
            "multipart/form-data": {
                "schema": {"type": "object", "required": list(PAIR), "properties": dict.fromkeys(PAIR, _FILE)}
            },
            "application/json": {"schema": PicturePair.model_json_schema()},
        },
    }
}

_FILES_OR_NONE = {"type": "array", "items": _FILE}
_FILES = {**_FILES_OR_NONE, "minItems": 1}

NOISY_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": (
            "One picture or a list of them: JPEG, PNG, WebP, BMP or GIF; and to measure against, if there are any, "
            "as many references, of the same sizes."
        ),
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": [PART],
                    "properties": {PART: _FILES, REFERENCE: _FILES_OR_NONE},
                }
            },
            "image/*": {"schema": _FILE},
            "application/json": {"schema": NoisyInput.model_json_schema()},
        },
    }
}

EMBEDDINGS_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": EmbeddingsRequest.model_json_schema()}},
    }
}


@dataclass(frozen=True)
class Pictures:
    """What was sent, in order: bytes, or what is wrong with one of a list. `many`: the client sent a list."""

    items: tuple[bytes | VestibuleError, ...]
    many: bool


@dataclass(frozen=True)
class Pair:
    """Two pictures to be compared, still encoded."""

    source: bytes
    target: bytes


@dataclass(frozen=True)
class Noisy:
    """Pictures to be cleaned and, for each, what it should become: None where nothing was sent to measure against."""

    pictures: Pictures
    references: tuple[bytes | VestibuleError | None, ...]


class BodyLimit:
    """Pure ASGI: answers 413 at the headers where they tell, and where the stream passes the limit if they do not."""

    def __init__(self, app: ASGIApp, limit: int):
        self.app = app
        self.limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with a counting `receive`."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if not declared.isdigit() or int(declared) > self.limit:
            await error_response(scope["path"], self._error())(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.limit:
                raise self._error()
            return message

        await self.app(scope, counted, send)

    def _error(self) -> BodyTooLarge:
        return BodyTooLarge(f"a request may have {self.limit} bytes")


async def read_pictures(request: Request, max_images: int) -> Pictures:
    """The pictures of a request, still encoded.

    Raises:
        BadRequest, BodyTooLarge, TooManyImages, UnsupportedMediaType.
    """
    content_type = _content_type(request)
    with whole():
        if content_type == "multipart/form-data":
            files = await _from_multipart(request, (PART,))
            pictures = Pictures(tuple(data for _, data in files), many=len(files) > 1)
        elif content_type == "application/json":
            pictures = _pictures(_validated(ImageInput, await request.body(), _INPUT).input)
        elif content_type.startswith("image/"):
            pictures = _from_raw(await request.body())
        else:
            raise UnsupportedMediaType("send multipart/form-data, image/* or application/json")
    return _few(pictures, max_images)


async def read_pair(request: Request) -> Pair:
    """The two pictures of a request, still encoded.

    Raises:
        BadRequest, BodyTooLarge, UnsupportedMediaType.
    """
    content_type = _content_type(request)
    with whole():
        if content_type == "multipart/form-data":
            files = await _from_multipart(request, PAIR)
            if sorted(name for name, _ in files) != sorted(PAIR):
                raise BadRequest("send one part named 'source' and one named 'target'")
            return Pair(**dict(files))
        if content_type == "application/json":
            sent = _validated(PicturePair, await request.body(), '{"source": "<base64>", "target": "<base64>"}')
            return Pair(from_base64(sent.source), from_base64(sent.target))
    raise UnsupportedMediaType("send multipart/form-data or application/json")


async def read_noisy(request: Request, max_images: int) -> Noisy:
    """The pictures of a request and their references, still encoded.

    Raises:
        BadRequest, BodyTooLarge, TooManyImages, UnsupportedMediaType.
    """
    content_type = _content_type(request)
    references: tuple[bytes | VestibuleError | None, ...] = ()
    with whole():
        if content_type == "multipart/form-data":
            files = await _from_multipart(request, (PART, REFERENCE))
            items = tuple(data for name, data in files if name == PART)
            references = tuple(data for name, data in files if name == REFERENCE)
            pictures = Pictures(items, many=len(items) > 1)
        elif content_type == "application/json":
            sent = _validated(NoisyInput, await request.body(), _INPUT)
            pictures = _pictures(sent.input)
            references = () if sent.reference is None else _pictures(sent.reference).items
        elif content_type.startswith("image/"):
            pictures = _from_raw(await request.body())
        else:
            raise UnsupportedMediaType("send multipart/form-data, image/* or application/json")
    if not pictures.items:
        raise BadRequest(f"there is no part named {PART!r}")
    if references and len(references) != len(pictures.items):
        raise BadRequest(f"{len(references)} references for {len(pictures.items)} pictures: send one for each, or none")
    return Noisy(_few(pictures, max_images), references or (None,) * len(pictures.items))


async def read_embeddings(request: Request, max_images: int) -> tuple[EmbeddingsRequest, Pictures]:
    """OpenAI's request for embeddings, and its pictures, still encoded.

    Raises:
        BadRequest, BodyTooLarge, TooManyImages, UnsupportedMediaType.
    """
    if _content_type(request) != "application/json":
        raise UnsupportedMediaType("send application/json")
    with whole():
        sent = _validated(EmbeddingsRequest, await request.body(), _INPUT)
    return sent, _few(_pictures(sent.input), max_images)


_INPUT = '{"input": "<base64>"} or {"input": ["<base64>", ...]}'


def _content_type(request: Request) -> str:
    return request.headers.get("content-type", "").split(";")[0].strip().lower()


@contextmanager
def whole() -> Iterator[None]:
    """Around what reads a body.

    Raises:
        BadRequest: the client left before all of it had come.
    """
    try:
        yield
    except ClientDisconnect as error:
        raise BadRequest("the connection was closed before the whole request arrived") from error


def _few(pictures: Pictures, max_images: int) -> Pictures:
    if len(pictures.items) > max_images:
        raise TooManyImages(f"{len(pictures.items)} pictures were sent; a request may have {max_images}")
    return pictures


class _Parts:
    """The file parts of a multipart body, kept in memory: Starlette's own parser spools parts over 1 MB to the temp
    folder, and faces do not belong on disk. `BodyLimit` bounds what this may hold.
    """

    def __init__(self, boundary: bytes, names: tuple[str, ...]):
        self.files: list[tuple[str, bytearray]] = []
        self._names = names
        self.complete = False
        self._header = bytearray()
        self._value = bytearray()
        self._disposition = b""
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._on_part_begin,
                "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._on_headers_finished,
                "on_part_data": lambda data, start, end: self.files[-1][1].extend(data[start:end]),
                "on_end": self._on_end,
            },
        )

    def feed(self, data: bytes) -> None:
        """More of the body.

        Raises:
            FormParserError: not multipart. BadRequest: a part that is not a picture's.
        """
        self._parser.write(data)

    def _on_part_begin(self) -> None:
        self._disposition = b""

    def _on_header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if name not in self._names:
            known = " and ".join(map(repr, self._names))
            raise BadRequest(f"unexpected part {name[:40]!r}; pictures are sent as parts named {known}")
        if b"filename" not in options:
            raise BadRequest(f"the part {name!r} has no file name, so it is not a file")
        self.files.append((name, bytearray()))

    def _on_end(self) -> None:
        self.complete = True


async def _from_multipart(request: Request, names: tuple[str, ...]) -> list[tuple[str, bytes]]:
    """Name and bytes of each file, in order."""
    _, options = parse_options_header(request.headers["content-type"])
    boundary = options.get(b"boundary")
    if not boundary:
        raise BadRequest("the content type names no boundary")
    try:
        parts = _Parts(boundary, names)
        async for chunk in request.stream():
            parts.feed(chunk)
    except FormParserError as error:
        raise BadRequest("the body is not valid multipart") from error
    if not parts.complete:
        raise BadRequest("the body was cut short")
    if not parts.files:
        raise BadRequest(f"there is no part named {' or '.join(map(repr, names))}")
    return [(name, bytes(data)) for name, data in parts.files]


def _from_raw(body: bytes) -> Pictures:
    if not body:
        raise BadRequest("the body is empty")
    return Pictures((body,), many=False)


def _validated(schema: type[Body], body: bytes, form: str) -> Body:
    try:
        return schema.model_validate_json(body)
    except ValidationError as error:
        reasons = "; ".join(sorted({item["msg"] for item in error.errors(include_input=False)}))
        raise BadRequest(f"the body must be {form}: {reasons}") from error


def _pictures(sent: str | list[str]) -> Pictures:
    if isinstance(sent, str):
        return Pictures((from_base64(sent),), many=False)
    if not sent:
        raise BadRequest("the list of pictures is empty")
    return Pictures(tuple(_or_error(text) for text in sent), many=True)


def _or_error(text: str) -> bytes | VestibuleError:
    try:
        return from_base64(text)
    except BadRequest as error:
        return error


def from_base64(text: str) -> bytes:
    """The bytes of base64, or of a data URI of it.

    Raises:
        BadRequest: neither, or no bytes at all.
    """
    if text.startswith("data:"):
        header, _, text = text.partition(",")
        if not header.endswith(";base64"):
            raise BadRequest("a data URI must be base64: data:image/png;base64,...")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRequest("not base64; pictures are never fetched from a URL or a path") from error
    if not data:
        raise BadRequest("the picture is empty")
    return data
