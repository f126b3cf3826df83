"""The console in a browser: every tab with real pictures, at the widths of a telephone, a tablet and a desk."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import NormalDist
from typing import Any, Literal

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, Request, expect, sync_playwright

from app.auth.keys import FOLDER, ApiKeys
from app.settings import PROJECT
from models.checkpoint import read_card
from tests.app.server.test_process import serving

pytestmark = pytest.mark.slow

EXAMPLES = PROJECT / "examples"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = ("background-networking", "component-update", "sync", "gpu")  # nothing of the browser's own on the network
FLAGS = [
    "--no-sandbox",
    "--no-first-run",
    *(f"--disable-{name}" for name in QUIET),
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
]
SIZES = {390: 844, 1024: 768, 1600: 900}
THEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
WAIT_MS = 60_000  # for the first face, say: its models are loaded then
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
    with serving() as (_, url, _):
        yield url


@dataclass
class Visit:
    """A page of the console, and what it did that it should not have done."""

    page: Page
    address: str
    errors: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)

    def watch(self) -> None:
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", self._asked)

    def _said(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.errors.append(message.text)

    def _asked(self, request: Request) -> None:
        if not request.url.startswith((self.address + "/", "blob:" + self.address, "data:image/")):
            self.foreign.append(request.url)

    def open(self, tab: str) -> Page:
        self.page.goto(f"{self.address}/#{tab}")
        expect(self.page.get_by_role("heading", level=1)).to_be_visible()
        return self.page

    def region(self, name: str) -> Locator:
        return self.page.get_by_role("region", name=name)

    def accept(self) -> None:
        """As it is shown now, by day and by night, everybody can use it; and it fits."""
        self.page.mouse.move(0, 0)
        for theme in THEMES:
            self.page.emulate_media(color_scheme=theme)
            self.page.wait_for_timeout(300)  # what fades in has its colours then
            found = Axe().run(self.page).response["violations"]
            serious = [one for one in found if one["impact"] in ("serious", "critical")]
            assert not serious, [(theme, one["id"], [node["html"] for node in one["nodes"]]) for one in serious]
        over = self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert over <= 0, f"{over} pixels wider than the window"


@pytest.fixture
def visit(browser: Browser, address: str, request: pytest.FixtureRequest) -> Iterator[Visit]:
    """At the width that the test says, else at a desk."""
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
    """The service as a program calls it, with no collection in its gallery."""
    with httpx.Client(base_url=address, timeout=WAIT_MS / 1000) as client:
        for collection in client.get("/collections").json()["data"]:
            client.delete(f"/collections/{collection['name']}").raise_for_status()
        yield client


everywhere = pytest.mark.parametrize("visit", SIZES, indirect=True)


@everywhere
def test_classify(visit: Visit) -> None:
    page = visit.open("classify")
    visit.accept()  # as a newcomer finds it
    page.get_by_role("button", name="A cup of coffee").click()
    page.locator("input[type=file]").set_input_files([EXAMPLES / "cat.jpg", EXAMPLES / "astronaut.jpg"])
    espresso = page.get_by_role("listitem").filter(has_text="espresso")
    expect(espresso).to_contain_text("95.3")
    expect(page.locator(".result")).to_have_count(3)
    expect(page.locator(".result").nth(1)).to_contain_text("tiger cat")
    visit.accept()
    page.get_by_role("button", name="Remove cat.jpg").click()
    expect(page.locator(".result")).to_have_count(2)
    page.get_by_role("button", name="A string of digits").click()
    expect(page.get_by_label("Model")).to_have_value("lenet5-mnist")
    expect(page.locator(".digits").last).to_have_text("64798")
    assert painted(page.locator(".result canvas").last)
    visit.accept()


@everywhere
def test_verify(visit: Visit) -> None:
    page = visit.open("verify")
    visit.accept()
    page.get_by_role("button", name="Two people").click()
    expect(page.get_by_role("heading", level=2)).to_have_text("Not shown to be the same person")
    expect(
        page.get_by_text("Thresholds: 1 in 100 at 0.478 · 1 in 1,000 at 0.352 · 1 in 10,000 at 0.259")
    ).to_be_visible()
    assert painted(page.locator(".slot canvas").first)
    assert painted(page.locator(".slot canvas").last)
    visit.accept()
    page.get_by_role("radio", name="1 in 100,000").check(force=True)
    expect(page.get_by_text("beyond what was counted")).to_be_visible()
    for _ in range(2):
        page.get_by_role("button", name="Change").first.click()
    for _ in range(2):
        page.locator("input[type=file]").first.set_input_files(EXAMPLES / "hopper.jpg")
    expect(page.get_by_role("heading", level=2)).to_have_text("The same person")
    visit.accept()


@everywhere
def test_gallery(visit: Visit, api: httpx.Client) -> None:
    page = visit.open("gallery")
    expect(page.get_by_text("No collection yet: make one")).to_be_visible()
    visit.accept()
    page.get_by_label("Name").fill("doors")
    page.get_by_role("button", name="Make it").click()
    expect(page.get_by_text("Nobody is enrolled yet")).to_be_visible()
    enrol, search, subjects = visit.region("Enrol"), visit.region("Search"), visit.region("Subjects")
    for name in ("Eileen Collins", "Grace Hopper"):
        enrol.get_by_role("button", name=name).click()
        enrol.get_by_role("button", name="Enrol", exact=True).click()
        expect(subjects.get_by_text(name)).to_be_visible()
    expect(enrol.get_by_text("✓ enrolled")).to_be_visible()
    search.get_by_role("button", name="Grace Hopper").click()
    expect(search.get_by_text("✓ match")).to_be_visible()
    expect(search.get_by_label("Candidates").get_by_role("listitem").first).to_contain_text("Grace Hopper")
    visit.accept()
    subjects.get_by_role("button", name="1 face").first.click()
    expect(subjects.get_by_text("px wide")).to_be_visible()
    subjects.get_by_role("button", name="Erase Grace Hopper").click()
    visit.accept()  # the question
    page.get_by_role("dialog").get_by_role("button", name="Erase").click()
    # The search that is shown is asked again: whoever is erased is not named any more.
    expect(search.get_by_text("? unknown")).to_be_visible()
    expect(visit.region("Erasures").get_by_text("✓ erased")).to_be_visible()
    visit.accept()
    page.get_by_role("link", name="All collections").click()
    expect(page.get_by_role("link", name=re.compile("doors"))).to_be_visible()
    visit.accept()
    receipts = api.get("/collections/doors").json()
    assert (receipts["subjects"], receipts["faces"]) == (1, 1)


@everywhere
def test_generate(visit: Visit) -> None:
    page = visit.open("generate")
    visit.accept()
    page.get_by_role("button", name="Draw new ones").click()
    samples = page.locator(".sheet img")
    expect(samples).to_have_count(20)
    seed = page.get_by_label("Seed", exact=True).input_value()
    first = samples.first.get_attribute("src")
    page.get_by_role("button", name="Draw new ones").click()
    expect(samples.first).not_to_have_attribute("src", first or "")
    page.get_by_label("Seed", exact=True).fill(seed)
    page.get_by_role("button", name="Draw this seed").click()
    expect(samples.first).to_have_attribute("src", first or "")
    visit.accept()
    page.get_by_role("button", name="Walk").click()
    frame = page.locator("canvas.frame")
    begin = pixels(frame)
    page.get_by_label("Place on the way").fill("23")
    assert pixels(frame) != begin
    visit.accept()


@everywhere
def test_denoise(visit: Visit) -> None:
    page = visit.open("denoise")
    visit.accept()
    page.get_by_role("button", name="Digits, drawn for this").click()
    expect(page.locator(".figure").last).to_contain_text("gained")
    before, after, _ = (float(re.findall(r"[\d.]+", text)[0]) for text in page.locator(".figure").all_inner_texts())
    assert after > before + 5
    visit.accept()
    edge = page.get_by_label("Edge between")
    edge.focus()
    page.keyboard.press("Home")
    assert page.locator(".compared img").last.evaluate("image => image.style.clipPath") == "inset(0px 0px 0px 0%)"
    page.get_by_label("Noise to add").fill("0")
    expect(page.get_by_text("nothing to measure against")).to_be_visible()


@everywhere
def test_models(visit: Visit) -> None:
    page = visit.open("models")
    expect(page.get_by_role("article", name="mobilefacenet-triplet")).to_be_visible()
    page.get_by_role("radio", name="mnist", exact=True).check(force=True)
    expect(page.locator(".scatter a")).to_have_count(2)
    page.get_by_role("button", name="Measure here").click()
    expect(page.get_by_text("The median of 5 answers")).to_be_visible()
    visit.accept()
    page.goto(f"{visit.address}/#models/mobilefacenet-triplet")
    card = page.get_by_role("article", name="mobilefacenet-triplet")
    expect(card.get_by_role("row").filter(has_text="1 in 10,000")).to_contain_text("0.259")
    expect(card.get_by_text("research and non-commercial use").first).to_be_visible()
    visit.accept()


@everywhere
def test_status(visit: Visit, api: httpx.Client) -> None:
    page = visit.open("status")
    expect(page.get_by_text("The service is ready")).to_be_visible()
    picture = (EXAMPLES / "coffee.jpg").read_bytes()
    api.post("/classify", files={"file": picture}).raise_for_status()
    expect(page.get_by_role("row").filter(has_text="/classify")).to_be_visible()
    expect(page.locator(".tile").filter(has_text="Memory").locator("strong")).to_contain_text("MiB")
    visit.accept()


def test_the_tabs_by_keyboard_alone(visit: Visit) -> None:
    page = visit.open("")
    page.keyboard.press("Tab")
    assert focused(page) == "Skip to the content"
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    for name in ("Classify", "Verify", "Gallery", "Generate", "Denoise", "Models", "Status"):
        assert focused(page) == name
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", level=1)).to_have_text(name)
        expect(page.get_by_role("link", name=name, exact=True)).to_have_attribute("aria-current", "page")
        page.keyboard.press("ArrowRight")
    assert focused(page) == "Classify"  # round and back
    page.keyboard.press("Enter")
    while page.evaluate("document.activeElement.title") != "A cup of coffee":
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_text("espresso", exact=True)).to_be_visible()


def test_a_theme_is_chosen_and_kept(visit: Visit) -> None:
    page = visit.open("classify")
    by_day = page.evaluate("getComputedStyle(document.body).backgroundColor")
    button = page.get_by_role("button", name="Theme")
    button.click()
    button.click()
    expect(button).to_have_text("Dark")
    page.reload()
    expect(button).to_have_text("Dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != by_day


TRANSFER = """async ([url, type]) => {
    const blob = await (await fetch(url)).blob();
    const data = new DataTransfer();
    data.items.add(new File([blob], `by-${type}.jpg`, { type: blob.type }));
    const field = type === "paste" ? "clipboardData" : "dataTransfer";
    const kind = type === "paste" ? ClipboardEvent : DragEvent;
    document.body.dispatchEvent(new kind(type, { [field]: data, bubbles: true, cancelable: true }));
}"""


def test_pictures_come_by_paste_drop_and_camera(visit: Visit) -> None:
    page = visit.open("classify")
    expect(page.get_by_label("Model")).to_have_value("efficientnet-lite0")
    for number, way in enumerate(("paste", "drop"), start=1):
        page.evaluate(TRANSFER, ["web/examples/coffee.jpg", way])
        expect(page.get_by_text("espresso", exact=True)).to_have_count(number)
    page.get_by_role("button", name="Camera").click()
    visit.accept()
    page.get_by_role("button", name="Take the picture").click()
    expect(page.locator(".result")).to_have_count(3)
    expect(page.locator(".result").last.get_by_role("listitem")).to_have_count(5)
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_a_picture_that_is_none_is_told_of_and_costs_its_neighbours_nothing(visit: Visit) -> None:
    page = visit.open("classify")
    broken: Any = {"name": "broken.png", "mimeType": "image/png", "buffer": b"no picture at all"}
    page.locator("input[type=file]").set_input_files(broken)
    expect(page.locator(".result")).to_contain_text("This is not a picture we can read")
    visit.accept()
    page.get_by_role("button", name="A cup of coffee").click()
    expect(page.locator(".result").last).to_contain_text("espresso")
    expect(page.locator(".result").first).to_contain_text("This is not a picture we can read")
    # The browser itself tells its console of the refusal; nothing else may be there.
    assert all(error.startswith(REFUSED) for error in visit.errors), visit.errors
    visit.errors.clear()


def test_a_service_that_is_gone_is_told_of_and_asked_again(visit: Visit) -> None:
    page = visit.open("classify")
    expect(page.get_by_label("Model")).to_be_enabled()
    page.route("**/classify?*", lambda route: route.abort())
    page.get_by_role("button", name="A cup of coffee").click()
    expect(page.get_by_role("alert")).to_contain_text("The service does not answer")
    page.unroute("**/classify?*")
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_text("espresso", exact=True)).to_be_visible()
    assert all("net::ERR_FAILED" in error for error in visit.errors), visit.errors
    visit.errors.clear()


def test_reasons_are_words_and_names_are_text(visit: Visit, api: httpx.Client) -> None:
    api.put("/collections/doors", json={}).raise_for_status()
    name = "<img src=x onerror=alert(1)>"
    api.put("/collections/doors/subjects/eve", json={"name": name}).raise_for_status()
    page = visit.open("gallery/doors")
    expect(visit.region("Subjects").get_by_text(name)).to_be_visible()
    enrol = visit.region("Enrol")
    small = page.evaluate_handle(SMALL, "web/examples/astronaut.jpg")
    enrol.locator("input[type=file]").evaluate("(input, small) => small.into(input)", small)
    enrol.get_by_label("Subject id").fill("eve")
    enrol.get_by_role("button", name="Enrol", exact=True).click()
    expect(enrol.get_by_text("the face is too small")).to_be_visible()
    expect(enrol.get_by_text("✕ not enrolled")).to_be_visible()


# A photo whose face is smaller than may be enrolled, and how it gets into a file input.
SMALL = """async (url) => {
    const bitmap = await createImageBitmap(await (await fetch(url)).blob());
    const canvas = new OffscreenCanvas(160, 160);
    canvas.getContext("2d").drawImage(bitmap, 0, 0, 160, 160);
    const file = new File([await canvas.convertToBlob()], "small.png", { type: "image/png" });
    const data = new DataTransfer();
    data.items.add(file);
    return { into: (input) => { input.files = data.files; input.dispatchEvent(new Event("change")); } };
}"""


def test_subjects_by_page(visit: Visit, api: httpx.Client) -> None:
    api.put("/collections/crowd", json={}).raise_for_status()
    for number in range(23):
        api.put(f"/collections/crowd/subjects/{number:02}", json={}).raise_for_status()
    visit.open("gallery/crowd")
    subjects = visit.region("Subjects")
    expect(subjects.get_by_text("1 to 10", exact=True)).to_be_visible()
    for place, first in (("11 to 20", "10"), ("21 to 23", "20")):
        subjects.get_by_role("button", name="Next").click()
        expect(subjects.get_by_text(place, exact=True)).to_be_visible()
        expect(subjects.locator(".person").first).to_contain_text(first)
    expect(subjects.get_by_role("button", name="Next")).to_be_disabled()
    subjects.get_by_role("button", name="Before").click()
    expect(subjects.get_by_text("11 to 20", exact=True)).to_be_visible()


def test_the_page_reckons_as_others_do(visit: Visit) -> None:
    page = visit.open("status")
    matching = read_card(PROJECT / "weights" / "mobilefacenet-triplet").matching
    assert matching is not None
    rates = [0.1, 0.03, 0.01, 0.004, 0.001, 0.0001, 0.00003]
    found = page.evaluate(
        "async ([card, rates]) => rates.map((await import('/web/catalogue.js')).distanceAt.bind(null, card))",
        [matching.model_dump(mode="json"), [*rates, 0.2, 0.00001]],
    )
    assert found == [pytest.approx(1 - matching.threshold(rate).similarity) for rate in rates] + [None, None]

    noise = page.evaluate("import('/web/noise.js').then(({ gaussian }) => Array.from({ length: 1e5 }, gaussian(1)))")
    shares = map(NormalDist().cdf, sorted(noise))
    # Kolmogorov and Smirnov: one in a hundred true Gaussians is further off than this.
    assert max(abs(share - place / 1e5) for place, share in enumerate(shares)) < 1.63 / 1e5**0.5

    text = "\n".join(f'wait_bucket{{route="/a",le="{le}"}} {n}' for le, n in (("1.0", 2), ("2.0", 6), ("+Inf", 8)))
    quantiles = page.evaluate(
        """async (text) => {
            const { parse, quantile } = await import('/web/prometheus.js');
            return [0.25, 0.5, 0.75, 0.9].map((share) => quantile([], parse(text), 'wait', share));
        }""",
        text,
    )
    # As Prometheus' histogram_quantile: evenly spread within a bucket, the last bound for what lies beyond it.
    assert quantiles == [pytest.approx(one) for one in (1.0, 1.5, 2.0, 2.0)]


def focused(page: Page) -> str:
    text: str = page.evaluate("document.activeElement.textContent.trim()")
    return text


def pixels(canvas: Locator) -> str:
    url: str = canvas.evaluate("canvas => canvas.toDataURL()")
    return url


def painted(canvas: Locator) -> bool:
    """Whether anything is drawn on it."""
    found: bool = canvas.evaluate(
        "canvas => canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.some(Boolean)"
    )
    return found


@everywhere
def test_a_key_is_asked_for_kept_and_sent(visit: Visit, tmp_path: Path) -> None:
    keys = ApiKeys(tmp_path / FOLDER)
    with serving(VESTIBULE_STATE=str(tmp_path)) as (_, address, _):
        _, right = keys.create("console", ["infer"])
        visit.address, page = address, visit.page
        page.goto(f"{address}/#generate")
        expect(page.get_by_role("dialog")).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.get_by_text("This service asks for an API key")).to_be_visible()
        visit.accept()
        for key, told in (("vst_wrong", "The API key is not accepted"), (right, "Nothing is drawn yet")):
            page.get_by_role("dialog").or_(page.get_by_role("button", name="Key")).first.wait_for()
            if not page.get_by_role("dialog").is_visible():
                page.get_by_role("button", name="Key").click()
            page.get_by_label("Key", exact=True).fill(key)
            visit.accept()
            page.get_by_role("button", name="Use it").click()
            expect(page.get_by_text(told)).to_be_visible()
        page.get_by_role("button", name="Draw new ones").click()
        with page.expect_download() as saved:
            page.get_by_role("button", name="Save as PNG").click()
        assert saved.value.suggested_filename == "samples.png"
        page.get_by_text("The same in a terminal").first.click()
        expect(page.locator(".command pre").first).to_contain_text('-H "Authorization: Bearer $VESTIBULE_API_KEY"')
        page.goto(f"{address}/#gallery")
        expect(page.get_by_text("this needs a key with the scope enrol").first).to_be_visible()
        assert right not in page.content()
        refused = [error for error in visit.errors if error.startswith((f"{REFUSED} 401", f"{REFUSED} 403"))]
        assert visit.errors == refused
        visit.errors.clear()
    keys.close()
