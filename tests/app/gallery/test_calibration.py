"""Calibrations on site over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from index.types import NewFace
from models.site_calibration import MIN_STRANGERS
from tests.app.embedder import MATCHING
from tests.app.gallery.helpers import enrol, gallery_of, search
from tests.conftest import encode, photo

CALIBRATIONS, IN_USE = "/collections/doors/calibrations", "/collections/doors/calibration"


def add_people(client: TestClient, collection: str, people: int, photos: int, seed: int, prefix: str = "p") -> None:
    """Enrol random vectors: `photos` of each person, which resemble each other."""
    random = np.random.default_rng(seed)
    gallery = gallery_of(client)
    pipeline = gallery.collection(collection)
    for number in range(people):
        centre = random.normal(size=pipeline.dimensions)
        vectors = centre + random.normal(scale=0.4, size=(photos, pipeline.dimensions))
        key = f"{prefix}{number}"
        gallery.put_subject(collection, key, metadata={"camera": "north" if number % 2 else "south", "list": []})
        gallery.enrol(collection, [NewFace(key, vector.astype(np.float32)) for vector in vectors], pipeline.fingerprint)


@pytest.fixture
def strangers(gallery: TestClient) -> Iterator[TestClient]:
    """The collection `doors` has 20 subjects, `strangers` 60 other people."""
    gallery.put("/collections/strangers", json={})
    add_people(gallery, "strangers", 60, 4, seed=1)
    add_people(gallery, "doors", 20, 2, seed=2, prefix="enrolled")
    yield gallery
    gallery.delete("/collections/strangers")


def calibrate(client: TestClient, **params: Any) -> Any:
    return client.post(CALIBRATIONS, json={"strangers": "strangers", **params})


def test_searches_use_the_thresholds_of_the_site(strangers: TestClient) -> None:
    enrol(strangers, "eileen")
    before = search(strangers, photo("astronaut"), fpir=0.3)
    response = calibrate(strangers)
    assert response.status_code == 201
    calibration = response.json()
    assert (calibration["version"], calibration["in_use"]) == (1, True)
    after = search(strangers, photo("astronaut"), fpir=0.3)
    assert "60 people at this site" in after["operating_point"]["calibration"]
    assert after["operating_point"]["fmr"] == pytest.approx(before["operating_point"]["fmr"])
    assert after["threshold"] > before["threshold"] + 0.1
    assert strangers.get("/collections/doors").json()["fingerprint"] == calibration["fingerprint"]
    assert strangers.get(IN_USE).json()["calibration"] == calibration


def test_the_report_compares_rates_before_and_after(strangers: TestClient) -> None:
    report = calibrate(strangers).json()["report"]
    assert (report["people"], report["photos"], report["mated"]) == (60, 240, 0)
    # Each pair of strangers once, and each stranger with each of the 40 enrolled faces.
    assert report["comparisons"] == 240 * 236 // 2 + 240 * 40
    assert [change["requested"] for change in report["fmr"]] == [0.01, 0.001]
    for change in report["fmr"]:
        assert change["after"] == pytest.approx(change["requested"], rel=1)
        assert change["before"] < change["requested"] / 5
        assert change["before_low"] <= change["before"] <= change["before_high"]
        assert change["after_low"] <= change["after"] <= change["after_high"]
    assert [(change["requested"], change["comparisons"]) for change in report["fpir"]] == [(0.1, 240), (0.01, 240)]
    assert report["fpir"][0]["after"] == pytest.approx(0.1, abs=0.1)
    assert report["fnir"] == []
    assert [(group["field"], group["value"], group["people"]) for group in report["groups"]] == [
        ("camera", "north", 30),
        ("camera", "south", 30),
    ]


def test_mated_photos_give_the_misses_and_the_probability(strangers: TestClient) -> None:
    strangers.put("/collections/again", json={})
    add_people(strangers, "again", 20, 6, seed=2, prefix="enrolled")
    report = calibrate(strangers, mated="again").json()["report"]
    assert report["mated"] == 20 * 6 * 2
    assert [change["requested"] for change in report["fnir"]] == [0.1, 0.01]
    assert report["fnir"][1]["after"] < report["fnir"][1]["before"]
    strangers.delete("/collections/again")


def test_calibrations_are_listed_and_chosen(strangers: TestClient) -> None:
    first, second = calibrate(strangers).json(), calibrate(strangers, compare_strangers=False).json()
    assert second["report"]["comparisons"] == 240 * 40
    page = strangers.get(CALIBRATIONS, params={"limit": 1}).json()
    assert ([row["id"] for row in page["data"]], page["next"]) == ([first["id"]], 1)
    rest = strangers.get(CALIBRATIONS, params={"after": 1}).json()
    assert ([row["id"] for row in rest["data"]], rest["next"]) == ([second["id"]], None)
    assert strangers.get(f"{CALIBRATIONS}/{first['id']}").json()["in_use"] is False
    assert strangers.put(IN_USE, json={"id": first["id"]}).json()["calibration"]["version"] == 1
    assert strangers.put(IN_USE, json={"id": None}).json() == {"calibration": None}
    assert search(strangers, photo("astronaut"), fpir=0.3)["operating_point"]["calibration"] == MATCHING.data
    assert strangers.put(IN_USE, json={"id": "0" * 32}).status_code == 404
    assert strangers.get(f"{CALIBRATIONS}/none").status_code == 404


def test_thresholds_for_passages_follow(strangers: TestClient) -> None:
    files = [("file", ("frame", encode(photo("astronaut"))))] * 2
    query: dict[str, str | float] = {"collection": "doors", "passage": True, "fpir": 0.3}
    before = strangers.post("/search", params=query, files=files).json()
    calibrate(strangers)
    after = strangers.post("/search", params=query, files=files).json()
    assert after["threshold"] > before["threshold"]
    assert after["operating_point"]["calibration"].startswith("2 frames; 60 people")


def test_unusable_strangers_are_refused(strangers: TestClient) -> None:
    assert calibrate(strangers, strangers="nothing").status_code == 404
    strangers.put("/collections/few", json={})
    add_people(strangers, "few", MIN_STRANGERS - 1, 1, seed=3)
    response = calibrate(strangers, strangers="few")
    assert response.status_code == 422
    assert "49 people who are not enrolled are too few" in response.json()["detail"]
    strangers.put("/collections/things", json={"embedder": "faces-only"})
    assert calibrate(strangers, strangers="things").status_code == 409
    add_people(strangers, "few", 2, 1, seed=4, prefix="more")
    small = calibrate(strangers, strangers="few", compare_strangers=False).json()["report"]
    assert small["comparisons"] == 51 * 40
    assert small["fmr"][0]["after"] is not None
    for name in ("few", "things"):
        strangers.delete(f"/collections/{name}")
