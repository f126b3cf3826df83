"""Sightings through HTTP: what is stored, what is refused, what the responses say."""

from __future__ import annotations

import io
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from tests.app.face_pictures import grace_hopper
from tests.app.gallery.helpers import base64_text, portrait, wait_for_erasure
from tests.conftest import encode

SETTINGS = "/collections/doors/sighting-settings"
PROBLEM = "urn:vestibule:problem:"
DAY = timedelta(days=1)


@pytest.fixture
def doors(running: TestClient) -> Iterator[TestClient]:
    """A client of a service with the collection `doors` and the subject `grace`."""
    assert running.put("/collections/doors", json={}).status_code == 201
    assert running.put("/collections/doors/subjects/grace", json={"name": "Grace"}).status_code == 200
    yield running
    assert running.delete("/collections/doors").status_code == 200


def body(**more: Any) -> dict[str, Any]:
    ended_at = datetime.now(UTC)
    return {
        "collection": "doors",
        "camera": "north",
        "started_at": (ended_at - timedelta(seconds=5)).isoformat(),
        "ended_at": ended_at.isoformat(),
        "frames": 12,
        **more,
    }


def add(client: TestClient, **more: Any) -> dict[str, Any]:
    response = client.post("/sightings", json=body(**more))
    assert response.status_code == 201, response.text
    return dict(response.json())


def page(client: TestClient, **params: Any) -> dict[str, Any]:
    response = client.get("/sightings", params={"collection": "doors", **params})
    assert response.status_code == 200, response.text
    return dict(response.json())


def ids(listed: dict[str, Any]) -> list[str]:
    return [row["id"] for row in listed["data"]]


def test_a_sighting_is_stored_and_returned(doors: TestClient) -> None:
    sent = body(subject_id="grace", probability=0.99, distance=0.3, fpir=0.01, threshold=0.5)
    response = doors.post("/sightings", json=sent)
    assert response.status_code == 201
    stored = response.json()
    expected = {**sent, **stored, "name": "Grace", "has_crop": False, "pseudonym": None}
    for name in ("started_at", "ended_at"):
        expected[name] = expected[name].replace("+00:00", "Z")
    assert doors.get(f"/sightings/{stored['id']}").json() == expected
    assert page(doors) == {"data": [expected], "next": None}
    kept = datetime.fromisoformat(stored["expires_at"]) - datetime.fromisoformat(sent["ended_at"])
    assert kept == timedelta(days=30)
    assert doors.get(f"/sightings/{stored['id']}/crop").status_code == 404


def test_the_best_shot_is_encoded_anew_without_metadata(doors: TestClient) -> None:
    exif = Image.Exif()
    exif[0x010E] = "at the north door"
    buffer = io.BytesIO()
    grace_hopper().save(buffer, "JPEG", exif=exif)
    assert b"at the north door" in buffer.getvalue()
    stored = add(doors, crop=base64_text(buffer.getvalue()))
    assert page(doors)["data"][0]["has_crop"]
    response = doors.get(f"/sightings/{stored['id']}/crop")
    assert (response.status_code, response.headers["content-type"]) == (200, "image/webp")
    assert b"at the north door" not in response.content
    image = Image.open(io.BytesIO(response.content))
    assert (image.format, max(image.size)) == ("WEBP", 384)
    small = add(doors, crop="data:image/png;base64," + base64_text(encode(Image.new("RGB", (20, 30), "navy"))))
    shown = Image.open(io.BytesIO(doors.get(f"/sightings/{small['id']}/crop").content))
    assert shown.size == (20, 30)
    assert np.abs(np.asarray(shown, int) - (0, 0, 128)).max() < 8


def test_a_repeated_request_stores_one_sighting(doors: TestClient) -> None:
    sent, headers = body(crop=base64_text(encode(grace_hopper()))), {"idempotency-key": "k"}
    first, again = (doors.post("/sightings", json=sent, headers=headers) for _ in range(2))
    assert (first.status_code, again.status_code, first.json()) == (201, 201, again.json())
    assert ids(page(doors)) == [first.json()["id"]]
    other = doors.post("/sightings", json={**sent, "frames": 13}, headers=headers)
    assert (other.status_code, other.json()["type"]) == (409, f"{PROBLEM}conflict")
    assert doors.post("/sightings", json=sent, headers={"idempotency-key": "two words"}).status_code == 422
    assert doors.post("/sightings", json=sent, headers={"idempotency-key": "other"}).json() != first.json()


def test_sightings_are_listed_by_page_and_filtered(doors: TestClient) -> None:
    now = datetime.now(UTC)
    rows = []
    for minutes, more in ((30, {}), (20, {"subject_id": "grace"}), (10, {"camera": "south"})):
        began = now - timedelta(minutes=minutes)
        rows.append(
            add(doors, started_at=began.isoformat(), ended_at=(began + timedelta(minutes=1)).isoformat(), **more)["id"]
        )
    assert ids(page(doors)) == rows
    first = page(doors, limit=2)
    assert (ids(first), first["next"]) == (rows[:2], first["data"][1]["position"])
    second = page(doors, limit=2, after=first["next"])
    assert (ids(second), second["next"]) == (rows[2:], None)
    newest = page(doors, limit=2, newest_first=True)
    assert ids(newest) == rows[:0:-1]
    assert ids(page(doors, after=newest["next"], newest_first=True)) == rows[:1]
    assert ids(page(doors, camera="south")) == rows[2:]
    assert ids(page(doors, subject_id="grace")) == ids(page(doors, unknown=False)) == rows[1:2]
    assert ids(page(doors, unknown=True)) == [rows[0], rows[2]]
    since, until = now - timedelta(minutes=25), now - timedelta(minutes=15)
    assert ids(page(doors, since=since.isoformat())) == rows[1:]
    assert ids(page(doors, since=since.isoformat(), until=until.isoformat())) == rows[1:2]


def test_retention_is_set_for_each_collection(doors: TestClient) -> None:
    assert doors.get(SETTINGS).json() == {"unknown_s": 86_400, "known_s": 30 * 86_400, "pseudonyms": False}
    stored = add(doors)
    settings = {"unknown_s": 3600, "known_s": 7200, "pseudonyms": False}
    response = doors.put(SETTINGS, json=settings)
    assert (response.status_code, response.json()) == (200, settings)
    assert doors.get(SETTINGS).json() == response.json()
    shown = doors.get(f"/sightings/{stored['id']}").json()
    kept = datetime.fromisoformat(shown["expires_at"]) - datetime.fromisoformat(shown["ended_at"])
    assert kept == timedelta(hours=1)
    for unknown_s in (59, 367 * 86_400, None, "always"):
        refused = doors.put(SETTINGS, json={"unknown_s": unknown_s, "known_s": 60})
        assert (refused.status_code, refused.json()["type"]) == (422, f"{PROBLEM}invalid-parameters")
    old = datetime.now(UTC) - timedelta(hours=2)
    refused = doors.post("/sightings", json=body(started_at=old.isoformat(), ended_at=old.isoformat()))
    assert (refused.status_code, refused.json()["type"]) == (422, f"{PROBLEM}unprocessable")
    assert "longer ago" in refused.json()["detail"]


def test_sightings_are_erased(doors: TestClient) -> None:
    shot = base64_text(encode(grace_hopper()))
    stored = add(doors, crop=shot)
    receipt = doors.delete(f"/sightings/{stored['id']}").json()
    assert (receipt["subjects"], receipt["faces"], receipt["sightings"]) == (0, 0, 1)
    wait_for_erasure(doors, receipt)
    for method, path in (("GET", ""), ("GET", "/crop"), ("DELETE", "")):
        assert doors.request(method, f"/sightings/{stored['id']}{path}").status_code == 404
    for _ in range(2):
        add(doors, subject_id="grace", crop=shot)
    receipt = doors.delete("/collections/doors/subjects/grace").json()
    assert (receipt["subjects"], receipt["sightings"]) == (1, 2)
    wait_for_erasure(doors, receipt)
    assert page(doors)["data"] == []


def test_pseudonyms_are_given_where_they_are_allowed(doors: TestClient) -> None:
    grace, eileen = (base64_text(encode(portrait(subject))) for subject in ("grace", "eileen"))
    assert add(doors, crop=grace)["pseudonym"] is None
    settings = {"unknown_s": 3600, "known_s": 7200, "pseudonyms": True}
    assert doors.put(SETTINGS, json=settings).json() == settings
    first, other, again = (add(doors, crop=crop)["pseudonym"] for crop in (grace, eileen, grace))
    assert first is not None
    assert other is not None
    assert (again == first, other == first) == (True, False)
    assert add(doors, crop=grace, subject_id="grace")["pseudonym"] is None
    assert add(doors)["pseudonym"] is None
    assert add(doors, crop=base64_text(encode(Image.new("RGB", (200, 200), "navy"))))["pseudonym"] is None
    assert [row["pseudonym"] for row in page(doors, pseudonym=first)["data"]] == [first, first]
    assert not doors.put(SETTINGS, json={**settings, "pseudonyms": False}).json()["pseudonyms"]
    assert page(doors, pseudonym=first)["data"] == []
    assert doors.put(SETTINGS, json={**settings, "pseudonyms": 1}).status_code == 422


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("camera", "north door"),
        ("camera", "k" * 65),
        ("camera", "north\n"),
        ("frames", 0),
        ("frames", 2**31),
        ("probability", 1.5),
        ("distance", -0.1),
        ("fpir", "NaN"),
        ("threshold", 2.1),
        ("started_at", 1_700_000_000),
        ("ended_at", "yesterday"),
        ("ended_at", "2026-01-01T00:00:00"),
        ("subject_id", "a/b"),
        ("crop", "A" * (768 * 1024 + 4)),
        ("weather", "rain"),
    ],
)
def test_invalid_fields_are_named(doors: TestClient, field: str, value: object) -> None:
    refused = doors.post("/sightings", json=body(**{field: value}))
    assert (refused.status_code, refused.json()["type"]) == (422, f"{PROBLEM}invalid-parameters")
    assert [error["parameter"] for error in refused.json()["errors"]] == [field]
    assert page(doors)["data"] == []


def test_what_cannot_be_stored_is_refused(doors: TestClient) -> None:
    now = datetime.now(UTC)
    refusals: list[tuple[dict[str, Any], int, str]] = [
        ({"collection": "nowhere"}, 404, "not-found"),
        ({"subject_id": "nobody"}, 404, "not-found"),
        ({"started_at": (now + DAY).isoformat()}, 422, "unprocessable"),
        ({"ended_at": (now + DAY).isoformat()}, 422, "unprocessable"),
        ({"crop": "not base64!"}, 400, "malformed-request"),
        ({"crop": base64_text(b"no image")}, 415, "unsupported-image"),
        ({"crop": base64_text(encode(grace_hopper())[:5000])}, 400, "damaged-image"),
    ]
    for more, status, problem in refusals:
        refused = doors.post("/sightings", json=body(**more))
        assert (refused.status_code, refused.json()["type"]) == (status, PROBLEM + problem), more
    assert page(doors)["data"] == []
    for params in ({"collection": "nowhere"}, {"collection": "doors", "subject_id": "nobody"}):
        assert doors.get("/sightings", params=params).status_code == 404
    assert doors.get("/sightings").status_code == 422
    assert doors.get("/collections/nowhere/sighting-settings").status_code == 404


def test_a_sighting_needs_a_camera_a_collection_times_and_frames(doors: TestClient) -> None:
    refused = doors.post("/sightings", json={})
    names = {error["parameter"] for error in refused.json()["errors"]}
    assert names == {"collection", "camera", "started_at", "ended_at", "frames"}
