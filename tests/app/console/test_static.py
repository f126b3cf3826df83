"""The console's static files: which are served, their headers, and that they comply with the security policy."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import get_args

import pytest
from fastapi.testclient import TestClient

from app.gallery.calibration.schemas import RateChange
from app.gallery.passage_schemas import FrameStatus, PassageReason
from app.main import create_app
from app.settings import PROJECT, Settings
from models.align import Reason
from tests.app.conftest import BASE_URL

FOLDER = PROJECT / "app" / "console" / "static"
FILES = sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*") if path.is_file())
TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "media-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@pytest.fixture(scope="module")
def page() -> TestClient:
    """The service without startup: the console does not need models."""
    return TestClient(create_app(Settings()), base_url=BASE_URL)


def text(name: str) -> str:
    return (FOLDER / name).read_text()


def without_comments(source: str) -> str:
    return re.sub(r"/\*.*?\*/|//[^\n\"'`]*$", "", source, flags=re.DOTALL | re.MULTILINE)


def test_front_page_and_all_files_are_served(page: TestClient) -> None:
    front = page.get("/")
    assert (front.status_code, front.text) == (200, text("index.html"))
    assert page.head("/").headers["etag"] == front.headers["etag"]
    assert (page.post("/").status_code, page.delete("/web/app.js").status_code) == (405, 405)
    assert not [path for path in page.get("/openapi.json").json()["paths"] if path == "/" or path.startswith("/web")]
    for name in FILES:
        response = page.get(f"/web/{name}")
        assert response.content == (FOLDER / name).read_bytes()
        assert response.headers["content-type"].split(";")[0] == TYPES[name.rpartition(".")[2]]


@pytest.mark.parametrize("path", ["/", "/web/app.js", "/web/style.css", "/web/examples/coffee.jpg"])
def test_security_and_cache_headers(page: TestClient, path: str) -> None:
    headers = page.get(path).headers
    assert headers["content-security-policy"] == POLICY
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert "camera=(self)" in headers["permissions-policy"]
    assert headers["cache-control"] == "no-cache"
    assert re.fullmatch(r'"[0-9a-f]{32}"', headers["etag"])


def test_not_modified(page: TestClient) -> None:
    etag = page.get("/web/app.js").headers["etag"]
    cached = page.get("/web/app.js", headers={"if-none-match": f'"other", {etag}'})
    assert (cached.status_code, cached.content, cached.headers["etag"]) == (304, b"", etag)
    assert cached.headers["content-security-policy"] == POLICY
    assert page.get("/web/app.js", headers={"if-none-match": '"other"'}).status_code == 200
    assert page.get("/web/style.css", headers={"if-none-match": etag}).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/web/",
        "/web/nothing.js",
        "/web/../settings.py",
        "/web/..%2fsettings.py",
        "/web/%2e%2e/settings.py",
        "/web/tabs/..%2f..%2fsettings.py",
        "/web//etc/passwd",
        "/web/%2fetc%2fpasswd",
        "/web/examples/../../README.md",
        "/web/examples/..%2f..%2fREADME.md",
        "/web/app.js%00.css",
    ],
)
def test_no_other_files_are_served(page: TestClient, path: str) -> None:
    response = page.get(path)
    assert response.status_code == 404
    assert response.headers["content-type"] == "application/problem+json"


def test_examples_are_served(page: TestClient) -> None:
    names = page.get("/web/examples.json").json()
    assert sorted(names) == sorted(path.name for path in (PROJECT / "examples").iterdir())
    for name in names:
        assert page.get(f"/web/examples/{name}").content == (PROJECT / "examples" / name).read_bytes()


def test_no_inline_scripts_or_styles() -> None:
    html = text("index.html")
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", html, re.IGNORECASE)
    scripts = re.findall(r"<script([^>]*)>(.*?)</script>", html, re.DOTALL)
    assert scripts
    for attributes, body in scripts:
        assert "src=" in attributes
        assert not body.strip()
    # Style attributes, and functions that parse text as code or HTML.
    unsafe = r"\bstyle:\s|[\"']style[\"']|innerHTML|outerHTML|insertAdjacentHTML|\beval\(|new Function|document\.write"
    for name in (name for name in FILES if name.endswith(".js")):
        match = re.search(unsafe, without_comments(text(name)))
        assert not match, (name, match)


def test_no_file_refers_to_another_host() -> None:
    for name in FILES:
        source = text(name).replace("http://www.w3.org/2000/svg", "")  # an XML namespace, not fetched
        match = re.search(r"(?:https?:|wss?:|[\"'(]\s*)//[\w.-]+\.\w+", source)
        assert not match, (name, match)


def test_links_and_imports_exist(page: TestClient) -> None:
    for link in re.findall(r"(?:src|href)=\"([^\"#]+)\"", text("index.html")):
        assert page.get(f"/{link}").status_code == 200, link
    for name in (name for name in FILES if name.endswith(".js")):
        for link in re.findall(r"from \"(\.[^\"]+)\"", text(name)):
            assert (FOLDER / Path(name).parent / link).resolve().is_file(), (name, link)


def test_all_files_are_packaged() -> None:
    globs = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["app"]
    packaged = {path for glob in globs for path in (PROJECT / "app").glob(glob)}
    assert packaged >= {FOLDER / name for name in FILES}


def test_the_gallery_has_words_for_the_results_of_the_api() -> None:
    """Each status of a frame, and each reason for a decision or a rejected face."""
    frames = set(re.findall(r"^  (\w+): \"", text("gallery/passage.js"), re.MULTILINE))
    assert frames == set(get_args(FrameStatus))
    reasons = set(re.findall(r"^  ([A-Z_]+):", text("reasons.js"), re.MULTILINE))
    expected = {*get_args(PassageReason), *get_args(Reason), "NOT_CALIBRATED"}
    assert reasons >= expected
    report = set(re.findall(r"\b(?:before|after|requested)\w*", text("gallery/calibrations.js")))
    assert report >= set(RateChange.model_fields) - {"comparisons"}
