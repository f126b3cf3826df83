"""Curation in the console's gallery: merges and their undo, moved faces, likely duplicates, and unknown people."""

from __future__ import annotations

import httpx
import pytest
from playwright.sync_api import expect

from tests.app.console.conftest import EXAMPLES, REFUSED, Visit, at_all_widths
from tests.app.console.test_live import see

pytestmark = pytest.mark.slow


@pytest.fixture
def doors(api: httpx.Client) -> httpx.Client:
    """With Eileen Collins enrolled twice, and Grace Hopper."""
    api.put("/collections/doors", json={"keep_crops": True}).raise_for_status()
    for subject, photo in (("e.collins", "astronaut"), ("eileen", "astronaut"), ("grace", "hopper")):
        image = {"file": (EXAMPLES / f"{photo}.jpg").read_bytes()}
        api.post(f"/collections/doors/subjects/{subject}/faces", files=image).raise_for_status()
    return api


def subjects_of(api: httpx.Client) -> dict[str, int]:
    data = api.get("/collections/doors/subjects").json()["data"]
    return {subject["id"]: subject["faces"] for subject in data}


@at_all_widths
def test_merge_a_likely_duplicate_and_undo(visit: Visit, doors: httpx.Client) -> None:
    visit.open("gallery/doors")
    duplicates, merges, subjects = (visit.region(name) for name in ("Likely duplicates", "Merges", "Subjects"))
    duplicates.get_by_role("button", name="Find likely duplicates").click()
    pair = duplicates.get_by_role("listitem")
    expect(pair).to_have_count(1)
    expect(duplicates.get_by_text("1 pair among all subjects.")).to_be_visible()
    pair.scroll_into_view_if_needed()
    for crop in pair.locator("img").all():
        expect(crop).to_have_js_property("naturalWidth", 112)
    visit.check_accessibility()
    pair.get_by_role("button", name="Keep eileen").click()
    expect(pair).to_have_count(0)
    expect(merges.get_by_role("listitem")).to_contain_text("e.collins → eileen")
    expect(subjects.get_by_role("button", name="2 faces")).to_be_visible()
    visit.check_accessibility()
    assert subjects_of(doors) == {"eileen": 2, "grace": 1}
    merges.get_by_role("button", name="Undo the merge of e.collins into eileen").click()
    expect(subjects.get_by_text("e.collins", exact=True)).to_be_visible()
    expect(merges).to_be_hidden()
    assert subjects_of(doors) == {"e.collins": 1, "eileen": 1, "grace": 1}
    duplicates.get_by_role("button", name="Compare again").click()
    duplicates.get_by_role("button", name="Hide the pair").click()
    expect(pair).to_have_count(0)


@at_all_widths
def test_move_faces_and_merge_by_id(visit: Visit, doors: httpx.Client) -> None:
    visit.open("gallery/doors")
    subjects = visit.region("Subjects")
    person = subjects.locator(".person").filter(has_text="grace")
    person.get_by_role("button", name="1 face").click()
    expect(person.locator("img")).to_have_js_property("naturalWidth", 112)
    expect(person.get_by_role("button", name="Move")).to_be_disabled()
    person.get_by_role("checkbox").check()
    visit.check_accessibility()
    person.get_by_label("Move the selected faces").fill("hopper")
    person.get_by_role("button", name="Move 1 face").click()
    expect(subjects.locator(".person").filter(has_text="hopper")).to_contain_text("1 face")
    assert subjects_of(doors) == {"e.collins": 1, "eileen": 1, "grace": 0, "hopper": 1}

    person.get_by_role("button", name="0 faces").click()
    merge = person.get_by_label("Merge grace into the subject")
    merge.fill("nobody")
    merge.press("Enter")
    expect(person.get_by_role("alert")).to_contain_text("nobody")
    visit.check_accessibility()
    merge.fill("hopper")
    merge.press("Enter")
    expect(visit.region("Merges")).to_contain_text("grace → hopper")
    assert subjects_of(doors) == {"e.collins": 1, "eileen": 1, "hopper": 1}
    assert all(error.startswith(f"{REFUSED} 404") for error in visit.errors), visit.errors
    visit.errors.clear()


@at_all_widths
def test_group_unknown_people_and_enrol_a_group(visit: Visit, api: httpx.Client) -> None:
    api.put("/collections/doors", json={}).raise_for_status()
    for photo in ("astronaut.jpg", "hopper.jpg", "astronaut.jpg", "cat.jpg", "hopper.jpg"):
        see(api, "yard", photo=photo)
    see(api, "yard")  # without a best shot
    page = visit.open("gallery/doors")
    unknown = visit.region("Unknown people")
    unknown.get_by_role("button", name="Group unknown people").click()
    groups = unknown.get_by_role("form")
    expect(groups).to_have_count(2)  # the cat has no face
    expect(unknown.get_by_text("2 groups of several sightings, in 4 best shots")).to_be_visible()
    visit.check_accessibility()
    group = groups.first
    group.get_by_role("button", name="Include the shot").first.click()
    visit.check_accessibility()
    group.get_by_label("Subject id").fill("grace")
    group.get_by_label("Name").fill("Grace Hopper")
    group.get_by_role("button", name="Enrol", exact=True).click()
    expect(unknown.get_by_text("1 face enrolled as Grace Hopper.")).to_be_visible()
    expect(visit.region("Subjects").get_by_text("Grace Hopper")).to_be_visible()
    assert subjects_of(api) == {"grace": 1}
    unknown.get_by_role("button", name="Group again").click()
    expect(groups).to_have_count(1)  # the other person is enrolled now
    page.get_by_role("link", name="All collections").click()


def test_unknown_people_without_best_shots(visit: Visit, api: httpx.Client) -> None:
    api.put("/collections/doors", json={}).raise_for_status()
    page = visit.open("gallery/doors")
    unknown = visit.region("Unknown people")
    unknown.get_by_role("button", name="Group unknown people").click()
    expect(unknown.get_by_text("There are no best shots of people who are not enrolled.")).to_be_visible()
    page.route("**/sightings?*", lambda route: route.abort())
    unknown.get_by_role("button", name="Group unknown people").click()
    expect(unknown.get_by_role("alert")).to_contain_text("The service does not respond")
    page.unroute("**/sightings?*")
    unknown.get_by_role("button", name="Try again").click()
    expect(unknown.get_by_role("alert")).to_have_count(0)
    assert all("net::ERR_FAILED" in error for error in visit.errors), visit.errors
    visit.errors.clear()
