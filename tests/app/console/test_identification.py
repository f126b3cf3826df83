"""Passages and calibrations on site in the console's gallery."""

from __future__ import annotations

import re
from collections.abc import Iterator

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from playwright.sync_api import expect

from app.main import create_app
from app.settings import Settings
from tests.app.console.conftest import EXAMPLES, Visit, at_all_widths
from tests.app.gallery.test_calibration import add_people
from tests.app.threaded import serving_app

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    return create_app(Settings(state=tmp_path_factory.mktemp("state"), deadline_s=120))


@pytest.fixture(scope="module")
def address(app: FastAPI) -> Iterator[str]:
    """The service runs in this process, so that tests can enrol vectors."""
    with serving_app(app) as url:
        yield url


@pytest.fixture
def doors(api: httpx.Client) -> httpx.Client:
    """A collection with Eileen Collins."""
    api.put("/collections/doors", json={}).raise_for_status()
    image = {"file": (EXAMPLES / "astronaut.jpg").read_bytes()}
    api.post("/collections/doors/subjects/eileen/faces", files=image).raise_for_status()
    return api


@at_all_widths
def test_photos_of_one_person_are_one_decision(visit: Visit, doors: httpx.Client) -> None:
    page = visit.open("gallery/doors")
    search = visit.region("Search")
    search.get_by_label("All photos show one person").check()
    eileen = search.get_by_role("button", name="Eileen Collins")
    eileen.click()
    expect(search.get_by_text("One decision by 1 of 1 photos.")).to_be_visible()
    eileen.click()
    expect(search.get_by_text("One decision by 2 of 2 photos.")).to_be_visible()
    search.get_by_role("button", name="Grace Hopper").click()
    expect(search.get_by_text("One decision by 2 of 3 photos.")).to_be_visible()
    frames = search.get_by_role("list", name="Photos").get_by_role("listitem")
    expect(frames).to_have_count(3)
    expect(frames.first).to_contain_text("used, 50.0 % of the decision")
    expect(frames.last).to_contain_text("not used: it looks like another person")
    expect(search.get_by_text("Photos were left out whose faces look like another person's.")).to_be_visible()
    expect(search.get_by_text("✓ match")).to_be_visible()
    expect(search.get_by_role("list", name="Candidates").get_by_role("listitem")).to_contain_text("eileen")
    search.scroll_into_view_if_needed()
    visit.check_accessibility()
    search.get_by_text("Terminal command").click()
    command = search.get_by_label("Command").inner_text()
    assert command.count("-F file=@") == 3
    assert "passage=true" in command

    # The same photos, each on its own.
    search.get_by_label("All photos show one person").uncheck()
    expect(search.get_by_text("✓ match")).to_have_count(2)
    expect(search.get_by_text("? unknown")).to_have_count(1)
    search.get_by_label("All photos show one person").check()
    search.get_by_role("button", name="Start over").click()
    expect(frames).to_have_count(0)
    search.locator("input[type=file]").set_input_files([EXAMPLES / "coffee.jpg", EXAMPLES / "cat.jpg"])
    expect(search.get_by_text("rejected", exact=False)).to_be_visible()
    expect(search.get_by_text("No face to search for")).to_be_visible()
    expect(frames.first).to_contain_text("not used: there is no face")
    assert page.url.endswith("#gallery/doors")


@at_all_widths
def test_calibrations_are_shown_and_chosen(visit: Visit, doors: httpx.Client, app: FastAPI) -> None:
    direct = TestClient(app)
    add_people(direct, "doors", 20, 2, seed=2, prefix="enrolled")
    for name, people, seed, prefix in (("strangers", 60, 1, "p"), ("again", 20, 2, "enrolled")):
        doors.put(f"/collections/{name}", json={}).raise_for_status()
        add_people(direct, name, people, 4, seed=seed, prefix=prefix)
    visit.open("gallery/doors")
    panel = visit.region("Calibration on site")
    own = panel.get_by_role("listitem").filter(has_text="The embedder's own thresholds")
    expect(own).to_contain_text("✓ in use")
    for params in ({}, {"mated": "again"}):
        body = {"strangers": "strangers", **params}
        doors.post("/collections/doors/calibrations", json=body).raise_for_status()
    visit.page.reload()
    search = visit.region("Search")
    search.get_by_role("button", name="Eileen Collins").click()
    threshold = search.get_by_text(re.compile("The threshold for a match"))
    on_site = threshold.inner_text()
    newest, oldest = panel.get_by_role("listitem").nth(0), panel.get_by_role("listitem").nth(1)
    expect(newest).to_contain_text("Version 2")
    expect(newest).to_contain_text("✓ in use")
    expect(newest).to_contain_text("240 photos of 60 people who are not enrolled")
    newest.get_by_text("Error rates of version 2").click()
    tables = newest.get_by_role("table")
    expect(tables).to_have_count(4)
    report = doors.get("/collections/doors/calibrations").json()["data"][1]["report"]
    for table, changes in zip(tables.all(), (report["fmr"], report["fpir"], report["fnir"]), strict=False):
        for row, change in zip(table.get_by_role("row").all()[1:], changes, strict=True):
            numbers = [float(number) for number in re.findall(r"[\d.]+", row.inner_text().split("\t", 1)[1])]
            keys = ("before", "before_low", "before_high", "after", "after_low", "after_high")
            assert numbers == [pytest.approx(change[key], rel=0.01) for key in keys]
    expect(tables.last).to_contain_text("camera: north")
    newest.scroll_into_view_if_needed()
    visit.check_accessibility()

    own.get_by_role("button", name="Use").click()
    expect(own).to_contain_text("✓ in use")
    expect(threshold).not_to_have_text(on_site)  # the search is repeated
    assert doors.get("/collections/doors/calibration").json() == {"calibration": None}
    oldest.get_by_role("button", name="Use").click()
    expect(oldest).to_contain_text("✓ in use")
    assert doors.get("/collections/doors/calibration").json()["calibration"]["version"] == 1


def test_a_problem_is_shown_and_can_be_retried(visit: Visit, doors: httpx.Client) -> None:
    visit.page.route("**/calibrations?*", lambda route: route.abort())
    visit.open("gallery/doors")
    panel = visit.region("Calibration on site")
    expect(panel.get_by_role("alert")).to_contain_text("The service does not respond")
    visit.page.unroute("**/calibrations?*")
    panel.get_by_role("button", name="Try again").click()
    expect(panel.get_by_text("✓ in use")).to_be_visible()
    assert all("net::ERR_FAILED" in error for error in visit.errors), visit.errors
    visit.errors.clear()
