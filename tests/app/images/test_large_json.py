"""Large JSON bodies: long strings, limits, and every form of base64."""

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
DATA = bytes(range(256)) * 3 + b"\xfb\xff\xfe~"  # its base64 has both characters that the URL-safe alphabet replaces
TEXT = base64.b64encode(DATA).decode()
PADDING = b" " * SMALL_BYTES  # makes a body large


class Body(BaseModel):
    input: str | list[str]
    other: Any = None


SIZES = [1, 2, 3, 4, 100_000, 3 * CHUNK_BYTES // 4, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES + 2]


@pytest.mark.parametrize("size", SIZES)
def test_every_form_of_base64_is_decoded(size: int) -> None:
    data = (DATA * (size // len(DATA) + 1))[:size]
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
            parsed = parse(Body, body.encode() + PADDING, JsonLimits(2**20, 10, 10))
            assert parsed.base64(str(parsed.value.input)) == data


INVALID = """
    this is not base64!|A|AAAAA|AA=|AA===|AA==AA==|=|AAAA=|A=AA|AAAA====|ÄÄÄÄÄÄÄÄ|AA\x00A|https://example.org/cat.jpg|
    /home/me/cat.jpg|data:image/png,abc|data:image/png;base64|data:;base64,,
"""


@pytest.mark.parametrize("text", [text.strip(" \n") for text in INVALID.split("|")])
def test_invalid_base64_is_refused_in_short_and_long_strings(text: str) -> None:
    with pytest.raises(BadRequest):
        from_base64(text)
    prefix = TEXT.rstrip("=")[: LONG_STRING_BYTES // 4 * 4] * 4
    long = text + "!" * 2000 if text.startswith("data:") else prefix + text
    parsed = parse(Body, json.dumps({"input": long, "other": [" " * 300] * 300}).encode(), LIMITS)
    assert str(parsed.value.input) != long
    with pytest.raises(BadRequest):
        parsed.base64(str(parsed.value.input))


@pytest.mark.parametrize("text", ["", " ", "data:image/png;base64,"])
def test_empty_image_is_refused(text: str) -> None:
    with pytest.raises(BadRequest, match="empty"):
        from_base64(text)


@pytest.mark.parametrize("position", [CHUNK_BYTES + offset for offset in (-5, -1, 0, 1, CHUNK_BYTES - 5)])
def test_padding_inside_base64_is_refused(position: int) -> None:
    text = "A" * (2 * CHUNK_BYTES)
    with pytest.raises(BadRequest):
        from_base64(text[:position] + "=" + text[position + 1 :])


@given(
    st.lists(st.text(st.sampled_from('a"\\/é\n\u2028😀'), max_size=20), max_size=6),
    st.text(st.sampled_from('b"\\{}[],:'), max_size=30),
    st.integers(1, 40),
)
def test_long_strings_are_restored_with_any_escapes(texts: list[str], other: str, repeats: int) -> None:
    texts = [text * repeats for text in texts]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(large_json, "SMALL_BYTES", 0)
        patched.setattr(large_json, "LONG_STRING_BYTES", 8)
        patched.setattr(large_json, "CHUNK_BYTES", 7)
        for ascii_only in (True, False):
            body = json.dumps({"input": texts, "other": {other: other}}, ensure_ascii=ascii_only).encode()
            parsed = parse(Body, body, LIMITS)
            assert [parsed.text(text) for text in parsed.value.input] == texts


@pytest.mark.parametrize("padding", [b"", PADDING])
def test_byte_order_mark_is_ignored(padding: bytes) -> None:
    parsed = parse(Body, b"\xef\xbb\xbf" + json.dumps({"input": TEXT}).encode() + padding, LIMITS)
    assert parsed.base64(str(parsed.value.input)) == DATA


@pytest.mark.parametrize(
    "body",
    [
        b'{"input": [' + b'"",' * 100_000 + b'""]}',
        b'{"input": "", "other": [' + b"1," * 100_000 + b"1]}",
        b'{"input": "", "other": [' + b"[]," * 50_000 + b"1]}",
        b'{"input": "", "other": ' + b"[" * 70_000,
        b'{"input": "", "other": ' + b" " * 2**21 + b"1}",
        b'{"input": "", "other": ' + b"9" * 100_000 + b"}",
        b'{"input": "", "other": -' + b"123456789" * (MAX_DIGITS // 9) + b"1" * 9 + b"}" + PADDING,
        b'{"input": "' + rb"\"" * 100_000 + b'"}',
    ],
    ids=["strings", "numbers", "lists", "depth", "spaces", "one number", "a shorter number", "quotes"],
)
def test_body_that_takes_long_to_parse_is_refused(body: bytes) -> None:
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
def test_invalid_json_is_refused(body: bytes) -> None:
    with pytest.raises((ValidationError, TooComplex)):
        parse(Body, body, LIMITS)


@pytest.mark.parametrize(
    "text", [b"\\u00", b"\x01" * 500, b"\\q" * 500, "é".encode() * 500, b"\\\\" * 500, b"\xff" * 500]
)
def test_invalid_characters_in_a_long_string_are_refused(text: bytes) -> None:
    parsed = parse(Body, b'{"input": "' + TEXT.encode() + text + b'"}' + PADDING, LIMITS)
    with pytest.raises(BadRequest):
        parsed.base64(str(parsed.value.input))


def test_string_that_looks_like_a_placeholder_stays() -> None:
    body = json.dumps({"input": ["A" * 1000, "0000000000000000-0"]}).encode() + PADDING
    parsed = parse(Body, body, LIMITS)
    assert parsed.text(parsed.value.input[1]) == "0000000000000000-0"


@pytest.mark.parametrize("piece", [b"A" * 64, rb"\u0041", rb"\n", "é".encode(), rb"\\"])
def test_parsing_releases_the_interpreter_lock(piece: bytes) -> None:
    """While a thread parses 48 MiB, another waits less than 0.2 s at a time. Processor time is measured: on a busy
    machine both threads wait.
    """
    half = piece * (24 * 2**20 // len(piece))
    body = b'{"input": ["' + half + b'","' + half + b'"]}'
    longest, finished = 0.0, threading.Event()

    def work() -> None:
        parsed = parse(Body, body, LIMITS)
        for text in parsed.value.input:
            with suppress(BadRequest):
                parsed.base64(text)
        finished.set()

    thread = threading.Thread(target=work)
    thread.start()
    while not finished.is_set():
        before = time.process_time()
        time.sleep(0.001)
        longest = max(longest, time.process_time() - before)
    thread.join()
    assert longest < 0.2
