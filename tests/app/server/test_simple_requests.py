"""Requests that are refused without the parser, compared with what the parser makes of the same bytes."""

from __future__ import annotations

from urllib.parse import unquote

import httptools
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.server.simple_requests import SIMPLE_FIELDS, simple_request

CURL = b"POST /classify?top_k=3 HTTP/1.1\r\nHost: a:8000\r\nAccept: */*\r\nContent-Length: 2\r\n\r\nab"

METHODS = st.sampled_from([b"POST", b"GET", b"PUT", b"HEAD", b"OPTIONS", b"post", b"CONNECT", b"P OST", b""])
TARGETS = st.one_of(
    st.sampled_from(
        [b"/classify", b"/search?k=1", b"/a%20b", b"//a/b", b"*", b"/a#b", b"http://a/b", b"/\xc3\xbc", b"/a b"]
    ),
    st.binary(max_size=8).map(lambda end: b"/" + end),
)
NAMES = st.sampled_from(
    [
        b"Host",
        b"Origin",
        b"X-Request-Id",
        b"Content-Length",
        b"Transfer-Encoding",
        b"Connection",
        b"Expect",
        b"Upgrade",
        b"content-length ",
        b" Content-Length",
        b"Content_Length",
        b"Content-Length\x00",
        b"",
        b"\xff",
    ]
)
VALUES = st.one_of(
    st.sampled_from(
        [b"2", b" 2\t", b"+2", b"2, 2", b"02", b"", b"keep-alive", b"close", b"chunked", b"h2c", b"a\r\n b"]
    ),
    st.binary(max_size=6),
)
FIELDS = st.lists(st.tuples(NAMES, st.sampled_from([b":", b": ", b" :", b""]), VALUES).map(b"".join), max_size=4)
ENDS = st.sampled_from([b"\r\n", b"\n", b"\r\r\n", b""])
BODIES = st.sampled_from([b"", b"a", b"ab", b"abc", b"ab" + CURL, b"2\r\nab\r\n0\r\n\r\n"])


@st.composite
def heads_and_bodies(draw: st.DrawFn) -> bytes:
    """Bytes that are nearly, or exactly, one request."""
    version = draw(st.sampled_from([b" HTTP/1.1", b" HTTP/1.0", b" HTTP/2", b"  HTTP/1.1", b""]))
    lines = [draw(METHODS) + b" " + draw(TARGETS) + version, *draw(FIELDS)]
    return b"".join(line + draw(ENDS) for line in lines) + b"\r\n" + draw(BODIES)


class _Parsed:
    """What httptools makes of bytes."""

    def __init__(self, data: bytes):
        self.target, self.headers, self.messages, self.complete = b"", list[tuple[bytes, bytes]](), 0, 0
        self.parser = httptools.HttpRequestParser(self)
        self.parser.feed_data(data)

    def on_message_begin(self) -> None:
        self.messages += 1

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_message_complete(self) -> None:
        self.complete += 1


def check(data: bytes) -> None:
    """Fail if `data` is accepted as a simple request and the parser disagrees."""
    request = simple_request(data)
    if request is None:
        return
    parsed = _Parsed(data)
    assert (parsed.messages, parsed.complete) == (1, 1)
    assert parsed.parser.should_keep_alive()
    assert not parsed.parser.should_upgrade()
    assert request["method"] == parsed.parser.get_method().decode()
    assert request["path"] == unquote(httptools.parse_url(parsed.target).path.decode())
    assert request["headers"] == [header for header in parsed.headers if header[0] in SIMPLE_FIELDS]


@given(heads_and_bodies())
@example(CURL)
def test_the_parser_reads_the_same_from_nearly_any_request(data: bytes) -> None:
    check(data)


@given(st.integers(0, len(CURL)), st.integers(0, 3), st.binary(max_size=3))
def test_the_parser_reads_the_same_from_a_changed_request(start: int, removed: int, inserted: bytes) -> None:
    check(CURL[:start] + inserted + CURL[start + removed :])


def test_what_common_clients_send_is_simple() -> None:
    assert simple_request(CURL) == {"method": "POST", "path": "/classify", "headers": [(b"content-length", b"2")]}
    browser = CURL.replace(b"Host", b"Connection: Keep-Alive\r\nOrigin: https://a.example\r\nX-Request-ID:  r1\r\nhost")
    assert simple_request(browser) is not None
    check(browser)
    assert simple_request(b"GET /generate?model=vae-faces&n=4 HTTP/1.1\r\nhost: a\r\n\r\n") is not None
    umlaut = CURL.replace(b"/classify", b"/collections/M%C3%BCnchen/search")
    assert (simple_request(umlaut) or {})["path"] == "/collections/München/search"


@pytest.mark.parametrize(
    "data",
    [
        CURL[:-1],
        CURL + b"x",
        CURL + CURL,
        CURL[:-6],
        CURL.replace(b"Length: 2", b"Length: " + b"9" * 5000),
        CURL.replace(b"HTTP/1.1", b"HTTP/1.0"),
        CURL.replace(b"POST", b"HEAD"),
        CURL.replace(b"Content-Length: 2", b"Transfer-Encoding: chunked"),
        CURL.replace(b"Accept", b"Content-Length: 2\r\nAccept"),
        CURL.replace(b"Accept", b"Connection: close\r\nAccept"),
        CURL.replace(b"Accept", b"Expect: 100-continue\r\nAccept"),
        CURL.replace(b"Accept", b"Connection: keep-alive, upgrade\r\nUpgrade: h2c\r\nAccept"),
        CURL.replace(b"Accept: ", b"Accept: a\r\n "),
        CURL.replace(b"/classify", b"http://a/classify"),
    ],
)
def test_what_needs_more_than_a_response_is_not_simple(data: bytes) -> None:
    assert simple_request(data) is None
