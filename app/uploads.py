"""What a bulk job is sent: a zip of photos or lines of JSON -> items, each refused for itself where it is no good.

Photos of a subject lie in a folder of the subject's id: `eileen/1.jpg`. All this in memory: faces do not belong into
the temporary folder, and the body's limit bounds it.
"""

from __future__ import annotations

import base64
import binascii
import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from pydantic import TypeAdapter, ValidationError
from starlette.requests import Request

from app.body import whole
from app.bulk_schemas import BulkLine
from app.errors import (
    BadRequest,
    BodyTooLarge,
    ImageTooLarge,
    Unprocessable,
    UnsupportedMediaType,
    VestibuleError,
    problem,
)
from app.gallery_schemas import Key
from index.errors import InvalidError
from index.job_records import Item, Outcome, Properties
from index.validation import unit_vectors

ZIP, LINES = "application/zip", "application/x-ndjson"
# Beyond the body's limit, of what is packed: each picture's bytes, all together, and how many.
MOST_PACKED, MOST_UNPACKED, MOST_FILES = 32 * 2**20, 256 * 2**20, 100_000

BULK_BODY: dict[str, object] = {
    "requestBody": {
        "required": True,
        "description": (
            "A zip of photos in folders that are named by subjects' ids, or NDJSON: on each line a `subject_id`, "
            "an `image` or a `vector`, and if need be `name`, `metadata` and `expires_at`."
        ),
        "content": {
            ZIP: {"schema": {"type": "string", "format": "binary"}},
            LINES: {"schema": {"type": "string"}},
        },
    }
}

_KEY = TypeAdapter(Key)


@dataclass(frozen=True)
class Upload:
    """What was sent, whole."""

    content_type: str
    data: bytes

    def items(self, dimensions: int, *, vectors: bool) -> Iterator[Item | Outcome]:
        """In the order sent; an Outcome is of what cannot be enrolled. Vectors have length 1, whatever they had.

        Raises:
            BadRequest: not what the content type promises. BodyTooLarge: too many files, or too large when unpacked.
            Unprocessable: a vector, and not `vectors`.
        """
        if self.content_type == ZIP:
            return _from_zip(self.data)
        return _from_lines(self.data, dimensions, vectors=vectors)


async def read_upload(request: Request) -> Upload:
    """The request's body, as sent.

    Raises:
        BadRequest, BodyTooLarge, UnsupportedMediaType.
    """
    content_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if content_type not in (ZIP, LINES):
        raise UnsupportedMediaType(f"send {ZIP} or {LINES}")
    with whole():
        data = await request.body()
    if not data.strip():
        raise BadRequest("the body is empty")
    return Upload(content_type, data)


def refused(number: int, error: VestibuleError) -> Outcome:
    """An item that cannot be enrolled, and why."""
    return Outcome(number, "failed", {"problem": problem(error).model_dump(exclude_none=True)})


def _from_lines(data: bytes, dimensions: int, *, vectors: bool) -> Iterator[Item | Outcome]:
    for number, line in enumerate(io.BytesIO(data)):
        if not line.strip():
            continue
        try:
            sent = BulkLine.model_validate_json(line)
            if sent.vector is not None and not vectors:
                raise Unprocessable("vectors need the fingerprint of the pipeline that made them: ?fingerprint=...")
            yield _item(number, sent, dimensions)
        except ValidationError as error:
            reasons = "; ".join(
                sorted({": ".join([*map(str, e["loc"]), e["msg"]]) for e in error.errors(include_input=False)})
            )
            yield refused(number, BadRequest(f"not a line of a subject_id and an image or a vector: {reasons}"))
        except BadRequest as error:
            yield refused(number, error)


def _item(number: int, sent: BulkLine, dimensions: int) -> Item:
    properties = None
    if sent.model_fields_set & {"name", "metadata", "expires_at"}:
        expires_at = sent.expires_at.timestamp() if sent.expires_at else None
        properties = Properties(sent.name, sent.metadata, expires_at)
    if sent.vector is not None:
        return Item(number, sent.subject_id, "vector", _vector(sent.vector, dimensions), properties)
    assert sent.image is not None  # noqa: S101  a line has one of both
    text = sent.image.partition(",")[2] if sent.image.startswith("data:") else sent.image
    return Item(number, sent.subject_id, "picture", _base64(text), properties)


def _vector(sent: list[float] | str, dimensions: int) -> bytes:
    if isinstance(sent, str):
        data = _base64(sent)
        numbers = np.frombuffer(data, "<f4") if len(data) == 4 * dimensions else np.empty(0)
    else:
        numbers = np.array(sent, np.float64)
    try:
        return unit_vectors(numbers[None], dimensions).astype("<f4").tobytes()
    except InvalidError as error:
        raise BadRequest(str(error)) from error


def _base64(text: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRequest("not base64; pictures are never fetched from a URL or a path") from error
    if not data:
        raise BadRequest("there is nothing in it")
    return data


def _from_zip(data: bytes) -> Iterator[Item | Outcome]:
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except Exception as error:  # of hostile bytes the standard library raises many kinds
        raise BadRequest("the body is not a zip") from error
    with archive:
        files = [info for info in archive.infolist() if _is_photo(info.filename)]
        if not files:
            raise BadRequest("there is no file in the zip")
        if len(files) > MOST_FILES or sum(info.file_size for info in files) > MOST_UNPACKED:
            raise BodyTooLarge(f"a zip may hold {MOST_FILES} files, {MOST_UNPACKED} bytes in all")
        for number, info in enumerate(files):
            try:
                yield Item(number, _folder(info.filename), "picture", _unpacked(archive, info))
            except VestibuleError as error:
                yield refused(number, error)


def _is_photo(name: str) -> bool:
    """Not a folder, nor what macOS puts beside each file."""
    parts = name.split("/")
    return bool(parts[-1]) and not parts[-1].startswith(".") and "__MACOSX" not in parts


def _folder(name: str) -> str:
    """The subject that a file is of: the folder it lies in."""
    try:
        return _KEY.validate_python(name.split("/")[-2])
    except (IndexError, ValidationError) as error:
        raise BadRequest("expected the photo in a folder that is named by the subject's id") from error


def _unpacked(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    if info.file_size > MOST_PACKED:
        raise ImageTooLarge(f"the picture has {info.file_size} bytes; at most {MOST_PACKED} are read")
    try:
        return archive.read(info)
    except Exception as error:  # damaged, cut short, encrypted, or packed in a way that is not read here
        raise BadRequest("the file cannot be unpacked") from error
