"""Pairs for POST /verify that are odd or wrong, with the status and problem type each must get."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from tests.app.bad_inputs import Case, Client, Response, coffee, is_problem, png_bomb, text_bomb
from tests.app.face_pictures import grace_hopper, side_by_side
from tests.conftest import encode, photo

URL = "/verify"
MALFORMED, UNSUPPORTED = (400, "malformed-request"), (415, "unsupported-image")


@cache
def admiral() -> bytes:
    """A good picture, as JPEG."""
    return encode(grace_hopper(), "JPEG", quality=90)


@cache
def astronaut() -> bytes:
    """Another."""
    return encode(photo("astronaut"), "JPEG", quality=90)


def _pair(source: bytes, target: bytes, url: str = URL, **headers: str) -> Callable[[Client], Response]:
    files = {"source": ("a.jpg", source), "target": ("b.jpg", target)}
    return lambda client: client.post(url, files=files, headers=headers)


def _good(url: str = URL, **headers: str) -> Callable[[Client], Response]:
    return _pair(astronaut(), admiral(), url, **headers)


def _files(*names: str) -> Callable[[Client], Response]:
    return lambda client: client.post(URL, files=[(name, ("a.jpg", admiral())) for name in names])


def _body(data: bytes, content_type: str) -> Callable[[Client], Response]:
    return lambda client: client.post(URL, content=data, headers={"content-type": content_type})


def _json(target: str) -> Callable[[Client], Response]:
    source = base64.b64encode(admiral()).decode()
    return _body(json.dumps({"source": source, "target": target}).encode(), "application/json")


@cache
def cases() -> tuple[Case, ...]:
    """Three of faces, then the bad inputs."""
    both, dot = encode(side_by_side(), "JPEG", quality=90), encode(Image.new("RGB", (1, 1)))
    cut_part = b'--x\r\nContent-Disposition: form-data; name="source"; filename="a.jpg"\r\n\r\nabc'
    return (
        Case("two faces in each", _pair(both, both), 200, None),
        Case("no face in the source", _pair(coffee(), admiral()), 422, "no-face"),
        Case("no face in the target", _pair(admiral(), coffee()), 422, "no-face"),
        Case("truncated JPEG", _pair(admiral()[:20_000], admiral()), 400, "damaged-image"),
        Case("truncated PNG", _pair(admiral(), encode(photo("astronaut"))[:9_000]), 400, "damaged-image"),
        Case("empty picture", _pair(admiral(), b""), *UNSUPPORTED),
        Case("text named .jpg", _pair(b"hello, I am a text\n" * 50, admiral()), *UNSUPPORTED),
        Case("30,000 x 30,000 PNG bomb", _pair(admiral(), png_bomb()), 413, "image-too-large"),
        Case("PNG text bomb", _pair(text_bomb(), admiral()), 400, "damaged-image"),
        Case("one picture of 40 MB", _pair(admiral(), admiral() + bytes(40 * 2**20)), 413, "image-too-large"),
        Case("1x1 PNG", _pair(dot, dot), 422, "no-face"),
        Case("a picture as the body", _body(admiral(), "image/jpeg"), 415, "unsupported-media-type"),
        Case("no content type", lambda client: client.post(URL, content=b"abc"), 415, "unsupported-media-type"),
        Case("no target", _files("source"), *MALFORMED),
        Case("two sources", _files("source", "source"), *MALFORMED),
        Case("a third part", _files("source", "target", "file"), *MALFORMED),
        Case("multipart cut short", _body(cut_part, "multipart/form-data; boundary=x"), *MALFORMED),
        Case("a URL as target", _json("https://example.org/a.jpg"), *MALFORMED),
        Case("bad base64", _json("this is not base64!"), *MALFORMED),
        Case("fmr=0", _good(URL + "?fmr=0"), 422, "invalid-parameters"),
        Case("fmr=NaN", _good(URL + "?fmr=NaN"), 422, "invalid-parameters"),
        Case("fmr=0.99, above all that was counted", _good(URL + "?fmr=0.99"), 422, "unprocessable"),
        Case("a detector as the model", _good(URL + "?model=centerface"), 422, "unknown-model"),
    )


def is_right(answer: Response, case: Case) -> bool:
    """Whether the answer is what the table says."""
    return is_problem(answer, case) if case.problem else answer.status_code == case.status and _tells_of_both(answer)


def _tells_of_both(answer: Response) -> bool:
    """Of a picture with two faces and itself: the source's larger face, to the right, meets both, itself first."""
    body = told(answer)
    compared = body["face_matches"] + body["unmatched_faces"]
    if len(compared) != 2 or body["distance"] > 1e-3:
        return False
    first, larger = compared[0]["face"]["box"], body["source_face"]["box"]
    other = compared[1]["face"]["box"]
    return bool(np.allclose(first, larger, atol=0.5) and other[2] < larger[0])


def told(answer: Response) -> dict[str, Any]:
    """The answer's JSON object; empty where it is none."""
    try:
        body = answer.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def good_distance(client: Client) -> float | None:
    """The distance of the two good pictures; None where the answer is a problem."""
    return told(_good()(client)).get("distance")
