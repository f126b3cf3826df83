"""A browser with the console of a running service, at the widths of a phone, a tablet and a desktop."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, Request, expect, sync_playwright

from app.settings import PROJECT
from tests.app.server.test_process import serving

EXAMPLES = PROJECT / "examples"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DISABLED = ("background-networking", "component-update", "sync", "gpu")  # no network requests of the browser itself
FLAGS = [
    "--no-sandbox",
    "--no-first-run",
    *(f"--disable-{name}" for name in DISABLED),
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
]
SIZES = {390: 844, 1024: 768, 1600: 900}
THEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
WAIT_MS = 60_000  # a first request loads its models
REFUSED = "Failed to load resource: the server responded with a status of"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no chromium is installed")
    expect.set_options(timeout=WAIT_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with serving(VESTIBULE_DEADLINE_S="120") as (_, url, _):
        yield url


@dataclass
class Visit:
    """A page of the console, with its errors and its requests to other hosts."""

    page: Page
    address: str
    errors: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)

    def watch(self) -> None:
        self.page.on("console", self._on_console)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", self._on_request)

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.errors.append(message.text)

    def _on_request(self, request: Request) -> None:
        if not request.url.startswith((self.address + "/", "blob:" + self.address, "data:image/")):
            self.foreign.append(request.url)

    def open(self, tab: str) -> Page:
        self.page.goto(f"{self.address}/#{tab}")
        expect(self.page.get_by_role("heading", level=1)).to_be_visible()
        return self.page

    def region(self, name: str) -> Locator:
        return self.page.get_by_role("region", name=name)

    def check_accessibility(self) -> None:
        """Check the page's current state in both themes with axe, and that it fits the window's width."""
        self.page.mouse.move(0, 0)
        for theme in THEMES:
            self.page.emulate_media(color_scheme=theme)
            self.page.wait_for_timeout(300)  # until transitions have ended
            violations = Axe().run(self.page).response["violations"]
            serious = [item for item in violations if item["impact"] in ("serious", "critical")]
            assert not serious, [(theme, item["id"], [node["html"] for node in item["nodes"]]) for item in serious]
        excess = self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert excess <= 0, f"{excess} pixels wider than the window"


@pytest.fixture
def visit(browser: Browser, address: str, request: pytest.FixtureRequest) -> Iterator[Visit]:
    """A new page, by default 1600 pixels wide."""
    width = getattr(request, "param", 1600)
    context = browser.new_context(viewport={"width": width, "height": SIZES[width]}, color_scheme="light")
    context.set_default_timeout(WAIT_MS)
    visit = Visit(context.new_page(), address)
    visit.watch()
    yield visit
    context.close()
    assert not visit.errors
    assert not visit.foreign


@pytest.fixture
def api(address: str) -> Iterator[httpx.Client]:
    """A client of the service, whose gallery is emptied first."""
    with httpx.Client(base_url=address, timeout=WAIT_MS / 1000) as client:
        for collection in client.get("/collections").json()["data"]:
            client.delete(f"/collections/{collection['name']}").raise_for_status()
        yield client


at_all_widths = pytest.mark.parametrize("visit", SIZES, indirect=True)
