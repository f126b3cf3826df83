"""GET / and /web/...: the console, a web page that uses this API."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Header, Response
from fastapi.openapi.docs import get_swagger_ui_html

from app import errors
from app.images.encoding import JSON, EncodedFile, etag_matches, file_response
from app.settings import PROJECT

router = APIRouter(include_in_schema=False)

PAGE = "index.html"
FOLDER = Path(__file__).resolve().parent / "static"
# By name, since the folder may contain other files.
EXAMPLES = ("coffee.jpg", "cat.jpg", "astronaut.jpg", "hopper.jpg", "digits.png")
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".jpg": "image/jpeg",
    ".png": "image/png",
}

# No inline scripts or styles and no other origins; images and videos created by the page are `blob:` and `data:`.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
        "media-src 'self' blob:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    # Cached, but revalidated on each use: a page never mixes files of two versions.
    "Cache-Control": "no-cache",
}

IfNoneMatch = Annotated[str | None, Header()]


@router.get("/docs")
async def documentation() -> Response:
    """Return Swagger UI for the OpenAPI document. Its links are relative, so that it works below any path prefix."""
    offline = "static-offline-docs"
    return get_swagger_ui_html(
        openapi_url="openapi.json",
        title="Vestibule - Swagger UI",
        swagger_js_url=f"{offline}/swagger-ui-bundle.js",
        swagger_css_url=f"{offline}/swagger-ui.css",
        swagger_favicon_url=f"{offline}/favicon.png",
    )


@router.get("/")
async def page(if_none_match: IfNoneMatch = None) -> Response:
    """Return the console's page."""
    return _answer(PAGE, if_none_match)


@router.get("/web/{name:path}")
async def asset(name: str, if_none_match: IfNoneMatch = None) -> Response:
    """Return one of the console's files."""
    return _answer(name, if_none_match)


def _answer(name: str, if_none_match: str | None) -> Response:
    file = _assets().get(name)
    if file is None:
        raise errors.NotFound("the console has no such file")
    if etag_matches(file.headers["ETag"], if_none_match):
        file = replace(file, content=None)
    return file_response(file)


@cache
def _assets() -> Mapping[str, EncodedFile]:
    """Return all served files by their path below /web; no other files can be requested."""
    files = {path.relative_to(FOLDER).as_posix(): path for path in FOLDER.rglob("*") if path.suffix in MEDIA_TYPES}
    examples = {name: path for name in EXAMPLES if (path := PROJECT / "examples" / name).is_file()}
    files |= {f"examples/{name}": path for name, path in examples.items()}
    assets = {name: _asset(path.read_bytes(), MEDIA_TYPES[path.suffix]) for name, path in files.items()}
    return assets | {"examples.json": _asset(json.dumps(list(examples)).encode(), JSON)}


def _asset(content: bytes, media_type: str) -> EncodedFile:
    return EncodedFile(content, media_type, HEADERS | {"ETag": f'"{sha256(content).hexdigest()[:32]}"'})
