"""Parse JSON bodies of many megabytes without blocking the event loop.

A JSON parser holds the interpreter lock until it returns, also in a thread: 0.1 s for 64 MiB of base64, 3 s for 64 MiB
of empty strings (processor time on the development machine). So long strings are cut out before parsing, one step for
each string; the rest is parsed only if it is small and holds few values; a cut string is decoded a piece at a time.
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
# Bytes that are parsed at once, whatever they hold.
SMALL = 64 * 2**10
# Bytes that are searched or decoded in one step.
PIECE = 2**18
# A JSON parser takes a time that is quadratic in an integer's digits; no number that a route accepts has so many.
MOST_DIGITS = 400
# Bytes beyond which a string is cut out. What stays in place is too short to be taken for a number with more digits.
LONG_STRING = MOST_DIGITS

_DIGITS_TO_ZERO = bytes.maketrans(b"123456789", b"000000000")
_URL_SAFE_TO_STANDARD = bytes.maketrans(b"-_", b"+/")
_WHITESPACE = b" \t\r\n"


class TooComplex(Exception):
    """The JSON has more values, or more bytes besides its long strings, than are parsed. `str()` says which limit."""


@dataclass(frozen=True)
class Limits:
    """Of what is parsed: bytes besides long strings, values, and objects and arrays among them."""

    bytes: int
    values: int
    containers: int


@dataclass(frozen=True)
class Parsed(Generic[Model]):
    """A validated body. `long_strings` maps the placeholders that stand in it for long strings to these, as sent."""

    value: Model
    long_strings: Mapping[str, memoryview] = field(default_factory=dict)

    def base64(self, text: str) -> bytes:
        """The bytes that a string of the body encodes. See `from_base64`."""
        raw = self.long_strings.get(text)
        return from_base64(text) if raw is None else _from_pieces(_unescaped(raw))

    def text(self, text: str) -> str:
        """A string of the body in full."""
        raw = self.long_strings.get(text)
        return text if raw is None else str(from_json(b'"%b"' % bytes(raw)))


def parse(schema: type[Model], body: bytes | bytearray, limits: Limits) -> Parsed[Model]:
    """Validate a JSON body, which may begin with a byte order mark.

    Raises:
        TooComplex: over a limit. pydantic.ValidationError: not JSON, or not of this schema.
    """
    body = body.removeprefix(BOM) if body.startswith(BOM) else body  # of a bytearray it is always a copy
    if len(body) <= SMALL:
        return Parsed(schema.model_validate_json(body))
    rest, long_strings = _cut(body, limits)
    _check(rest, limits)
    return Parsed(schema.model_validate_json(rest), long_strings)


def from_base64(text: str) -> bytes:
    """Decode base64 or a data URI of it: standard or URL-safe, padded or not, in one line or several.

    Raises:
        BadRequest: neither, or no bytes at all.
    """
    pieces = (text[start : start + PIECE] for start in range(0, len(text), PIECE))
    return _from_pieces(piece.encode("utf-8", "replace") for piece in pieces)


def _cut(body: bytes | bytearray, limits: Limits) -> tuple[bytes, dict[str, memoryview]]:
    """The body with placeholders in place of long strings, and these strings, still escaped."""
    prefix = secrets.token_hex(8)  # so that no string of the client's is a placeholder
    view = memoryview(body)
    parts: list[bytes | memoryview] = []
    long_strings: dict[str, memoryview] = {}
    copied = steps = 0
    opening = _find_quote(body, 0)
    while opening >= 0:
        closing = opening
        while closing == opening or (closing >= 0 and _is_escaped(body, closing)):
            steps += 1
            if steps > 2 * limits.values:  # a value and its key; an escaped quote counts as much
                raise TooComplex(f"a body may hold {limits.values} values")
            closing = _find_quote(body, closing + 1)
        if closing < 0:
            break  # the parser reports it
        if closing - opening > LONG_STRING:
            placeholder = f"{prefix}-{len(long_strings)}"
            long_strings[placeholder] = view[opening + 1 : closing]
            parts += [view[copied:opening], f'"{placeholder}"'.encode()]
            copied = closing + 1
        opening = _find_quote(body, closing + 1)
    if len(body) - copied + sum(map(len, parts)) > limits.bytes:
        raise TooComplex(f"a body may have {limits.bytes} bytes besides strings of more than {LONG_STRING} bytes")
    return b"".join([*parts, view[copied:]]), long_strings


def _find_quote(body: bytes | bytearray, start: int) -> int:
    for begin in range(start, len(body), PIECE):
        if (at := body.find(b'"', begin, begin + PIECE)) >= 0:
            return at
    return -1


def _is_escaped(body: bytes | bytearray, quote: int) -> bool:
    """Whether an odd number of backslashes precedes this quote."""
    start, window = quote, 1
    while start > 0:
        piece = body[max(0, start - window) : start]
        text = piece.rstrip(b"\\")
        start -= len(piece) - len(text)
        if text:
            break
        window = min(2 * window, PIECE)
    return (quote - start) % 2 == 1


def _check(rest: bytes, limits: Limits) -> None:
    """Refuse what would take the parser long."""
    values = containers = 0
    for begin in range(0, len(rest), PIECE):
        piece = rest[begin : begin + PIECE + MOST_DIGITS]
        values += piece.count(b",", 0, PIECE)
        containers += piece.count(b"[", 0, PIECE) + piece.count(b"{", 0, PIECE)
        if b"0" * (MOST_DIGITS + 1) in piece.translate(_DIGITS_TO_ZERO):
            raise TooComplex(f"a number may have {MOST_DIGITS} digits")
    if values > limits.values:
        raise TooComplex(f"a body may hold {limits.values} values")
    if containers > limits.containers:
        raise TooComplex(f"a body may hold {limits.containers} objects and arrays")


def _unescaped(raw: memoryview) -> Iterator[bytes]:
    """The text of a JSON string of ASCII characters, a piece at a time.

    Raises:
        BadRequest: it is none.
    """
    start = 0
    while start < len(raw):
        piece = bytes(raw[start : start + PIECE])
        if start + PIECE < len(raw) and (cut := piece.rfind(b"\\", PIECE - 6)) >= 0:
            piece = piece[:cut]  # not within an escape, of which the longest is \uXXXX
        if not piece.isascii():
            raise BadRequest(_NOT_BASE64)
        try:
            yield str(from_json(b'"%b"' % piece)).encode("utf-8", "replace")
        except ValueError as error:
            raise BadRequest(_NOT_BASE64) from error
        start += len(piece)


_NOT_BASE64 = "not base64; pictures are never fetched from a URL or a path"


def _from_pieces(pieces: Iterator[bytes]) -> bytes:
    decoded, pending = bytearray(), b""
    for number, piece in enumerate(pieces):
        text = pending + (_without_header(piece) if number == 0 else piece).translate(
            _URL_SAFE_TO_STANDARD, _WHITESPACE
        )
        whole = max(0, len(text) - 1) // 4 * 4  # the last group is kept back: only that may be padded
        decoded += _groups(text[:whole])
        pending = text[whole:]
    if len(pending) % 4:
        pending += b"=" * (-len(pending) % 4) if b"=" not in pending else b""
    decoded += _groups(pending, is_last=True)
    if not decoded:
        raise BadRequest("the picture is empty")
    return bytes(decoded)


def _without_header(piece: bytes) -> bytes:
    """A data URI's data; anything else as it is."""
    if piece[:5].lower() != b"data:":
        return piece
    header, _, data = piece.partition(b",")
    if not header.lower().endswith(b";base64"):
        raise BadRequest("a data URI must be base64: data:image/png;base64,...")
    return data


def _groups(text: bytes, *, is_last: bool = False) -> bytes:
    """The bytes of whole groups of four characters."""
    try:
        if b"=" in text and not is_last:
            raise binascii.Error
        return binascii.a2b_base64(text, strict_mode=True)
    except binascii.Error as error:
        raise BadRequest(_NOT_BASE64) from error
