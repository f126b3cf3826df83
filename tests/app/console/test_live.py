"""The console's tab of sightings and alerts in a browser, with sightings that arrive while it is open."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, expect

from app.auth.keys import ApiKeys
from index.factory import open_keys
from tests.app.console.conftest import EXAMPLES, REFUSED, Visit, at_all_widths
from tests.app.server.test_process import serving

pytestmark = pytest.mark.slow


def see(api: httpx.Client, camera: str, subject: str | None = None, photo: str | None = None) -> str:
    """Add a sighting in the collection "doors" and return its id."""
    now = datetime.now(UTC).isoformat()
    crop = None if photo is None else base64.b64encode((EXAMPLES / photo).read_bytes()).decode()
    body = {
        "collection": "doors",
        "camera": camera,
        "started_at": now,
        "ended_at": now,
        "frames": 7,
        "subject_id": subject,
        "probability": None if subject is None else 0.987,
        "crop": crop,
    }
    response = api.post("/sightings", json=body)
    response.raise_for_status()
    return str(response.json()["id"])


def create_doors(api: httpx.Client) -> None:
    """Create the collection "doors" with the subject "eileen", who has no face: cameras decide who a person is."""
    api.put("/collections/doors", json={}).raise_for_status()
    api.put("/collections/doors/subjects/eileen", json={"name": "Eileen Collins"}).raise_for_status()


@at_all_widths
def test_sightings_and_alerts_arrive(visit: Visit, api: httpx.Client) -> None:
    page = visit.open("live")
    expect(page.get_by_text("No collections yet")).to_be_visible()
    visit.check_accessibility()
    create_doors(api)
    page.goto(f"{visit.address}/#live/doors")
    alerts, sightings = visit.region("Alerts"), visit.region("Sightings")
    expect(sightings.get_by_text("No sightings yet")).to_be_visible()
    expect(alerts.get_by_text("✓ connected")).to_be_visible()
    alerts.get_by_text("Rules of doors (0)").click()
    alerts.get_by_label("Name of the rule").fill("Strangers")
    alerts.get_by_role("button", name="Create rule").click()
    expect(
        alerts.get_by_text("unknown people · at all cameras · pause of 1 minute · event stream only")
    ).to_be_visible()
    visit.check_accessibility()

    see(api, "yard", photo="astronaut.jpg")
    expect(sightings.get_by_role("listitem")).to_contain_text("Unknown person")
    alert = alerts.get_by_label("Alerts").get_by_role("listitem")
    expect(alert).to_contain_text("Strangers · doors · yard")
    # Only an event of the stream is announced.
    expect(page.locator("#announcer")).to_have_text("Alert: Strangers, unknown person at yard")
    see(api, "north-door", "eileen")
    expect(sightings.get_by_role("listitem")).to_have_count(2)
    expect(sightings.get_by_role("listitem").first).to_contain_text("Eileen Collins")
    expect(sightings.get_by_role("listitem").first).to_contain_text("98.7")
    expect(sightings.get_by_role("listitem").first).to_contain_text("No image")
    expect(alert).to_have_count(1)  # the rule is about unknown people
    visit.check_accessibility()

    alerts.get_by_role("button", name="Delete the rule Strangers").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(alerts.get_by_text("Rules of doors (0)")).to_be_visible()
    expect(alerts.get_by_text("No alerts yet")).to_be_visible()
    assert api.get("/alerts/rules").json()["data"] == []


@at_all_widths
def test_sightings_are_filtered_shown_and_erased(visit: Visit, api: httpx.Client) -> None:
    create_doors(api)
    rule = {"collection": "doors", "name": "Strangers", "trigger": "unknown"}
    api.post("/alerts/rules", json=rule).raise_for_status()
    see(api, "yard", photo="astronaut.jpg")
    see(api, "north-door", "eileen")
    page = visit.open("live/doors")
    alerts, sightings, cameras = (visit.region(name) for name in ("Alerts", "Sightings", "Filter"))
    expect(sightings.get_by_role("listitem")).to_have_count(2)
    cameras.get_by_role("radio", name="Unknown").check(force=True)
    expect(sightings.get_by_role("listitem")).to_have_count(1)
    cameras.get_by_role("button", name="north-door").click()
    expect(cameras.get_by_role("button", name="north-door")).to_have_attribute("aria-pressed", "true")
    expect(sightings.get_by_text("No such sightings")).to_be_visible()
    cameras.get_by_role("radio", name="Everyone").check(force=True)
    expect(sightings.get_by_role("listitem")).to_contain_text("Eileen Collins")
    cameras.get_by_role("button", name="All cameras").click()

    alerts.get_by_role("button", name="Show the sighting").click()
    dialog = page.get_by_role("dialog", name="Unknown person")
    shot = dialog.get_by_role("img", name="Best shot of Unknown person")
    expect(shot).to_have_js_property("naturalWidth", 384)
    visit.check_accessibility()
    dialog.get_by_role("button", name="Erase sighting").click()
    expect(dialog).to_have_count(0)
    expect(sightings.get_by_role("listitem")).to_have_count(1)
    expect(visit.region("Erasures").get_by_text("✓ erased")).to_be_visible()
    expect(alerts.get_by_text("No alerts yet")).to_be_visible()  # an alert is erased with its sighting


def test_live_by_keyboard(visit: Visit, api: httpx.Client) -> None:
    create_doors(api)
    see(api, "yard")
    page = visit.open("live/doors")
    card = visit.region("Sightings").get_by_role("button", name="Unknown person")
    card.focus()
    see(api, "yard", "eileen")
    expect(visit.region("Sightings").get_by_role("listitem")).to_have_count(2)
    expect(card).to_be_focused()  # new sightings do not take the focus away
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog").get_by_role("button", name="Close")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(card).to_be_focused()


def test_live_recovers_when_the_service_was_unreachable(visit: Visit, api: httpx.Client) -> None:
    create_doors(api)
    page = visit.open("live/doors")
    alerts, sightings = visit.region("Alerts"), visit.region("Sightings")
    expect(alerts.get_by_text("✓ connected")).to_be_visible()
    page.context.set_offline(True)
    expect(sightings.get_by_role("alert")).to_contain_text("The service does not respond")
    page.context.set_offline(False)
    see(api, "yard")
    sightings.get_by_role("button", name="Try again").click()
    expect(sightings.get_by_role("listitem")).to_have_count(1)
    expect(sightings.get_by_role("alert")).to_have_count(0)
    expect(alerts.get_by_text("✓ connected")).to_be_visible()
    visit.errors.clear()


def test_the_tab_is_left_and_shown_again(visit: Visit, api: httpx.Client) -> None:
    create_doors(api)
    page = visit.open("live/doors")
    expect(visit.region("Alerts").get_by_text("✓ connected")).to_be_visible()
    page.get_by_role("link", name="Status").click()
    see(api, "yard")
    with page.expect_request("**/alerts/stream"), page.expect_request("**/sightings?*"):
        page.get_by_role("link", name="Live").click()
    expect(visit.region("Sightings").get_by_role("listitem")).to_have_count(1)


@at_all_widths
def test_live_with_a_key_that_may_only_review(visit: Visit, tmp_path: Path) -> None:
    keys = ApiKeys(open_keys(tmp_path))
    settings = {"VESTIBULE_STATE": str(tmp_path), "VESTIBULE_ALERT_DEAD_AFTER_S": "0.1"}
    with serving(**settings) as (_, visit.address, _):
        _, operator = keys.create("operator", ["enrol", "observe"])
        _, reviewer = keys.create("reviewer", ["review"])
        with httpx.Client(base_url=visit.address, headers={"authorization": f"Bearer {operator}"}) as api:
            create_doors(api)
            targets = [{"kind": "webhook", "url": "https://hooks.invalid/doors"}]
            rule = {"collection": "doors", "name": "Door", "trigger": "match", "targets": targets}
            api.post("/alerts/rules", json=rule).raise_for_status()
            see(api, "yard", "eileen")
        visit.page.add_init_script(f"sessionStorage.setItem('vestibule-key', '{reviewer}')")
        page = visit.open("live")
        name = page.get_by_label("Collection")
        expect(page.get_by_text("The key may not list collections")).to_be_visible()
        name.fill("doors")
        name.press("Enter")
        expect(visit.region("Sightings").get_by_role("listitem")).to_contain_text("Eileen Collins")
        alerts = visit.region("Alerts")
        expect(alerts.get_by_text("✓ connected")).to_be_visible()
        expect(alerts.get_by_text("✕ not delivered")).to_be_visible()
        visit.check_accessibility()
        alerts.get_by_role("button", name="Send again").click()
        expect(alerts.get_by_role("alert").first).to_contain_text("enrol")
        visit.check_accessibility()
        page.goto(f"{visit.address}/web/icon.svg")  # ends the requests of the page before the service stops
        assert all(error.startswith(f"{REFUSED} 403") for error in visit.errors), visit.errors
        visit.errors.clear()
    keys.close()


EVENTS = """async (pieces) => {
    const parser = (await import('/web/event_stream.js')).eventParser();
    return pieces.flatMap((piece) => parser.push(piece));
}"""


def events_of(page: Page, pieces: list[str]) -> Any:
    return page.evaluate(EVENTS, pieces)


def test_events_are_parsed_wherever_the_stream_is_cut(visit: Visit) -> None:
    page = visit.open("status")
    text = "retry: 2000\nid: 4\n: connected\n\n: keep-alive\n\n"
    text += 'id: 5\nevent: alert\ndata: {"a":\ndata: 1}\n\ndata:x\r\n\r\nid: 6\n'
    expected = [
        {"id": "4", "type": "message", "data": None},
        {"id": "4", "type": "message", "data": None},
        {"id": "5", "type": "alert", "data": '{"a":\n1}'},
        {"id": "5", "type": "message", "data": "x"},
    ]
    assert events_of(page, [text]) == expected
    assert events_of(page, list(text)) == expected
    for cut in range(len(text)):
        assert events_of(page, [text[:cut], text[cut:]]) == expected
