"""Parse the body of a bulk job: a zip of photos or lines of JSON -> items, some of which failed.

Photos of a subject lie in a folder named by the subject's id: `eileen/1.jpg`. The upload stays in memory: faces must
not be written to the temporary folder, and the body's limit bounds the size.
"""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from pydantic import TypeAdapter, ValidationError
from starlette.requests import Request

from app.errors import (
    BadRequest,
    BodyTooLarge,
    ImageTooLarge,
    Unprocessable,
    UnsupportedMediaType,
    VestibuleError,
    problem,
)
from app.gallery.bulk.schemas import BulkLine
from app.gallery.bulk.zip_reader import Entry, ZipReader
from app.gallery.schemas import Key
from app.images.large_json import CHUNK_BYTES, from_base64
from app.images.uploads import disconnect_as_bad_request, media_type
from index.errors import InvalidError
from index.types import Item, Outcome, Properties
from index.validation import check_key, unit_vectors

ZIP, LINES = "application/zip", "application/x-ndjson"
# Content types, with the aliases that other programs send: browsers on Windows, the JSON Lines project, and others.
CONTENT_TYPES = {
    ZIP: (ZIP, "application/x-zip-compressed", "application/x-zip"),
    LINES: (LINES, "application/ndjson", "application/jsonl", "application/x-jsonlines", "application/jsonlines"),
}
# The most reported problems of a line, and the most characters of each.
MAX_PROBLEMS, MAX_CHARACTERS = 5, 160
# Limits of a line, so that the parser, which holds the interpreter lock, takes no more than about 0.1 s. They allow a
# vector of 4096 numbers with 16 KiB of metadata, and an image of 32 MiB in base64 with all slashes and line breaks
# escaped.
MAX_COMMAS, MAX_CONTAINERS, MAX_ESCAPES = 32_768, 20_000, 4_000_000
MAX_LINES = 1_000_000  # of an upload; as many blank lines are ignored
# Limits of a zip beyond that of the body: unpacked bytes of an image, and of all images, and the number of files.
MAX_IMAGE_BYTES, MAX_UNPACKED_BYTES, MAX_FILES = 32 * 2**20, 256 * 2**20, 100_000
# Files and folders that Windows, macOS and Synology's NAS add to a user's folders.
SYSTEM_FILES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"})
SYSTEM_FOLDERS = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information"})

BULK_BODY: dict[str, object] = {
    "requestBody": {
        "required": True,
        "description": (
            "A zip of photos in folders named by subjects' ids, or NDJSON: each line has a `subject_id`, "
            "an `image` or a `vector`, and optionally `name`, `metadata` and `expires_at`."
        ),
        "content": {
            **{name: {"schema": {"type": "string", "format": "binary"}} for name in CONTENT_TYPES[ZIP]},
            **{name: {"schema": {"type": "string"}} for name in CONTENT_TYPES[LINES]},
        },
    }
}

_KEY = TypeAdapter(Key)


@dataclass(frozen=True)
class Upload:
    """The body of a bulk job."""

    content_type: str
    data: bytes

    def items(self, dimensions: int, *, vectors: bool) -> Iterator[Item | Outcome]:
        """Yield the upload's items, in order; an Outcome for each item that cannot be enrolled.

        Vectors are scaled to length 1; they are accepted only if `vectors`.

        Raises:
            BadRequest: the body is not of its content type. BodyTooLarge: it has too many files or lines, or is too
            large when unpacked. Unprocessable: it has a vector, and not `vectors`.
        """
        if self.content_type == ZIP:
            return _zip_items(self.data)
        return _line_items(self.data, dimensions, vectors=vectors)


async def read_upload(request: Request) -> Upload:
    """Read the request's body.

    Raises:
        BadRequest: if the body is empty or incomplete. BodyTooLarge, UnsupportedMediaType.
    """
    content_type = next((name for name, aliases in CONTENT_TYPES.items() if media_type(request) in aliases), None)
    if content_type is None:
        raise UnsupportedMediaType(f"send {ZIP} or {LINES}")
    with disconnect_as_bad_request():
        data = await request.body()
    if not data.removeprefix(codecs.BOM_UTF8).strip():
        raise BadRequest("the body is empty")
    return Upload(content_type, data)


def failed_item(number: int, error: VestibuleError) -> Outcome:
    """Return the outcome of an item that cannot be enrolled."""
    return Outcome(number, "failed", {"problem": problem(error).model_dump(exclude_none=True)})


def _lines(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that are not blank, with their numbers from 0."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise BadRequest("the lines are in UTF-16; send them in UTF-8")
    for number, raw_line in enumerate(io.BytesIO(data)):
        line = raw_line.removeprefix(codecs.BOM_UTF8)  # of concatenated files, each may begin with one
        is_blank = not line.strip()
        if number >= MAX_LINES * (2 if is_blank else 1):
            raise BodyTooLarge(f"one upload may have {MAX_LINES} lines")
        if not is_blank:
            yield number, line


def _check_structure(line: bytes) -> None:
    """Refuse a line that would take the parser long. Counts in chunks, between which other threads run."""
    commas = containers = escapes = 0
    for begin in range(0, len(line), CHUNK_BYTES):
        end = begin + CHUNK_BYTES
        commas += line.count(b",", begin, end)
        containers += line.count(b"[", begin, end) + line.count(b"{", begin, end)
        escapes += line.count(b"\\", begin, end)
    for count, limit, characters in (
        (commas, MAX_COMMAS, "commas"),
        (containers, MAX_CONTAINERS, "brackets"),
        (escapes, MAX_ESCAPES, "backslashes"),
    ):
        if count > limit:
            raise BadRequest(f"the line has more than {limit} {characters}")


def _line_items(data: bytes, dimensions: int, *, vectors: bool) -> Iterator[Item | Outcome]:
    for number, line in _lines(data):
        try:
            _check_structure(line)
            parsed = BulkLine.model_validate_json(line)
            if parsed.vector is not None and not vectors:
                raise Unprocessable("vectors need the fingerprint of their pipeline: ?fingerprint=...")
            yield _line_item(number, parsed, dimensions)
        except ValidationError as error:
            detail = f"expected a line with a subject_id and an image or a vector: {_summary(error)}"
            yield failed_item(number, BadRequest(detail))
        except BadRequest as error:
            yield failed_item(number, error)
        except InvalidError as error:
            yield failed_item(number, BadRequest(str(error)))


def _summary(error: ValidationError) -> str:
    """Return the problems of a line, shortened: they are stored in the ledger, however long the line's keys are."""
    problems = sorted({": ".join([*map(str, e["loc"]), e["msg"]]) for e in error.errors(include_input=False)})
    short = [text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]}..." for text in problems[:MAX_PROBLEMS]]
    return "; ".join(short) + (f"; and {len(problems) - len(short)} more" if len(problems) > len(short) else "")


def _line_item(number: int, line: BulkLine, dimensions: int) -> Item:
    """Return the item of a line, or raise InvalidError or BadRequest."""
    check_key(line.subject_id, "subject")
    properties = None
    if line.model_fields_set & {"name", "metadata", "expires_at"}:
        properties = Properties(line.name, line.metadata, line.expires_at.timestamp() if line.expires_at else None)
    if line.vector is not None:
        return Item(number, line.subject_id, "vector", _vector_bytes(line.vector, dimensions), properties)
    assert line.image is not None  # noqa: S101  BulkLine requires one of the two
    return Item(number, line.subject_id, "picture", from_base64(line.image), properties)


def _vector_bytes(vector: list[float] | str, dimensions: int) -> bytes:
    if isinstance(vector, str):
        data = from_base64(vector)
        numbers = np.frombuffer(data, "<f4") if len(data) == 4 * dimensions else np.empty(0)
    else:
        numbers = np.array(vector, np.float64)
    return unit_vectors(numbers[None], dimensions).astype("<f4").tobytes()


def _zip_items(data: bytes) -> Iterator[Item | Outcome]:
    archive = ZipReader(data)
    files = [(entry, parts) for entry in archive.entries if (parts := _photo_path(entry)) is not None]
    if not files:
        raise BadRequest("there is no file in the zip")
    # The declared sizes bound the number of unpacked bytes.
    if len(files) > MAX_FILES or sum(entry.size for entry, _ in files) > MAX_UNPACKED_BYTES:
        raise BodyTooLarge(f"a zip may contain {MAX_FILES} files and {MAX_UNPACKED_BYTES} unpacked bytes")
    for number, (entry, parts) in enumerate(files):
        try:
            if isinstance(parts, BadRequest):
                raise parts
            subject = _subject(parts)
            if entry.size > MAX_IMAGE_BYTES:
                raise ImageTooLarge(f"the image has {entry.size} bytes; at most {MAX_IMAGE_BYTES} are allowed")
            yield Item(number, subject, "picture", archive.read(entry))
        except VestibuleError as error:
            yield failed_item(number, error)


def _photo_path(entry: Entry) -> list[str] | BadRequest | None:
    """Return the parts of the entry's name, or the error in it; None if the entry is not a photo."""
    if entry.is_folder:
        return None
    try:
        parts = entry.parts
    except BadRequest as error:
        return error
    *folders, file = parts
    is_system_file = file.startswith(".") or file.lower() in SYSTEM_FILES or not SYSTEM_FOLDERS.isdisjoint(folders)
    return None if is_system_file else parts


def _subject(parts: list[str]) -> str:
    """Return the id of the photo's subject, which is the name of its folder."""
    *folders, _ = parts
    if not folders:
        raise BadRequest("expected the photo in a folder whose name is the subject's id")
    try:
        return _KEY.validate_python(folders[-1])
    except ValidationError as error:
        raise BadRequest(f"the name of the photo's folder is not a subject's id: {error.errors()[0]['msg']}") from error
