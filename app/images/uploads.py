"""A request's body -> image bytes: multipart, a raw image, or JSON. `BodyLimit` bounds the bytes that are read here.

The three kinds cannot be declared as FastAPI parameters side by side, so they are read here and described to OpenAPI by
`IMAGE_BODY`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message as Headers
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel, ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from app.errors import BadRequest, BodyTooLarge, TooManyImages, UnsupportedMediaType, VestibuleError
from app.images import large_json
from app.images.decoding import LARGE_BYTES
from app.images.large_json import Parsed
from app.schemas import EmbeddingsRequest, ImageInput, NoisyInput, PicturePair

Body = TypeVar("Body", bound=BaseModel)
T = TypeVar("T")

# Of JSON besides its pictures.
JSON_LIMITS = large_json.Limits(bytes=2**20, values=16_384, containers=1_024)


class InThread(Protocol):
    """Runs a function off the event loop."""

    def __call__(self, work: Callable[[], T], /, *, is_long: bool = False) -> Awaitable[T]:
        """The function's result. `is_long`: it may take more than a fraction of a second."""
        ...


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


async def read_pictures(request: Request, max_images: int, in_thread: InThread) -> Pictures:
    """The pictures of a request, still encoded. Large JSON is parsed `in_thread`.

    Raises:
        BadRequest, BodyTooLarge, TooManyImages, UnsupportedMediaType.
    """
    content_type = _content_type(request)
    with whole():
        if content_type == "multipart/form-data":
            files = await _from_multipart(request, (PART,), max_images)
            pictures = Pictures(tuple(data for _, data in files), many=len(files) > 1)
        elif content_type == "application/json":
            pictures = await _from_json(
                request, ImageInput, _INPUT, lambda sent: _pictures(sent, sent.value.input, max_images), in_thread
            )
        elif content_type.startswith("image/"):
            pictures = _from_raw(await request.body())
        else:
            raise UnsupportedMediaType("send multipart/form-data, image/* or application/json")
    return _few(pictures, max_images)


async def read_pair(request: Request, in_thread: InThread) -> Pair:
    """The two pictures of a request, still encoded. Large JSON is parsed `in_thread`.

    Raises:
        BadRequest, BodyTooLarge, UnsupportedMediaType.
    """
    content_type = _content_type(request)
    with whole():
        if content_type == "multipart/form-data":
            files = await _from_multipart(request, PAIR, len(PAIR))
            if sorted(name for name, _ in files) != sorted(PAIR):
                raise BadRequest("send one part named 'source' and one named 'target'")
            return Pair(**dict(files))
        if content_type == "application/json":
            return await _from_json(
                request,
                PicturePair,
                '{"source": "<base64>", "target": "<base64>"}',
                lambda sent: Pair(sent.base64(sent.value.source), sent.base64(sent.value.target)),
                in_thread,
            )
    raise UnsupportedMediaType("send multipart/form-data or application/json")


async def read_noisy(request: Request, max_images: int, in_thread: InThread) -> Noisy:
    """The pictures of a request and their references, still encoded. Large JSON is parsed `in_thread`.

    Raises:
        BadRequest, BodyTooLarge, TooManyImages, UnsupportedMediaType.
    """
    content_type = _content_type(request)
    references: tuple[bytes | VestibuleError | None, ...] = ()
    with whole():
        if content_type == "multipart/form-data":
            files = await _from_multipart(request, (PART, REFERENCE), 2 * max_images)
            items = tuple(data for name, data in files if name == PART)
            references = tuple(data for name, data in files if name == REFERENCE)
            pictures = Pictures(items, many=len(items) > 1)
        elif content_type == "application/json":
            pictures, references = await _from_json(
                request, NoisyInput, _INPUT, lambda sent: _noisy(sent, max_images), in_thread
            )
        elif content_type.startswith("image/"):
            pictures = _from_raw(await request.body())
        else:
            raise UnsupportedMediaType("send multipart/form-data, image/* or application/json")
    if not pictures.items:
        raise BadRequest(f"there is no part named {PART!r}")
    if references and len(references) != len(pictures.items):
        raise BadRequest(f"{len(references)} references for {len(pictures.items)} pictures: send one for each, or none")
    return Noisy(_few(pictures, max_images), references or (None,) * len(pictures.items))


async def read_embeddings(request: Request, max_images: int, in_thread: InThread) -> tuple[EmbeddingsRequest, Pictures]:
    """OpenAI's request for embeddings, and its pictures, still encoded. Large JSON is parsed `in_thread`.

    Raises:
        BadRequest, BodyTooLarge, TooManyImages, UnsupportedMediaType.
    """
    if _content_type(request) != "application/json":
        raise UnsupportedMediaType("send application/json")
    with whole():
        return await _from_json(
            request,
            EmbeddingsRequest,
            _INPUT,
            lambda sent: (sent.value, _pictures(sent, sent.value.input, max_images)),
            in_thread,
        )


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
        raise _too_many(max_images)
    return pictures


def _too_many(max_images: int) -> TooManyImages:
    return TooManyImages(f"a request may have {max_images} pictures")


class _Parts:
    """The file parts of a multipart body, kept in memory: Starlette's own parser spools parts over 1 MB to the temp
    folder, and faces do not belong on disk. `BodyLimit` bounds what this may hold.
    """

    def __init__(self, boundary: bytes, names: tuple[str, ...], most: int):
        self.files: list[tuple[str, bytearray]] = []
        self._names = names
        self._most = most
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
            FormParserError: not multipart. BadRequest: a part that is not a picture's. TooManyImages.
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
        if b"filename" not in options and not _has_extended_file_name(self._disposition):
            raise BadRequest(f"the part {name!r} has no file name, so it is not a file")
        if len(self.files) == self._most:  # here, since a body may have a million empty parts
            raise _too_many(self._most)
        self.files.append((name, bytearray()))

    def _on_end(self) -> None:
        self.complete = True


def _has_extended_file_name(disposition: bytes) -> bool:
    """Whether there is a `filename*` (RFC 5987), which the multipart parser leaves out."""
    headers = Headers()
    headers["Content-Disposition"] = disposition.decode("latin-1")
    return headers.get_filename() is not None


async def _from_multipart(request: Request, names: tuple[str, ...], most: int) -> list[tuple[str, bytes]]:
    """Name and bytes of each file, in order, of which there are at most so many."""
    _, options = parse_options_header(request.headers["content-type"])
    boundary = options.get(b"boundary")
    if not boundary:
        raise BadRequest("the content type names no boundary")
    try:
        parts = _Parts(boundary, names, most)
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


async def read_whole(request: Request) -> bytearray:
    """The body. Copied as it comes: to join the pieces of 64 MiB at the end blocks the event loop for 70 ms."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
    return body


async def _from_json(
    request: Request,
    schema: type[Body],
    form: str,
    read: Callable[[Parsed[Body]], T],
    in_thread: InThread,
) -> T:
    """Parse the body as JSON of this schema and return the result of `read`; `form` describes the body in an error."""
    body = await read_whole(request)

    def work() -> T:
        return read(_validated(schema, body, form))

    if len(body) <= large_json.SMALL:
        return work()
    return await in_thread(work, is_long=len(body) > LARGE_BYTES)


def _validated(schema: type[Body], body: bytearray, form: str) -> Parsed[Body]:
    try:
        return large_json.parse(schema, body, JSON_LIMITS)
    except large_json.TooComplex as error:
        raise BodyTooLarge(str(error)) from error
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        if any(item["type"] == "too_long" for item in found):
            raise TooManyImages("the list of pictures is too long") from error
        reasons = "; ".join(sorted({item["msg"] for item in found}))
        raise BadRequest(f"the body must be {form}: {reasons}") from error


def _pictures(body: Parsed[Any], sent: str | list[str], max_images: int) -> Pictures:
    if isinstance(sent, str):
        return Pictures((body.base64(sent),), many=False)
    if not sent:
        raise BadRequest("the list of pictures is empty")
    if len(sent) > max_images:
        raise _too_many(max_images)
    return Pictures(tuple(_or_error(body, text) for text in sent), many=True)


def _noisy(body: Parsed[NoisyInput], max_images: int) -> tuple[Pictures, tuple[bytes | VestibuleError, ...]]:
    pictures = _pictures(body, body.value.input, max_images)
    reference = body.value.reference
    return pictures, () if reference is None else _pictures(body, reference, max_images).items


def _or_error(body: Parsed[Any], text: str) -> bytes | VestibuleError:
    try:
        return body.base64(text)
    except BadRequest as error:
        return error
