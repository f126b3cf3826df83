"""Large JSON: what is cut out before it is parsed, what is not parsed at all, and every form of base64."""

from __future__ import annotations

import base64
import json
import textwrap
import threading
import time
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from app.errors import BadRequest
from app.images import large_json
from app.images.large_json import (
    CHUNK_BYTES,
    LONG_STRING_BYTES,
    MAX_DIGITS,
    SMALL_BYTES,
    JsonLimits,
    TooComplex,
    from_base64,
    parse,
)

LIMITS = JsonLimits(bytes=2**20, values=1000, containers=100)
PICTURE = bytes(range(256)) * 3 + b"\xfb\xff\xfe~"  # its base64 has both characters that the URL-safe alphabet replaces
TEXT = base64.b64encode(PICTURE).decode()


class Body(BaseModel):
    input: str | list[str]
    other: Any = None


def picture(size: int) -> bytes:
    return (PICTURE * (size // len(PICTURE) + 1))[:size]


@pytest.mark.parametrize(
    "size", [1, 2, 3, 4, 100_000, 3 * CHUNK_BYTES // 4, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES + 2]
)
def test_every_form_of_base64_is_read(size: int) -> None:
    data = picture(size)
    standard, url_safe = base64.b64encode(data).decode(), base64.urlsafe_b64encode(data).decode()
    forms = [
        standard,
        url_safe,
        standard.rstrip("="),
        url_safe.rstrip("="),
        "\n".join(textwrap.wrap(standard, 76)) + "\n",
        "\r\n".join(textwrap.wrap(standard, 64)),
        f" {standard}\t",
        f"data:image/png;base64,{standard}",
        f"DATA:IMAGE/PNG;BASE64,{standard}",
        f"data:image/png;charset=x;base64,{url_safe}",
    ]
    for form in forms:
        assert from_base64(form) == data, form[:40]
        for body in (json.dumps({"input": form}), json.dumps({"input": form}).replace("/", "\\/")):
            padded = (body + " " * (SMALL_BYTES + 1)).encode()
            parsed = parse(Body, padded, JsonLimits(2**20, 10, 10))
            assert parsed.base64(str(parsed.value.input)) == data


@pytest.mark.parametrize(
    "text",
    [
        "this is not base64!",
        "A",
        "AAAAA",
        "AA=",
        "AA===",
        "AA==AA==",
        "=",
        "AAAA=",
        "A=AA",
        "AAAA====",
        "Ä" * 8,
        "AA\x00A",
        "https://example.org/cat.jpg",
        "/home/me/cat.jpg",
        "data:image/png,abc",
        "data:image/png;base64",
        "data:;base64,,",
    ],
)
def test_what_is_not_base64_is_refused(text: str) -> None:
    with pytest.raises(BadRequest):
        from_base64(text)
    long = (
        TEXT.rstrip("=")[: LONG_STRING_BYTES // 4 * 4] * 4 + text if not text.startswith("data:") else text + "!" * 2000
    )
    parsed = parse(Body, json.dumps({"input": long, "other": [" " * 300] * 300}).encode(), LIMITS)
    assert str(parsed.value.input) != long
    with pytest.raises(BadRequest):
        parsed.base64(str(parsed.value.input))


@pytest.mark.parametrize("text", ["", " ", "data:image/png;base64,"])
def test_an_empty_picture_is_refused(text: str) -> None:
    with pytest.raises(BadRequest, match="empty"):
        from_base64(text)


def test_padding_within_is_refused_at_every_place() -> None:
    text = "A" * (2 * CHUNK_BYTES)
    for place in (CHUNK_BYTES - 5, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES - 5):
        with pytest.raises(BadRequest):
            from_base64(text[:place] + "=" + text[place + 1 :])


@given(
    st.lists(st.text(st.sampled_from('a"\\/é\n\u2028😀'), max_size=20), max_size=6),
    st.text(st.sampled_from('b"\\{}[],:'), max_size=30),
    st.integers(1, 40),
)
def test_long_strings_are_found_whatever_is_escaped(texts: list[str], other: str, long: int) -> None:
    texts = [text * long for text in texts]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(large_json, "SMALL_BYTES", 0)
        patched.setattr(large_json, "LONG_STRING_BYTES", 8)
        patched.setattr(large_json, "CHUNK_BYTES", 7)
        for ascii_only in (True, False):
            body = json.dumps({"input": texts, "other": {other: other}}, ensure_ascii=ascii_only).encode()
            parsed = parse(Body, body, LIMITS)
            assert [parsed.text(text) for text in parsed.value.input] == texts


def test_a_byte_order_mark_is_passed_over() -> None:
    for size in (0, SMALL_BYTES):
        body = b"\xef\xbb\xbf" + json.dumps({"input": TEXT}).encode() + b" " * size
        parsed = parse(Body, body, LIMITS)
        assert parsed.base64(str(parsed.value.input)) == PICTURE


@pytest.mark.parametrize(
    "body",
    [
        b'{"input": [' + b'"",' * 100_000 + b'""]}',
        b'{"input": "", "other": [' + b"1," * 100_000 + b"1]}",
        b'{"input": "", "other": [' + b"[]," * 50_000 + b"1]}",
        b'{"input": "", "other": ' + b"[" * 70_000,
        b'{"input": "", "other": ' + b" " * 2**21 + b"1}",
        b'{"input": "", "other": ' + b"9" * 100_000 + b"}",
        b'{"input": "", "other": -' + b"123456789" * (MAX_DIGITS // 9) + b"1" * 9 + b"}" + b" " * 70_000,
        b'{"input": "' + rb"\"" * 100_000 + b'"}',
    ],
    ids=["strings", "numbers", "lists", "depth", "spaces", "one number", "a shorter number", "quotes"],
)
def test_what_would_be_parsed_for_long_is_not(body: bytes) -> None:
    with pytest.raises(TooComplex):
        parse(Body, body, LIMITS)


@pytest.mark.parametrize(
    "body",
    [
        b'{"input": "' + b"A" * 100_000,
        b'{"input": "' + b"A" * 100_000 + b"\\",
        b'{"input": ' + b'\\"' * 100 + b" " * 100_000,
        b"\xff" * 100_000,
        b'{"input": "' + b"\\" * 100_001 + b'"}',
    ],
)
def test_what_is_no_json_is_refused(body: bytes) -> None:
    with pytest.raises((ValidationError, TooComplex)):
        parse(Body, body, LIMITS)


@pytest.mark.parametrize(
    "text", [b"\\u00", b"\x01" * 500, b"\\q" * 500, "é".encode() * 500, b"\\\\" * 500, b"\xff" * 500]
)
def test_a_long_string_is_validated_when_it_is_read(text: bytes) -> None:
    body = b'{"input": "' + TEXT.encode() + text + b'"}' + b" " * SMALL_BYTES
    parsed = parse(Body, body, LIMITS)
    with pytest.raises(BadRequest):
        parsed.base64(str(parsed.value.input))


def test_no_string_of_a_client_is_taken_for_another() -> None:
    body = json.dumps({"input": ["A" * 1000, "0000000000000000-0"], "other": " " * 300}).encode() + b" " * SMALL_BYTES
    parsed = parse(Body, body, LIMITS)
    assert parsed.text(parsed.value.input[1]) == "0000000000000000-0"


@pytest.mark.parametrize("piece", [b"A" * 64, rb"\u0041", rb"\n", "é".encode(), rb"\\"])
def test_others_get_their_turn_while_much_is_parsed(piece: bytes) -> None:
    """While one thread parses 48 MiB, another one is never kept waiting for long. Processor time, since a machine that
    is busy keeps both waiting.
    """
    size = 48 * 2**20
    body = b'{"input": ["' + piece * (size // 2 // len(piece)) + b'","' + piece * (size // 2 // len(piece)) + b'"]}'
    longest, over = 0.0, threading.Event()

    def work() -> None:
        parsed = parse(Body, body, LIMITS)
        for text in parsed.value.input:
            with suppress(BadRequest):
                parsed.base64(text)
        over.set()

    thread = threading.Thread(target=work)
    thread.start()
    while not over.is_set():
        before = time.process_time()
        time.sleep(0.001)
        longest = max(longest, time.process_time() - before)
    thread.join()
    assert longest < 0.2
