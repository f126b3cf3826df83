"""The console in a browser: every tab with real images, at the widths of a phone, a tablet and a desktop."""

from __future__ import annotations

import re
from pathlib import Path
from statistics import NormalDist
from typing import Any

import httpx
import pytest
from playwright.sync_api import Locator, Page, expect

from app.auth.keys import ApiKeys
from app.settings import PROJECT
from index.factory import open_keys
from models.checkpoint import read_card
from tests.app.console.conftest import EXAMPLES, REFUSED, Visit, at_all_widths
from tests.app.server.test_process import serving

pytestmark = pytest.mark.slow


@at_all_widths
def test_classify(visit: Visit) -> None:
    page = visit.open("classify")
    visit.check_accessibility()
    page.get_by_role("button", name="A cup of coffee").click()
    page.locator("input[type=file]").set_input_files([EXAMPLES / "cat.jpg", EXAMPLES / "astronaut.jpg"])
    espresso = page.get_by_role("listitem").filter(has_text="espresso")
    expect(espresso).to_contain_text("95.3")
    expect(page.locator(".result")).to_have_count(3)
    expect(page.locator(".result").nth(1)).to_contain_text("tiger cat")
    visit.check_accessibility()
    page.get_by_role("button", name="Remove cat.jpg").click()
    expect(page.locator(".result")).to_have_count(2)
    page.get_by_role("button", name="A string of digits").click()
    expect(page.get_by_label("Model")).to_have_value("lenet5-mnist")
    expect(page.locator(".digits").last).to_have_text("64798")
    assert painted(page.locator(".result canvas").last)
    visit.check_accessibility()


@at_all_widths
def test_verify(visit: Visit) -> None:
    page = visit.open("verify")
    visit.check_accessibility()
    page.get_by_role("button", name="Different people").click()
    expect(page.get_by_role("heading", level=2)).to_have_text("No match")
    thresholds = " · ".join(f"1 in {1 / rate:,.0f} at {threshold(rate)}" for rate in (0.01, 0.001, 0.0001))
    expect(page.get_by_text(f"Thresholds: {thresholds}")).to_be_visible()
    assert painted(page.locator(".slot canvas").first)
    assert painted(page.locator(".slot canvas").last)
    visit.check_accessibility()
    page.get_by_role("radio", name="1 in 100,000").check(force=True)
    expect(page.get_by_text("the threshold is extrapolated")).to_be_visible()
    for _ in range(2):
        page.get_by_role("button", name="Change").first.click()
    for _ in range(2):
        page.locator("input[type=file]").first.set_input_files(EXAMPLES / "hopper.jpg")
    expect(page.get_by_role("heading", level=2)).to_have_text("Same person")
    visit.check_accessibility()


@at_all_widths
def test_gallery(visit: Visit, api: httpx.Client) -> None:
    page = visit.open("gallery")
    expect(page.get_by_text("No collections yet")).to_be_visible()
    visit.check_accessibility()
    page.get_by_label("Name").fill("doors")
    page.get_by_role("button", name="Create collection").click()
    expect(page.get_by_text("No subjects yet")).to_be_visible()
    enrol, search, subjects = visit.region("Enrol"), visit.region("Search"), visit.region("Subjects")
    for name in ("Eileen Collins", "Grace Hopper"):
        enrol.get_by_role("button", name=name).click()
        enrol.get_by_role("button", name="Enrol", exact=True).click()
        expect(subjects.get_by_text(name)).to_be_visible()
    expect(enrol.get_by_text("✓ enrolled")).to_be_visible()
    search.get_by_role("button", name="Grace Hopper").click()
    expect(search.get_by_text("✓ match")).to_be_visible()
    expect(search.get_by_label("Candidates").get_by_role("listitem").first).to_contain_text("Grace Hopper")
    visit.check_accessibility()
    subjects.get_by_role("button", name="1 face").first.click()
    expect(subjects.get_by_text("px wide")).to_be_visible()
    subjects.get_by_role("button", name="Erase Grace Hopper").click()
    visit.check_accessibility()  # the confirmation dialog
    page.get_by_role("dialog").get_by_role("button", name="Erase").click()
    # The search is repeated: an erased subject is not a candidate any more.
    expect(search.get_by_text("? unknown")).to_be_visible()
    expect(visit.region("Erasures").get_by_text("✓ erased")).to_be_visible()
    visit.check_accessibility()
    page.get_by_role("link", name="All collections").click()
    expect(page.get_by_role("link", name=re.compile("doors"))).to_be_visible()
    visit.check_accessibility()
    collection = api.get("/collections/doors").json()
    assert (collection["subjects"], collection["faces"]) == (1, 1)


@at_all_widths
def test_generate(visit: Visit) -> None:
    page = visit.open("generate")
    visit.check_accessibility()
    page.get_by_role("button", name="Generate new samples").click()
    samples = page.locator(".sheet img")
    expect(samples).to_have_count(20)
    seed = page.get_by_label("Seed", exact=True).input_value()
    first = samples.first.get_attribute("src")
    page.get_by_role("button", name="Generate new samples").click()
    expect(samples.first).not_to_have_attribute("src", first or "")
    page.get_by_label("Seed", exact=True).fill(seed)
    page.get_by_role("button", name="Generate with this seed").click()
    expect(samples.first).to_have_attribute("src", first or "")
    visit.check_accessibility()
    page.get_by_role("button", name="Interpolate").click()
    frame = page.locator("canvas.frame")
    first_frame = pixels(frame)
    page.get_by_label("Position", exact=True).fill("23")
    assert pixels(frame) != first_frame
    visit.check_accessibility()


@at_all_widths
def test_denoise(visit: Visit) -> None:
    page = visit.open("denoise")
    visit.check_accessibility()
    page.get_by_role("button", name="Generated digits").click()
    expect(page.locator(".figure").last).to_contain_text("gained")
    before, after, _ = (float(re.findall(r"[\d.]+", text)[0]) for text in page.locator(".figure").all_inner_texts())
    assert after > before + 5
    visit.check_accessibility()
    edge = page.get_by_label("Edge between")
    edge.focus()
    page.keyboard.press("Home")
    assert page.locator(".compared img").last.evaluate("image => image.style.clipPath") == "inset(0px 0px 0px 0%)"
    page.get_by_label("Added noise").fill("0")
    expect(page.get_by_text("no reference to compare with")).to_be_visible()


@at_all_widths
def test_models(visit: Visit) -> None:
    page = visit.open("models")
    expect(page.get_by_role("article", name="mobilefacenet-triplet")).to_be_visible()
    page.get_by_role("radio", name="mnist", exact=True).check(force=True)
    expect(page.locator(".scatter a")).to_have_count(2)
    page.get_by_role("button", name="Measure latency").click()
    expect(page.get_by_text("Median of 5 sequential requests")).to_be_visible()
    visit.check_accessibility()
    page.goto(f"{visit.address}/#models/mobilefacenet-triplet")
    card = page.get_by_role("article", name="mobilefacenet-triplet")
    expect(card.get_by_role("row").filter(has_text="1 in 10,000")).to_contain_text(threshold(0.0001))
    expect(card.get_by_text("non-commercial").first).to_be_visible()
    visit.check_accessibility()


@at_all_widths
def test_status(visit: Visit, api: httpx.Client) -> None:
    page = visit.open("status")
    expect(page.get_by_text("The service is ready")).to_be_visible()
    api.post("/classify", files={"file": (EXAMPLES / "coffee.jpg").read_bytes()}).raise_for_status()
    expect(page.get_by_role("row").filter(has_text="/classify")).to_be_visible()
    expect(page.locator(".tile").filter(has_text="Memory").locator("strong")).to_contain_text("MiB")
    visit.check_accessibility()


def test_keyboard_navigation(visit: Visit) -> None:
    page = visit.open("")
    page.keyboard.press("Tab")
    assert focused(page) == "Skip to content"
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    for name in ("Classify", "Verify", "Gallery", "Live", "Generate", "Denoise", "Models", "Status"):
        assert focused(page) == name
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", level=1)).to_have_text(name)
        expect(page.get_by_role("link", name=name, exact=True)).to_have_attribute("aria-current", "page")
        page.keyboard.press("ArrowRight")
    assert focused(page) == "Classify"  # the arrow keys wrap around
    page.keyboard.press("Enter")
    while page.evaluate("document.activeElement.title") != "A cup of coffee":
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_text("espresso", exact=True)).to_be_visible()


def test_theme_is_stored(visit: Visit) -> None:
    page = visit.open("classify")
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    button = page.get_by_role("button", name="Theme")
    button.click()
    button.click()
    expect(button).to_have_text("Dark")
    page.reload()
    expect(button).to_have_text("Dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light


TRANSFER = """async ([url, type]) => {
    const blob = await (await fetch(url)).blob();
    const data = new DataTransfer();
    data.items.add(new File([blob], `by-${type}.jpg`, { type: blob.type }));
    const field = type === "paste" ? "clipboardData" : "dataTransfer";
    const kind = type === "paste" ? ClipboardEvent : DragEvent;
    document.body.dispatchEvent(new kind(type, { [field]: data, bubbles: true, cancelable: true }));
}"""


def test_images_by_paste_drop_and_camera(visit: Visit) -> None:
    page = visit.open("classify")
    expect(page.get_by_label("Model")).to_have_value("efficientnet-lite0")
    for number, way in enumerate(("paste", "drop"), start=1):
        page.evaluate(TRANSFER, ["web/examples/coffee.jpg", way])
        expect(page.get_by_text("espresso", exact=True)).to_have_count(number)
    page.get_by_role("button", name="Camera").click()
    visit.check_accessibility()
    page.get_by_role("button", name="Take photo").click()
    expect(page.locator(".result")).to_have_count(3)
    expect(page.locator(".result").last.get_by_role("listitem")).to_have_count(5)
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_an_invalid_image_does_not_affect_the_others(visit: Visit) -> None:
    page = visit.open("classify")
    broken: Any = {"name": "broken.png", "mimeType": "image/png", "buffer": b"not an image"}
    page.locator("input[type=file]").set_input_files(broken)
    expect(page.locator(".result").get_by_role("alert")).to_be_visible()
    visit.check_accessibility()
    page.get_by_role("button", name="A cup of coffee").click()
    expect(page.locator(".result").last).to_contain_text("espresso")
    expect(page.locator(".result").first.get_by_role("alert")).to_be_visible()
    # The browser logs the refused request itself; there must be no other message.
    assert all(error.startswith(REFUSED) for error in visit.errors), visit.errors
    visit.errors.clear()


def test_retry_after_the_service_was_unreachable(visit: Visit) -> None:
    page = visit.open("classify")
    expect(page.get_by_label("Model")).to_be_enabled()
    page.route("**/classify?*", lambda route: route.abort())
    page.get_by_role("button", name="A cup of coffee").click()
    expect(page.get_by_role("alert")).to_contain_text("The service does not respond")
    page.unroute("**/classify?*")
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_text("espresso", exact=True)).to_be_visible()
    assert all("net::ERR_FAILED" in error for error in visit.errors), visit.errors
    visit.errors.clear()


def test_reasons_are_described_and_names_are_not_parsed_as_html(visit: Visit, api: httpx.Client) -> None:
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


# A photo whose face is too small to enrol, and a function that puts it into a file input.
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
    for position, first in (("11 to 20", "10"), ("21 to 23", "20")):
        subjects.get_by_role("button", name="Next").click()
        expect(subjects.get_by_text(position, exact=True)).to_be_visible()
        expect(subjects.locator(".person").first).to_contain_text(first)
    expect(subjects.get_by_role("button", name="Next")).to_be_disabled()
    subjects.get_by_role("button", name="Previous").click()
    expect(subjects.get_by_text("11 to 20", exact=True)).to_be_visible()


def test_computations_agree_with_python(visit: Visit) -> None:
    page = visit.open("status")
    matching = read_card(PROJECT / "weights" / "mobilefacenet-triplet").matching
    assert matching is not None
    rates = [0.1, 0.03, 0.01, 0.004, 0.001, 0.0001, 0.00003]
    distances = page.evaluate(
        "async ([card, rates]) => rates.map((await import('/web/model_cards.js')).distanceAt.bind(null, card))",
        [matching.model_dump(mode="json"), [*rates, 0.2, 0.00001]],
    )
    assert distances == [pytest.approx(1 - matching.threshold(rate).similarity) for rate in rates] + [None, None]

    noise = page.evaluate("import('/web/noise.js').then(({ gaussian }) => Array.from({ length: 1e5 }, gaussian(1)))")
    shares = map(NormalDist().cdf, sorted(noise))
    # Kolmogorov-Smirnov test at the 1 % level.
    assert max(abs(share - rank / 1e5) for rank, share in enumerate(shares)) < 1.63 / 1e5**0.5

    text = "\n".join(f'wait_bucket{{route="/a",le="{le}"}} {n}' for le, n in (("1.0", 2), ("2.0", 6), ("+Inf", 8)))
    quantiles = page.evaluate(
        """async (text) => {
            const { parse, quantile } = await import('/web/prometheus.js');
            return [0.25, 0.5, 0.75, 0.9].map((share) => quantile([], parse(text), 'wait', share));
        }""",
        text,
    )
    # Like Prometheus' histogram_quantile: interpolated within a bucket; the last finite bound beyond it.
    assert quantiles == [pytest.approx(value) for value in (1.0, 1.5, 2.0, 2.0)]


def threshold(fmr: float) -> str:
    matching = read_card(PROJECT / "weights" / "mobilefacenet-triplet").matching
    assert matching is not None
    return f"{1 - matching.threshold(fmr).similarity:.3f}"


def focused(page: Page) -> str:
    text: str = page.evaluate("document.activeElement.textContent.trim()")
    return text


def pixels(canvas: Locator) -> str:
    url: str = canvas.evaluate("canvas => canvas.toDataURL()")
    return url


def painted(canvas: Locator) -> bool:
    """Return whether anything is drawn on the canvas."""
    return bool(
        canvas.evaluate(
            "canvas => canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.some(Boolean)"
        )
    )


@at_all_widths
def test_key_dialog(visit: Visit, tmp_path: Path) -> None:
    keys = ApiKeys(open_keys(tmp_path))
    with serving(VESTIBULE_STATE=str(tmp_path)) as (_, address, _):
        _, valid = keys.create("console", ["infer"])
        visit.address, page = address, visit.page
        page.goto(f"{address}/#generate")
        expect(page.get_by_role("dialog")).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.get_by_text("This service requires an API key")).to_be_visible()
        visit.check_accessibility()
        for key, text in (("vst_wrong", "The API key is not accepted"), (valid, "No samples yet")):
            page.get_by_role("dialog").or_(page.get_by_role("button", name="Key")).first.wait_for()
            if not page.get_by_role("dialog").is_visible():
                page.get_by_role("button", name="Key").click()
            page.get_by_label("Key", exact=True).fill(key)
            visit.check_accessibility()
            page.get_by_role("button", name="Use key").click()
            expect(page.get_by_text(text)).to_be_visible()
        page.get_by_role("button", name="Generate new samples").click()
        with page.expect_download() as saved:
            page.get_by_role("button", name="Save as PNG").click()
        assert saved.value.suggested_filename == "samples.png"
        page.get_by_text("Terminal command").first.click()
        expect(page.locator(".command pre").first).to_contain_text('-H "Authorization: Bearer $VESTIBULE_API_KEY"')
        page.goto(f"{address}/#gallery")
        expect(page.get_by_role("alert").first).to_contain_text("enrol")
        assert valid not in page.content()
        assert all(error.startswith((f"{REFUSED} 401", f"{REFUSED} 403")) for error in visit.errors), visit.errors
        visit.errors.clear()
    keys.close()
