"""Read the images of a request body: multipart, a raw image, or JSON. `BodyLimit` bounds the bytes that are read here.

FastAPI cannot declare the three kinds of body side by side, so they are read here and described to OpenAPI by
`IMAGE_BODY`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message as Headers
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, MultipartState, parse_options_header
from starlette.requests import ClientDisconnect, Request

from app.errors import BadRequest, BodyTooLarge, TooManyImages, UnsupportedMediaType, VestibuleError
from app.images import large_json
from app.images.decoding import LARGE_BYTES
from app.images.large_json import ParsedJson
from app.observability import timings
from app.schemas import ImageInput
from app.settings import Settings

Body = TypeVar("Body", bound=BaseModel)
T = TypeVar("T")

# For JSON, without its images.
JSON_LIMITS = large_json.JsonLimits(bytes=2**20, values=16_384, containers=1_024)

FILE_PART = "file"
INPUT_EXAMPLE = '{"input": "<base64>"} or {"input": ["<base64>", ...]}'

FILE_SCHEMA = {"type": "string", "format": "binary"}
OPTIONAL_FILES_SCHEMA = {"type": "array", "items": FILE_SCHEMA}
FILES_SCHEMA = {"type": "array", "minItems": 1, "items": FILE_SCHEMA}

IMAGE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "An image or a list of images: JPEG, PNG, WebP, BMP or GIF.",
        "content": {
            "multipart/form-data": {
                "schema": {"type": "object", "required": [FILE_PART], "properties": {FILE_PART: FILES_SCHEMA}}
            },
            "image/*": {"schema": FILE_SCHEMA},
            "application/json": {"schema": ImageInput.model_json_schema()},
        },
    }
}


@dataclass(frozen=True)
class Images:
    """Images of a request, still encoded, in order; in a list, an error in place of each unreadable image.

    `is_list`: the client sent a list.
    """

    items: tuple[bytes | VestibuleError, ...]
    is_list: bool


def max_images(request: Request) -> int:
    """Return the largest number of images that a request may have."""
    settings: Settings = request.app.state.settings
    return settings.max_images


async def images(request: Request) -> Images:
    """Return the images of a request, for routes that take any number of them. Large JSON is parsed in a thread.

    Raises:
        BadRequest: if the body is malformed or has no image. BodyTooLarge, TooManyImages, UnsupportedMediaType.
    """
    reading = read_images(request, ImageInput, {FILE_PART: "input"}, max_images(request))
    return (await timings.timed("receive", reading))[FILE_PART]


async def read_images(
    request: Request, schema: type[BaseModel], fields: Mapping[str, str], limit: int
) -> dict[str, Images]:
    """Return the images of a request by the names of their parts in multipart bodies.

    `fields`: for each of these names the field of JSON bodies of this schema. A raw image is the FILE_PART. Other names
    are left out where the body has none of their images.

    Raises:
        BadRequest, BodyTooLarge, TooManyImages, UnsupportedMediaType.
    """

    def read_fields(body: ParsedJson[BaseModel]) -> dict[str, Images]:
        values = {name: getattr(body.value, field) for name, field in fields.items()}
        return {name: json_images(body, value, limit) for name, value in values.items() if value is not None}

    content_type = media_type(request)
    with disconnect_as_bad_request():
        if content_type == "multipart/form-data":
            files = await read_files(request, tuple(fields), len(fields) * limit)
            parts = {name: tuple(data for part, data in files if part == name) for name in fields}
            return {name: Images(items, is_list=len(items) > 1) for name, items in parts.items() if items}
        if content_type == "application/json":
            return await read_json(request, schema, INPUT_EXAMPLE, read_fields)
        if content_type.startswith("image/"):
            return {FILE_PART: raw_image(await request.body())}
    raise UnsupportedMediaType("send multipart/form-data, image/* or application/json")


def media_type(request: Request) -> str:
    """Return the media type of the request body in lower case, without parameters."""
    return request.headers.get("content-type", "").split(";")[0].strip().lower()


@contextmanager
def disconnect_as_bad_request() -> Iterator[None]:
    """Convert a disconnect while the body is read into an error response.

    Raises:
        BadRequest: the client disconnected before it had sent the whole body.
    """
    try:
        yield
    except ClientDisconnect as error:
        raise BadRequest("the connection was closed before the whole request arrived") from error


def check_count(count: int, max_images: int) -> None:
    """Check the number of a request's images.

    Raises:
        TooManyImages: there are more than `max_images`.
    """
    if count > max_images:
        raise TooManyImages(f"a request may have {max_images} images")


class _MultipartFiles:
    """Parses the file parts of a multipart body into memory; `BodyLimit` bounds it.

    Starlette's own parser, with a spool size that keeps photos of faces off the disk, takes a body that was cut short
    for whole and ignores `filename*`. With it LeNet-5 answers 1.01 (1 client) and .94 (64 clients) of the requests/s.
    """

    def __init__(self, boundary: bytes, names: tuple[str, ...], max_files: int):
        self.files: list[tuple[str, bytearray]] = []
        self._names = names
        self._max_files = max_files
        self._header = bytearray()
        self._value = bytearray()
        self._disposition = b""
        self._parser = MultipartParser(
            boundary,
            {
                "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._on_headers_finished,
                "on_part_data": lambda data, start, end: self.files[-1][1].extend(data[start:end]),
            },
        )

    @property
    def is_complete(self) -> bool:
        """Whether the end of the body was parsed."""
        return self._parser.state == MultipartState.END

    def feed(self, data: bytes) -> None:
        """Parse the next bytes of the body.

        Raises:
            FormParserError: if the data is not multipart. BadRequest: if a part is unexpected. TooManyImages.
        """
        self._parser.write(data)

    def _on_header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def _on_headers_finished(self) -> None:
        disposition, self._disposition = self._disposition, b""
        _, options = parse_options_header(disposition)
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if name not in self._names:
            expected = " and ".join(map(repr, self._names))
            raise BadRequest(f"unexpected part {name[:40]!r}; images are sent as parts named {expected}")
        if b"filename" not in options and not _has_extended_file_name(disposition):
            raise BadRequest(f"the part {name!r} has no file name, so it is not a file")
        check_count(len(self.files) + 1, self._max_files)  # per part: a body may have a million empty parts
        self.files.append((name, bytearray()))


def _has_extended_file_name(disposition: bytes) -> bool:
    """Return whether there is a `filename*` (RFC 5987), which the multipart parser ignores."""
    headers = Headers()
    headers["Content-Disposition"] = disposition.decode("latin-1")
    return headers.get_filename() is not None


async def read_files(request: Request, names: tuple[str, ...], max_files: int) -> list[tuple[str, bytes]]:
    """Return the part name and bytes of each file of a multipart body, in order.

    Raises:
        BadRequest: if the body is not multipart, is incomplete, or has no or unexpected parts. TooManyImages.
    """
    _, options = parse_options_header(request.headers["content-type"])
    boundary = options.get(b"boundary")
    if not boundary:
        raise BadRequest("the content type names no boundary")
    try:
        parser = _MultipartFiles(boundary, names, max_files)
        async for chunk in request.stream():
            parser.feed(chunk)
    except FormParserError as error:
        raise BadRequest("the body is not valid multipart") from error
    if not parser.is_complete:
        raise BadRequest("the body was cut short")
    if not parser.files:
        raise BadRequest(f"there is no part named {' or '.join(map(repr, names))}")
    return [(name, bytes(data)) for name, data in parser.files]


def raw_image(body: bytes) -> Images:
    """Return the image of an `image/*` body.

    Raises:
        BadRequest: the body is empty.
    """
    if not body:
        raise BadRequest("the body is empty")
    return Images((body,), is_list=False)


async def read_body(request: Request) -> bytearray:
    """Return the body. Chunks are appended as they arrive: joining 64 MiB blocks the event loop for 70 ms."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
    return body


async def read_json(request: Request, schema: type[Body], example: str, read: Callable[[ParsedJson[Body]], T]) -> T:
    """Parse the body as JSON of this schema and return `read(parsed)`; if it is large, in a thread. Errors show
    `example`.

    Raises:
        BadRequest: if the body does not match the schema. BodyTooLarge, TooManyImages; the errors of `read`.
    """
    body = await read_body(request)

    def work() -> T:
        return read(_parse(schema, body, example))

    if len(body) <= large_json.SMALL_BYTES:
        return work()
    executors = request.app.state.model_manager.executors
    result: T = await executors.run_cpu(work, is_long=len(body) > LARGE_BYTES)
    return result


def _parse(schema: type[Body], body: bytearray, example: str) -> ParsedJson[Body]:
    try:
        return large_json.parse(schema, body, JSON_LIMITS)
    except large_json.TooComplex as error:
        raise BodyTooLarge(str(error)) from error
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)
        if any(item["type"] == "too_long" for item in details):
            raise TooManyImages("the list of images is too long") from error
        reasons = "; ".join(sorted({item["msg"] for item in details}))
        raise BadRequest(f"the body must be {example}: {reasons}") from error


def json_images(body: ParsedJson[Any], field: str | list[str], max_images: int) -> Images:
    """Return the images of a JSON body, whose `field` is an image or a list of images.

    Raises:
        BadRequest: the list is empty, or the only image is not base64. TooManyImages.
    """
    if isinstance(field, str):
        return Images((body.base64(field),), is_list=False)
    if not field:
        raise BadRequest("the list of images is empty")
    check_count(len(field), max_images)
    return Images(tuple(_bytes_or_error(body, text) for text in field), is_list=True)


def _bytes_or_error(body: ParsedJson[Any], text: str) -> bytes | VestibuleError:
    try:
        return body.base64(text)
    except BadRequest as error:
        return error
