"""Invalid requests, and valid ones that look invalid, each with its expected status and problem type.

Used by the tests in this process, and by benchmarks/serving/bad_inputs.py over HTTP against a running service.
"""

from __future__ import annotations

import base64
import gzip
import io
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from tests.conftest import encode, photo

# httpx's Client and Response, or those of Starlette's TestClient, which uses a fork of httpx.
Client = Any
Response = Any

URL = "/classify"
DIGITS = URL + "?model=lenet5-mnist&sequence=true"
JPEG = {"content-type": "image/jpeg"}


@dataclass(frozen=True)
class Case:
    """One request. `problem`: the expected problem type, None if the response must be a prediction."""

    name: str
    send: Callable[[Client], Response]
    status: int
    problem: str | None


def _raw(data: bytes, content_type: str = "image/jpeg", url: str = URL) -> Callable[[Client], Response]:
    return lambda client: client.post(url, content=data, headers={"content-type": content_type})


def _packed(data: bytes) -> Callable[[Client], Response]:
    return lambda client: client.post(URL, content=data, headers=JPEG | {"content-encoding": "gzip"})


def _file(data: bytes, name: str = "a.jpg", part: str = "file") -> Callable[[Client], Response]:
    return lambda client: client.post(URL, files={part: (name, data)})


def _json(body: object) -> Callable[[Client], Response]:
    return lambda client: client.post(URL, json=body)


def _good(url: str = URL, **headers: str) -> Callable[[Client], Response]:
    return lambda client: client.post(url, content=coffee(), headers=JPEG | headers)


@cache
def coffee() -> bytes:
    """Return a photo of a cup of coffee as JPEG."""
    return encode(photo("coffee"), "JPEG", quality=90)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@cache
def png_bomb(side: int = 30_000) -> bytes:
    """Return a black 1-bit PNG of side x side pixels: some hundred kB that decode to a gigabyte."""
    packer = zlib.compressobj(9)
    row = bytes(1 + side // 8)
    data = b"".join(packer.compress(row * 100) for _ in range(side // 100)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


@cache
def text_bomb() -> bytes:
    """Return a PNG whose compressed text chunk decompresses to 200 MB."""
    text = _chunk(b"zTXt", b"comment\0\0" + zlib.compress(bytes(200_000_000), 9))
    plain = encode(Image.new("RGB", (8, 8)))
    return plain[:33] + text + plain[33:]


def line(length: int) -> bytes:
    """Return a white line on black, 2 pixels high, which is no string of digits."""
    image = Image.new("L", (length + 8, 10))
    image.paste(255, (4, 4, length + 4, 6))
    return encode(image)


def gif(frames: int) -> bytes:
    """Return an animated GIF whose first frame is the cup of coffee."""
    first = photo("coffee").resize((150, 100))
    rest = [Image.new("RGB", (150, 100), (i % 256, 0, 0)) for i in range(1, frames)]
    return encode(first, "GIF", save_all=True, append_images=rest)


def grey16() -> bytes:
    """Return the cup of coffee as a 16-bit grey PNG."""
    return encode(Image.fromarray(np.asarray(photo("coffee").convert("L")).astype(np.uint16) * 257))


def damaged_exif() -> bytes:
    """Return a valid JPEG with an EXIF block of noise."""
    noise = b"Exif\0\0" + np.random.default_rng(0).bytes(300)
    return coffee()[:2] + b"\xff\xe1" + struct.pack(">H", len(noise) + 2) + noise + coffee()[2:]


def _many(count: int) -> Callable[[Client], Response]:
    tiny = encode(Image.new("RGB", (8, 8)))
    return lambda client: client.post(URL, files=[("file", (f"{i}.png", tiny)) for i in range(count)])


def _chunked(megabytes: int) -> Callable[[Client], Response]:
    def body() -> Iterator[bytes]:
        for _ in range(megabytes):
            yield bytes(2**20)

    return lambda client: client.post(URL, content=body(), headers=JPEG)


def _broken_multipart(body: bytes, boundary: str = "x") -> Callable[[Client], Response]:
    return _raw(body, f"multipart/form-data; boundary={boundary}")


def _declared(length: str) -> Callable[[Client], Response]:
    return lambda client: client.post(URL, content=b"", headers=JPEG | {"content-length": length})


def _text(value: str) -> Any:
    return _json({"input": value})


@cache
def cases() -> tuple[Case, ...]:
    """Return all cases."""
    b64 = base64.b64encode(coffee()).decode()
    tiff = encode(Image.new("RGB", (8, 8)), "TIFF")
    cut_part = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.jpg"\r\n\r\nabc'
    field = b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\nabc\r\n--x--\r\n'
    big_name = "x" * 10_000
    return (
        Case("empty body", _raw(b""), 400, "malformed-request"),
        Case("no content type", lambda c: c.post(URL, content=b"abc"), 415, "unsupported-media-type"),
        Case("wrong content type", _raw(coffee(), "text/plain"), 415, "unsupported-media-type"),
        Case("text named .jpg", _file(b"hello, I am a text\n" * 50), 415, "unsupported-image"),
        Case("empty file", _file(b""), 415, "unsupported-image"),
        Case("truncated JPEG", _file(coffee()[:20_000]), 400, "damaged-image"),
        Case("JPEG header only", _raw(coffee()[:20]), 415, "unsupported-image"),
        Case("truncated PNG", _raw(encode(photo("coffee"))[:9_000], "image/png"), 400, "damaged-image"),
        Case("PNG with a flipped byte", _raw(_flipped(encode(photo("coffee"))), "image/png"), 400, "damaged-image"),
        Case("truncated WebP", _raw(encode(photo("coffee"), "WEBP")[:3_000], "image/webp"), 400, "damaged-image"),
        Case("1x20000 PNG", _file(encode(Image.new("RGB", (1, 20_000)))), 200, None),
        Case("30,000 x 30,000 PNG bomb", _file(png_bomb()), 413, "image-too-large"),
        Case("PNG text bomb", _file(text_bomb()), 400, "damaged-image"),
        Case("200-frame GIF", _file(gif(200), "a.gif"), 200, None),
        Case("16-bit PNG", _file(grey16(), "a.png"), 200, None),
        Case("CMYK JPEG", _file(encode(photo("coffee").convert("CMYK"), "JPEG")), 200, None),
        Case("damaged EXIF", _file(damaged_exif()), 200, None),
        Case("palette PNG with transparency", _file(_transparent_palette(), "a.png"), 200, None),
        Case("TIFF", _raw(tiff, "image/tiff"), 415, "unsupported-image"),
        Case("SVG", _raw(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml"), 415, "unsupported-image"),
        Case("wrong part name", _file(coffee(), part="picture"), 400, "malformed-request"),
        Case("part without a file name", _broken_multipart(field), 400, "malformed-request"),
        Case("multipart cut short", _broken_multipart(cut_part), 400, "malformed-request"),
        Case("multipart without boundary", _raw(b"abc", "multipart/form-data"), 400, "malformed-request"),
        Case("multipart of noise", _broken_multipart(b"\0" * 5_000), 400, "malformed-request"),
        Case("unknown model", _good(URL + "?model=gpt"), 422, "unknown-model"),
        Case("model name of 10,000 letters", _good(f"{URL}?model={big_name}"), 422, "unknown-model"),
        Case("top_k=0", _good(URL + "?top_k=0"), 422, "invalid-parameters"),
        Case("top_k of 5,000 digits", _good(f"{URL}?top_k={'9' * 5_000}"), 422, "invalid-parameters"),
        Case("unknown parameter", _good(URL + "?topk=3"), 422, "invalid-parameters"),
        Case("tta where the model has none", _good(URL + "?tta=true"), 422, "unprocessable"),
        Case("sequence with a model of photos", _good(URL + "?sequence=true"), 422, "unprocessable"),
        Case("sequence with tta", _good(DIGITS + "&tta=true"), 422, "unprocessable"),
        Case("sequence of a line of 5,000 x 2", _raw(line(5_000), "image/png", DIGITS), 422, "unprocessable"),
        Case("sequence of 100,000 columns", _raw(line(100_000), "image/png", DIGITS), 422, "unprocessable"),
        *(Case(f"length {text}", _declared(text), 413, "body-too-large") for text in ("10000000000", "-1", "many")),
        Case("65 files", _many(65), 413, "too-many-images"),
        Case("100 MB sent chunked", _chunked(100), 413, "body-too-large"),
        Case("an image of 40 MB", _raw(coffee() + bytes(40 * 2**20)), 413, "image-too-large"),
        Case("bad base64", _text("this is not base64!"), 400, "malformed-request"),
        Case("base64 of a text", _text(base64.b64encode(b"hello").decode()), 415, "unsupported-image"),
        Case("data URI that is not base64", _text("data:image/png,abc"), 400, "malformed-request"),
        Case("a URL as input", _text("https://example.org/cat.jpg"), 400, "malformed-request"),
        Case("a path of base64's characters", _text("/etc/passwd"), 415, "unsupported-image"),
        Case("unknown content encoding", _good(**{"content-encoding": "br"}), 415, "unsupported-media-type"),
        Case("gzip that is none", _good(**{"content-encoding": "gzip"}), 400, "malformed-request"),
        Case("gzip bomb", _packed(gzip.compress(bytes(100 * 2**20))), 413, "body-too-large"),
        Case("image in gzip", _packed(gzip.compress(coffee())), 200, None),
        Case("empty input", _text(""), 400, "malformed-request"),
        Case("empty list", _json({"input": []}), 400, "malformed-request"),
        Case("nested list", _json({"input": [[b64]]}), 400, "malformed-request"),
        Case("extra key", _json({"input": b64, "url": "x"}), 400, "malformed-request"),
        Case("JSON nested 100,000 deep", _raw(b"[" * 100_000, "application/json"), 413, "body-too-large"),
        Case("JSON cut short", _raw(f'{{"input": "{b64}'.encode(), "application/json"), 400, "malformed-request"),
        Case("JSON that is not UTF-8", _raw(b'{"input": "\xff\xfe"}', "application/json"), 400, "malformed-request"),
        Case("foreign Origin", _good(origin="https://evil.example"), 403, "origin-not-allowed"),
        Case("foreign Host", _good(host="evil.example"), 403, "host-not-allowed"),
        Case("GET where POST is meant", lambda c: c.get(URL), 405, "method-not-allowed"),
        Case("no such route", lambda c: c.post("/clasify", content=b""), 404, "not-found"),
        Case("no such card", lambda c: c.get("/models/nothing"), 404, "not-found"),
    )


def _flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :]


def _transparent_palette() -> bytes:
    buffer = io.BytesIO()
    photo("coffee").quantize(16).save(buffer, "PNG", transparency=0)
    return buffer.getvalue()


def is_problem(response: Response, case: Case) -> bool:
    """Whether the response is the expected one and shows no internals."""
    if response.status_code != case.status or "Traceback" in response.text or "site-packages" in response.text:
        return False
    if case.problem is None:
        return bool(response.json()["data"][0]["predictions"])
    body = response.json()
    return bool(
        response.headers["content-type"] == "application/problem+json"
        and body["type"] == f"urn:vestibule:problem:{case.problem}"
        and body["status"] == case.status
    )


def is_espresso(response: Response) -> bool:
    """Whether the response classifies the cup of coffee correctly."""
    return bool(response.status_code == 200 and response.json()["data"][0]["predictions"][0]["class"] == "espresso")
