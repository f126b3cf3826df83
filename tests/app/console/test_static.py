"""The console as files: what is served, under which rules, and that nothing in them breaks those rules."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from xml.etree import ElementTree

import pytest
from fastapi.testclient import TestClient

from app.main import create_app
from app.settings import PROJECT, Settings
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
    """The service, not started: the console needs no model to be served."""
    return TestClient(create_app(Settings()), base_url=BASE_URL)


def text(name: str) -> str:
    return (FOLDER / name).read_text()


def without_comments(source: str) -> str:
    return re.sub(r"/\*.*?\*/|//[^\n\"'`]*$", "", source, flags=re.DOTALL | re.MULTILINE)


def test_the_front_page_is_the_console(page: TestClient) -> None:
    answer = page.get("/")
    assert answer.status_code == 200
    assert answer.text == text("index.html")
    assert page.head("/").headers["etag"] == answer.headers["etag"]


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_served_as_what_it_is(page: TestClient, name: str) -> None:
    answer = page.get(f"/web/{name}")
    assert answer.content == (FOLDER / name).read_bytes()
    assert answer.headers["content-type"].split(";")[0] == TYPES[name.rpartition(".")[2]]


@pytest.mark.parametrize("path", ["/", "/web/app.js", "/web/style.css", "/web/examples/coffee.jpg"])
def test_pages_are_kept_and_asked_for_anew_and_may_do_only_what_they_must(page: TestClient, path: str) -> None:
    headers = page.get(path).headers
    assert headers["content-security-policy"] == POLICY
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert "camera=(self)" in headers["permissions-policy"]
    assert headers["cache-control"] == "no-cache"
    assert re.fullmatch(r'"[0-9a-f]{32}"', headers["etag"])


def test_what_is_known_is_not_sent_again(page: TestClient) -> None:
    etag = page.get("/web/app.js").headers["etag"]
    known = page.get("/web/app.js", headers={"if-none-match": f'"other", {etag}'})
    assert (known.status_code, known.content, known.headers["etag"]) == (304, b"", etag)
    assert known.headers["content-security-policy"] == POLICY
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
def test_nothing_else_is_served(page: TestClient, path: str) -> None:
    answer = page.get(path)
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"


def test_examples_are_those_of_the_folder(page: TestClient) -> None:
    names = page.get("/web/examples.json").json()
    assert sorted(names) == sorted(path.name for path in (PROJECT / "examples").iterdir())
    for name in names:
        assert page.get(f"/web/examples/{name}").content == (PROJECT / "examples" / name).read_bytes()


def test_the_api_is_described_as_before(page: TestClient) -> None:
    paths = page.get("/openapi.json").json()["paths"]
    assert not [path for path in paths if path == "/" or path.startswith("/web")]


def test_only_reading(page: TestClient) -> None:
    assert page.post("/").status_code == 405
    assert page.delete("/web/app.js").status_code == 405


def test_nothing_is_inline() -> None:
    html = text("index.html")
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", html, re.IGNORECASE)
    scripts = re.findall(r"<script([^>]*)>(.*?)</script>", html, re.DOTALL)
    assert scripts
    for attributes, body in scripts:
        assert "src=" in attributes
        assert not body.strip()
    for name in (name for name in FILES if name.endswith(".js")):
        source = without_comments(text(name))
        # A style attribute, also one set by a script, and text that becomes code or HTML.
        found = re.search(
            r"\bstyle:\s|[\"']style[\"']|innerHTML|outerHTML|insertAdjacentHTML|\beval\(|new Function|document\.write",
            source,
        )
        assert not found, (name, found)


def test_no_file_names_another_host() -> None:
    for name in FILES:
        # What names a vocabulary is no address that anything is fetched from.
        source = text(name).replace("http://www.w3.org/2000/svg", "")
        found = re.search(r"(?:https?:|wss?:|[\"'(]\s*)//[\w.-]+\.\w+", source)
        assert not found, (name, found)


def test_every_address_in_the_files_leads_somewhere(page: TestClient) -> None:
    for link in re.findall(r"(?:src|href)=\"([^\"#]+)\"", text("index.html")):
        assert page.get(f"/{link}").status_code == 200, link
    for name in (name for name in FILES if name.endswith(".js")):
        for link in re.findall(r"from \"(\.[^\"]+)\"", text(name)):
            assert (FOLDER / Path(name).parent / link).resolve().is_file(), (name, link)


def test_a_link_for_each_tab() -> None:
    tabs = re.search(r"const TABS = \{([^}]+)\}", text("app.js"))
    assert tabs
    names = {name.strip() for name in tabs[1].split(",")}
    assert names == set(re.findall(r"<a href=\"#(\w+)\"><svg", text("index.html")))


def test_pictures_of_the_page_are_well_formed() -> None:
    assert ElementTree.fromstring(text("icon.svg")).tag.endswith("svg")


def test_all_of_it_is_installed() -> None:
    packaged = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["app"]
    assert {path.relative_to(PROJECT / "app") for glob in packaged for path in (PROJECT / "app").glob(glob)} >= {
        Path("web") / name for name in FILES
    }
