"""Parse JSON bodies of many megabytes without blocking the event loop.

A JSON parser holds the interpreter lock until it returns, also in a thread: 0.1 s for 64 MiB of base64, 3 s for 64 MiB
of empty strings (processor time on the development machine). So long strings are replaced by placeholders first, with
one step for each string; the rest is parsed only if it is small and has few values; long strings are decoded in chunks.
"""

from __future__ import annotations

import binascii
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from pydantic import BaseModel
from pydantic_core import from_json

from app.errors import BadRequest

Model = TypeVar("Model", bound=BaseModel)

BOM = b"\xef\xbb\xbf"
# Bodies of at most this size are parsed in the event loop.
SMALL_BYTES = 64 * 2**10
# Bytes that are searched or decoded in one step.
CHUNK_BYTES = 2**18
# Parsing an integer takes a time quadratic in its digits; no number that a route accepts has so many.
MAX_DIGITS = 400
# Longer strings are replaced by placeholders. The strings that remain are too short for MAX_DIGITS + 1 digits, so the
# search for long numbers cannot match inside them.
LONG_STRING_BYTES = MAX_DIGITS

_DIGITS_TO_ZERO = bytes.maketrans(b"123456789", b"000000000")
_URL_SAFE_TO_STANDARD = bytes.maketrans(b"-_", b"+/")
_WHITESPACE = b" \t\r\n"
_NOT_BASE64 = "not base64; images are never fetched from a URL or a path"


class TooComplex(Exception):
    """The JSON exceeds a limit; `str()` says which."""


@dataclass(frozen=True)
class JsonLimits:
    """The most that is parsed: bytes without long strings, values, and containers (objects and arrays)."""

    bytes: int
    values: int
    containers: int


@dataclass(frozen=True)
class ParsedJson(Generic[Model]):
    """A validated body. `long_strings` maps each placeholder in it to the long string it replaces, still escaped."""

    value: Model
    long_strings: Mapping[str, memoryview] = field(default_factory=dict)

    def base64(self, text: str) -> bytes:
        """Return the bytes that a string of the body encodes. See `from_base64`."""
        raw = self.long_strings.get(text)
        return from_base64(text) if raw is None else _decode_base64(_unescape(raw))

    def text(self, text: str) -> str:
        """Return a string of the body in full."""
        raw = self.long_strings.get(text)
        return text if raw is None else str(from_json(b'"%b"' % bytes(raw)))


def parse(schema: type[Model], body: bytes | bytearray, limits: JsonLimits) -> ParsedJson[Model]:
    """Validate a JSON body, which may begin with a byte order mark.

    Raises:
        TooComplex: over a limit. pydantic.ValidationError: not JSON, or not of this schema.
    """
    body = body.removeprefix(BOM) if body.startswith(BOM) else body  # bytearray.removeprefix always copies
    if len(body) <= SMALL_BYTES:
        return ParsedJson(schema.model_validate_json(body))
    rest, long_strings = _replace_long_strings(body, limits)
    _check_complexity(rest, limits)
    return ParsedJson(schema.model_validate_json(rest), long_strings)


def from_base64(text: str) -> bytes:
    """Decode base64 or a data URI of it: standard or URL-safe, padded or not, in one line or several.

    Raises:
        BadRequest: if the text is neither, or encodes no bytes.
    """
    chunks = (text[start : start + CHUNK_BYTES] for start in range(0, len(text), CHUNK_BYTES))
    return _decode_base64(chunk.encode("utf-8", "replace") for chunk in chunks)


def _replace_long_strings(body: bytes | bytearray, limits: JsonLimits) -> tuple[bytes, dict[str, memoryview]]:
    """Return the body with placeholders for long strings, and the long strings, still escaped."""
    prefix = secrets.token_hex(8)  # random, so that no string of the client equals a placeholder
    view = memoryview(body)
    parts: list[bytes | memoryview] = []
    long_strings: dict[str, memoryview] = {}
    copied = steps = 0
    opening = body.find(b'"')
    while opening >= 0:
        closing = opening
        while closing == opening or (closing >= 0 and _is_escaped(body, closing)):
            steps += 1
            if steps > 2 * limits.values:  # a value and its key; escaped quotes count as well
                raise TooComplex(f"a body may contain {limits.values} values")
            closing = body.find(b'"', closing + 1)
        if closing < 0:
            break  # the parser reports the unterminated string
        if closing - opening > LONG_STRING_BYTES:
            placeholder = f"{prefix}-{len(long_strings)}"
            long_strings[placeholder] = view[opening + 1 : closing]
            parts += [view[copied:opening], f'"{placeholder}"'.encode()]
            copied = closing + 1
        opening = body.find(b'"', closing + 1)
    if len(body) - copied + sum(map(len, parts)) > limits.bytes:
        raise TooComplex(f"a body may have {limits.bytes} bytes besides strings of more than {LONG_STRING_BYTES} bytes")
    return b"".join([*parts, view[copied:]]), long_strings


def _is_escaped(body: bytes | bytearray, quote: int) -> bool:
    """Return whether an odd number of backslashes precedes this quote."""
    start, window = quote, 1
    while start > 0:
        chunk = body[max(0, start - window) : start]
        stripped = chunk.rstrip(b"\\")
        start -= len(chunk) - len(stripped)
        if stripped:
            break
        window = min(2 * window, CHUNK_BYTES)
    return (quote - start) % 2 == 1


def _check_complexity(rest: bytes, limits: JsonLimits) -> None:
    """Raise TooComplex if the JSON has more values, containers or digits than allowed."""
    values = containers = 0
    for begin in range(0, len(rest), CHUNK_BYTES):
        chunk = rest[begin : begin + CHUNK_BYTES + MAX_DIGITS]
        values += chunk.count(b",", 0, CHUNK_BYTES)
        containers += chunk.count(b"[", 0, CHUNK_BYTES) + chunk.count(b"{", 0, CHUNK_BYTES)
        if b"0" * (MAX_DIGITS + 1) in chunk.translate(_DIGITS_TO_ZERO):
            raise TooComplex(f"a number may have {MAX_DIGITS} digits")
    if values > limits.values:
        raise TooComplex(f"a body may contain {limits.values} values")
    if containers > limits.containers:
        raise TooComplex(f"a body may contain {limits.containers} objects and arrays")


def _unescape(raw: memoryview) -> Iterator[bytes]:
    """Yield the text of an escaped JSON string in chunks.

    Raises:
        BadRequest: it has characters outside ASCII, or invalid escapes.
    """
    start = 0
    while start < len(raw):
        chunk = bytes(raw[start : start + CHUNK_BYTES])
        # Do not cut within an escape, of which the longest is \uXXXX.
        if start + CHUNK_BYTES < len(raw) and (cut := chunk.rfind(b"\\", CHUNK_BYTES - 6)) >= 0:
            chunk = chunk[:cut]
        if not chunk.isascii():
            raise BadRequest(_NOT_BASE64)
        try:
            yield str(from_json(b'"%b"' % chunk)).encode("utf-8", "replace")
        except ValueError as error:
            raise BadRequest(_NOT_BASE64) from error
        start += len(chunk)


def _decode_base64(chunks: Iterator[bytes]) -> bytes:
    decoded, pending = bytearray(), b""
    for number, chunk in enumerate(chunks):
        text = pending + (_strip_data_uri(chunk) if number == 0 else chunk).translate(
            _URL_SAFE_TO_STANDARD, _WHITESPACE
        )
        whole = max(0, len(text) - 1) // 4 * 4  # keep the last group: only it may be padded
        decoded += _decode_groups(text[:whole])
        pending = text[whole:]
    if b"=" not in pending:
        pending += b"=" * (-len(pending) % 4)
    decoded += _decode_groups(pending, is_last=True)
    if not decoded:
        raise BadRequest("the image is empty")
    return bytes(decoded)


def _strip_data_uri(chunk: bytes) -> bytes:
    """Return the data of a data URI; any other text unchanged."""
    if chunk[:5].lower() != b"data:":
        return chunk
    header, _, data = chunk.partition(b",")
    if not header.lower().endswith(b";base64"):
        raise BadRequest("a data URI must be base64: data:image/png;base64,...")
    return data


def _decode_groups(text: bytes, *, is_last: bool = False) -> bytes:
    """Return the bytes of whole groups of four characters."""
    try:
        if b"=" in text and not is_last:
            raise binascii.Error
        return binascii.a2b_base64(text, strict_mode=True)
    except binascii.Error as error:
        raise BadRequest(_NOT_BASE64) from error
