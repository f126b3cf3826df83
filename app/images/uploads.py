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
from app.schemas import ImageInput

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

FILE = {"type": "string", "format": "binary"}


FILES_OR_NONE = {"type": "array", "items": FILE}
FILES = {**FILES_OR_NONE, "minItems": 1}


@dataclass(frozen=True)
class Images:
    """What was sent, in order: bytes, or what is wrong with one of a list. `many`: the client sent a list."""

    items: tuple[bytes | VestibuleError, ...]
    many: bool


async def read_pictures(request: Request, max_images: int, in_thread: InThread) -> Images:
    """The pictures of a request, still encoded. Large JSON is parsed `in_thread`.

    Raises:
        BadRequest, BodyTooLarge, TooManyImages, UnsupportedMediaType.
    """
    content_type = content_type_of(request)
    with whole():
        if content_type == "multipart/form-data":
            files = await read_files(request, (PART,), max_images)
            pictures = Images(tuple(data for _, data in files), many=len(files) > 1)
        elif content_type == "application/json":
            pictures = await read_json(
                request, ImageInput, INPUT_FORM, lambda sent: images_of(sent, sent.value.input, max_images), in_thread
            )
        elif content_type.startswith("image/"):
            pictures = raw_image(await request.body())
        else:
            raise UnsupportedMediaType("send multipart/form-data, image/* or application/json")
    return check_count(pictures, max_images)


INPUT_FORM = '{"input": "<base64>"} or {"input": ["<base64>", ...]}'


def content_type_of(request: Request) -> str:
    """Return the media type of the request body in lower case, without parameters."""
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


def check_count(pictures: Images, max_images: int) -> Images:
    """Return the images.

    Raises:
        TooManyImages: there are more than `max_images`.
    """
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


async def read_files(request: Request, names: tuple[str, ...], most: int) -> list[tuple[str, bytes]]:
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


def raw_image(body: bytes) -> Images:
    """Return the image that an `image/*` body is.

    Raises:
        BadRequest: the body is empty.
    """
    if not body:
        raise BadRequest("the body is empty")
    return Images((body,), many=False)


async def read_whole(request: Request) -> bytearray:
    """The body. Copied as it comes: to join the pieces of 64 MiB at the end blocks the event loop for 70 ms."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
    return body


async def read_json(
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


def images_of(body: Parsed[Any], sent: str | list[str], max_images: int) -> Images:
    """Return the images of a JSON body in which `sent` is one image or a list of them.

    Raises:
        BadRequest: the list is empty, or the only image is not base64. TooManyImages.
    """
    if isinstance(sent, str):
        return Images((body.base64(sent),), many=False)
    if not sent:
        raise BadRequest("the list of pictures is empty")
    if len(sent) > max_images:
        raise _too_many(max_images)
    return Images(tuple(_or_error(body, text) for text in sent), many=True)


def _or_error(body: Parsed[Any], text: str) -> bytes | VestibuleError:
    try:
        return body.base64(text)
    except BadRequest as error:
        return error
