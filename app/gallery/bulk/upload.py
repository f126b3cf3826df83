"""What a bulk job is sent: a zip of photos or lines of JSON -> items, each refused for itself where it is no good.

Photos of a subject lie in a folder of the subject's id: `eileen/1.jpg`. All this in memory: faces do not belong into
the temporary folder, and the body's limit bounds it.
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
from app.images.uploads import disconnect_as_bad_request
from index.embedded.store.job_records import Item, Outcome, Properties
from index.errors import InvalidError
from index.validation import check_key, unit_vectors

ZIP, LINES = "application/zip", "application/x-ndjson"
# The names that other programs use: Windows' browsers, the JSON Lines project, and others.
CONTENT_TYPES = {
    ZIP: (ZIP, "application/x-zip-compressed", "application/x-zip"),
    LINES: (LINES, "application/ndjson", "application/jsonl", "application/x-jsonlines", "application/jsonlines"),
}
# Which of the problems of a line are reported, and how long each may be.
MOST_PROBLEMS, MOST_CHARACTERS = 5, 160
# Of a line, so that the parser, which holds the interpreter lock, takes no more than about 0.1 s. More commas and
# brackets than any valid line has, of a vector of 4096 numbers and 16 KiB of metadata; more escapes than a picture in
# base64 of 32 MiB, with each slash and each line break escaped.
MOST_COMMAS, MOST_CONTAINERS, MOST_ESCAPES = 32_768, 20_000, 4_000_000
# Of an upload. As many blank ones may follow.
MOST_LINES = 1_000_000
# Beyond the body's limit, of what is packed: each picture's bytes, all together, and how many.
MOST_PACKED, MOST_UNPACKED, MOST_FILES = 32 * 2**20, 256 * 2**20, 100_000
# What Windows, macOS and Synology's NAS put beside a user's files.
ADDED_FILES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"})
ADDED_FOLDERS = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information"})

BULK_BODY: dict[str, object] = {
    "requestBody": {
        "required": True,
        "description": (
            "A zip of photos in folders that are named by subjects' ids, or NDJSON: on each line a `subject_id`, "
            "an `image` or a `vector`, and if need be `name`, `metadata` and `expires_at`."
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
    sent = request.headers.get("content-type", "").split(";")[0].strip().lower()
    content_type = next((name for name, aliases in CONTENT_TYPES.items() if sent in aliases), None)
    if content_type is None:
        raise UnsupportedMediaType(f"send {ZIP} or {LINES}")
    with disconnect_as_bad_request():
        data = await request.body()
    if not data.removeprefix(codecs.BOM_UTF8).strip():
        raise BadRequest("the body is empty")
    return Upload(content_type, data)


def refused(number: int, error: VestibuleError) -> Outcome:
    """An item that cannot be enrolled, and why."""
    return Outcome(number, "failed", {"problem": problem(error).model_dump(exclude_none=True)})


def _lines(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers from 0."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise BadRequest("the lines are in UTF-16; send them in UTF-8")
    for number, whole_line in enumerate(io.BytesIO(data)):
        line = whole_line.removeprefix(codecs.BOM_UTF8)  # of files that were joined, each may have one
        is_blank = not line.strip()
        if number >= MOST_LINES * (2 if is_blank else 1):
            raise BodyTooLarge(f"one upload may have {MOST_LINES} lines")
        if not is_blank:
            yield number, line


def _check_structure(line: bytes) -> None:
    """Refuse a line that would take the parser long. It is counted in pieces, between which other threads run."""
    commas = containers = escapes = 0
    for begin in range(0, len(line), CHUNK_BYTES):
        end = begin + CHUNK_BYTES
        commas += line.count(b",", begin, end)
        containers += line.count(b"[", begin, end) + line.count(b"{", begin, end)
        escapes += line.count(b"\\", begin, end)
    for count, most, what in (
        (commas, MOST_COMMAS, "commas"),
        (containers, MOST_CONTAINERS, "brackets"),
        (escapes, MOST_ESCAPES, "backslashes"),
    ):
        if count > most:
            raise BadRequest(f"the line has more than {most} {what}")


def _from_lines(data: bytes, dimensions: int, *, vectors: bool) -> Iterator[Item | Outcome]:
    for number, line in _lines(data):
        try:
            _check_structure(line)
            sent = BulkLine.model_validate_json(line)
            if sent.vector is not None and not vectors:
                raise Unprocessable("vectors need the fingerprint of the pipeline that made them: ?fingerprint=...")
            yield _item(number, sent, dimensions)
        except ValidationError as error:
            yield refused(number, BadRequest(f"not a line of a subject_id and an image or a vector: {_reasons(error)}"))
        except BadRequest as error:
            yield refused(number, error)


def _reasons(error: ValidationError) -> str:
    """The problems of a line, shortened: they are kept in the ledger, however long the line's keys are."""
    told = sorted({": ".join([*map(str, e["loc"]), e["msg"]]) for e in error.errors(include_input=False)})
    short = [one if len(one) <= MOST_CHARACTERS else f"{one[:MOST_CHARACTERS]}..." for one in told[:MOST_PROBLEMS]]
    return "; ".join(short) + (f"; and {len(told) - len(short)} more" if len(told) > len(short) else "")


def _item(number: int, sent: BulkLine, dimensions: int) -> Item:
    try:
        check_key(sent.subject_id, "subject")
    except InvalidError as error:
        raise BadRequest(str(error)) from error
    properties = None
    if sent.model_fields_set & {"name", "metadata", "expires_at"}:
        expires_at = sent.expires_at.timestamp() if sent.expires_at else None
        properties = Properties(sent.name, sent.metadata, expires_at)
    if sent.vector is not None:
        return Item(number, sent.subject_id, "vector", _vector(sent.vector, dimensions), properties)
    assert sent.image is not None  # noqa: S101  a line has one of both
    return Item(number, sent.subject_id, "picture", from_base64(sent.image), properties)


def _vector(sent: list[float] | str, dimensions: int) -> bytes:
    if isinstance(sent, str):
        data = from_base64(sent)
        numbers = np.frombuffer(data, "<f4") if len(data) == 4 * dimensions else np.empty(0)
    else:
        numbers = np.array(sent, np.float64)
    try:
        return unit_vectors(numbers[None], dimensions).astype("<f4").tobytes()
    except InvalidError as error:
        raise BadRequest(str(error)) from error


def _from_zip(data: bytes) -> Iterator[Item | Outcome]:
    archive = ZipReader(data)
    files = [(entry, parts) for entry in archive.entries if (parts := _parts(entry)) is not None]
    if not files:
        raise BadRequest("there is no file in the zip")
    # What is declared bounds what is unpacked, so that one sum is the request's total.
    if len(files) > MOST_FILES or sum(entry.size for entry, _ in files) > MOST_UNPACKED:
        raise BodyTooLarge(f"a zip may hold {MOST_FILES} files, {MOST_UNPACKED} bytes in all")
    for number, (entry, parts) in enumerate(files):
        try:
            if isinstance(parts, BadRequest):
                raise parts
            yield Item(number, _subject(parts), "picture", _unpacked(archive, entry))
        except VestibuleError as error:
            yield refused(number, error)


def _parts(entry: Entry) -> list[str] | BadRequest | None:
    """The parts of the entry's name, or what is wrong with it; None where it is not a photo."""
    if entry.is_folder:
        return None
    try:
        parts = entry.parts
    except BadRequest as error:
        return error
    return parts if _is_photo(parts) else None


def _is_photo(parts: list[str]) -> bool:
    """Whether it is not a file that an operating system adds to a user's."""
    *folders, file = parts
    return not (file.startswith(".") or file.lower() in ADDED_FILES or not ADDED_FOLDERS.isdisjoint(folders))


def _subject(parts: list[str]) -> str:
    """The subject that a file is of: the folder it lies in."""
    *folders, _ = parts
    if not folders:
        raise BadRequest("expected the photo in a folder that is named by the subject's id")
    try:
        return _KEY.validate_python(folders[-1])
    except ValidationError as error:
        raise BadRequest(f"the photo's folder is not a subject's id: {error.errors()[0]['msg']}") from error


def _unpacked(archive: ZipReader, entry: Entry) -> bytes:
    if entry.size > MOST_PACKED:
        raise ImageTooLarge(f"the picture has {entry.size} bytes; at most {MOST_PACKED} are read")
    return archive.read(entry)
