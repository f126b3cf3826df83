"""A state folder written by commit 3efbd78: its collections keep their embedder and are used as before.

It has collections of faces with and without stored crops, of whole images, and with a pending bulk job; each of them
once as `open-*` and once encrypted, as `sealed-*`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr

from app.auth.keys import ApiKeys
from app.main import create_app
from app.settings import PROJECT, Settings
from index.audit_chain import LogHead
from index.factory import open_keys
from tests.app.conftest import BASE_URL
from tests.app.gallery.helpers import JPEG, PNG, faces_of, wait_for_erasure, wait_for_switch, wait_until
from tests.app.gallery.test_reembedding import other_embedder
from tests.conftest import encode, photo
from tests.golden_files import GOLDEN, expected, fields, unpack

WRITTEN, KEYS = expected("state"), expected("keys")
FACE_COLLECTIONS = ("open-bare", "open-crops", "sealed-bare", "sealed-crops")
IMAGE_COLLECTIONS = ("open-pictures", "sealed-pictures")
JOB_COLLECTIONS = ("open-job", "sealed-job")
ROUNDING = 1e-4  # cosines of other processors differ by less


def settings(folder: Path, **changes: Any) -> Settings:
    """Settings of a service on a copy of the golden state, with the shipped models and `another` embedder."""
    weights = folder / "weights"
    weights.mkdir()
    for path in (PROJECT / "weights").iterdir():
        if path.is_dir():
            (weights / path.name).symlink_to(path)
    other_embedder(weights, "another")
    return Settings(
        weights=weights,
        default_classifier="lenet5-mnist",
        state=unpack("state", folder / "state"),
        upkeep_s=0.05,
        encryption_key=SecretStr(WRITTEN["key"]),
        **changes,
    )


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A service on the golden state, whose default embedder did not exist when the state was written."""
    options = settings(tmp_path_factory.mktemp("service"), default_embedder="another")
    with TestClient(create_app(options), base_url=BASE_URL, raise_server_exceptions=False) as client:
        yield client


def portrait(name: str) -> bytes:
    return (GOLDEN / f"{name}.jpg").read_bytes()


def assert_contains(response: Any, stored: Any, where: str = "") -> None:
    """Check that the response has all that is stored, except measurements of the photo itself (`face`)."""
    if isinstance(stored, dict):
        for key in stored.keys() - {"face"}:
            assert_contains(response[key], stored[key], f"{where}.{key}")
    elif isinstance(stored, list):
        assert len(response) == len(stored), where
        for number, (actual, expected) in enumerate(zip(response, stored, strict=True)):
            assert_contains(actual, expected, f"{where}[{number}]")
    elif isinstance(stored, float):
        assert response == pytest.approx(stored, abs=ROUNDING), where
    else:
        assert response == stored, where


def request(
    client: TestClient, collection: str, call: str, image: bytes, headers: dict[str, str] = JPEG
) -> dict[str, Any]:
    """Send one of the requests whose responses are stored: `search`, `search where` or `verify SUBJECT`."""
    if call.startswith("verify"):
        url, params = f"/collections/{collection}/subjects/{call.partition(' ')[2]}/verify", {"fmr": "0.01"}
    else:
        where = {"where": '{"site": "north"}'} if call == "search where" else {}
        url, params = "/search", {"collection": collection, "fpir": "0.1", **where}
    response = client.post(url, params=params, content=image, headers=headers)
    assert response.status_code == 200, response.text
    return dict(response.json())


def candidates(response: dict[str, Any]) -> list[dict[str, Any]]:
    (face,) = faces_of(response)
    return list(face["candidates"])


def test_old_collections_keep_their_embedder(service: TestClient) -> None:
    listed = {collection["name"]: collection for collection in service.get("/collections").json()["data"]}
    assert sorted(listed) == sorted((*FACE_COLLECTIONS, *IMAGE_COLLECTIONS, *JOB_COLLECTIONS))
    for name in (*FACE_COLLECTIONS, *IMAGE_COLLECTIONS):
        stored = WRITTEN["collections"][name]["collection"]
        assert_contains(listed[name], {key: stored[key] for key in stored.keys() & listed[name].keys()})
    assert {listed[name]["embedder"] for name in (*FACE_COLLECTIONS, *JOB_COLLECTIONS)} == {"face-embedder"}
    assert len({listed[name]["fingerprint"] for name in (*FACE_COLLECTIONS, *JOB_COLLECTIONS)}) == 1
    # The request that created a collection returns it, as it did then.
    for name in (*FACE_COLLECTIONS, *JOB_COLLECTIONS):
        options = {key: listed[name][key] for key in ("keep_crops", "encrypted")}
        again = service.put(f"/collections/{name}", json=options)
        assert (again.status_code, again.json()) == (200, listed[name]), again.text
        again = service.put(f"/collections/{name}", json={**options, "embedder": "face-embedder"})
        assert (again.status_code, again.json()) == (200, listed[name]), again.text
        refused = service.put(f"/collections/{name}", json={**options, "keep_crops": not options["keep_crops"]})
        assert refused.status_code == 409
    created = service.put("/collections/new", json={})
    assert (created.status_code, created.json()["embedder"]) == (201, "another")
    service.delete("/collections/new")


@pytest.mark.parametrize("name", [*FACE_COLLECTIONS, *IMAGE_COLLECTIONS])
def test_an_old_collection_is_searched_and_changed(service: TestClient, name: str) -> None:
    stored, url = WRITTEN["collections"][name], f"/collections/{name}"
    first, second = sorted(stored["queries"])
    assert_contains(service.get(url).json(), stored["collection"])
    assert_contains(service.get(f"{url}/subjects").json()["data"], stored["subjects"])
    for key, responses in stored["queries"].items():
        assert_contains(service.get(f"{url}/subjects/{key}/faces").json()["data"], stored["faces"][key])
        assert_contains(service.get(f"{url}/subjects/{key}/feedback").json()["data"], stored["feedback"][key])
        for call, response in responses.items():
            assert_contains(request(service, name, call, portrait(key)), response, f"{key} {call}")
        assert candidates(request(service, name, "search", portrait(key)))[0]["subject_id"] == key

    # A new face of the first subject is nearer than those that 3efbd78 enrolled.
    before = candidates(request(service, name, "search", portrait(first)))[0]
    enrolled = service.post(f"{url}/subjects/{first}/faces", content=portrait(first), headers=JPEG)
    assert enrolled.status_code == 200, enrolled.text
    (new,) = enrolled.json()["indexed"]
    response = request(service, name, "search", portrait(first))
    after = candidates(response)[0]
    assert (after["subject_id"], after["face_id"]) == (first, new["face_id"])
    assert after["distance"] < ROUNDING < before["distance"]
    assert response["model"] == stored["collection"]["embedder"]
    assert service.get(f"{url}/subjects/{first}").json()["faces"] == len(stored["faces"][first]) + 1
    if name in FACE_COLLECTIONS:
        for key, verified in ((first, True), (second, False)):
            assert request(service, name, f"verify {key}", portrait(first))["verified"] is verified

    wait_for_erasure(service, service.delete(f"{url}/subjects/{first}").json())
    assert [subject["id"] for subject in service.get(f"{url}/subjects").json()["data"]] == [second]
    found = candidates(request(service, name, "search", portrait(first)))
    assert {candidate["subject_id"] for candidate in found} <= {second}
    assert candidates(request(service, name, "search", portrait(second)))[0]["subject_id"] == second


@pytest.mark.parametrize("name", JOB_COLLECTIONS)
def test_a_pending_bulk_job_is_finished(service: TestClient, name: str) -> None:
    url = f"/collections/{name}"
    job_url = f"{url}/jobs/{WRITTEN['jobs'][name]['id']}"
    wait_until(lambda: service.get(job_url).json()["state"] == "done")
    job = service.get(job_url).json()
    assert (job["items"]["enrolled"], job["items"]["failed"], job["total"]) == (2, 1, 3)
    assert sorted(subject["id"] for subject in service.get(f"{url}/subjects").json()["data"]) == ["eileen", "grace"]
    for key in ("eileen", "grace"):
        assert candidates(request(service, name, "search", portrait(key)))[0]["subject_id"] == key


def test_an_old_collection_is_reembedded(tmp_path: Path) -> None:
    options = settings(tmp_path, default_embedder="another")
    with TestClient(create_app(options), base_url=BASE_URL, raise_server_exceptions=False) as client:
        for name in ("open-crops", "sealed-crops"):
            response = client.post(f"/collections/{name}/reembed", json={"embedder": "another"})
            assert response.status_code == 202, response.text
            wait_for_switch(client, name)
            assert client.get(f"/collections/{name}").json()["embedder"] == "another"
            found = request(client, name, "search", encode(photo("astronaut")), PNG)
            best = candidates(found)[0]
            assert (found["model"], best["subject_id"]) == ("another", "eileen")
            assert best["distance"] < 0.05  # the stored crop is WebP, which is lossy
            assert best["face_id"] == WRITTEN["collections"][name]["faces"]["eileen"][0]["id"]


def test_without_the_operators_key_plain_collections_and_receipts_are_read(tmp_path: Path) -> None:
    app = create_app(Settings(state=unpack("state", tmp_path), default_classifier="lenet5-mnist"))
    with TestClient(app, base_url=BASE_URL, raise_server_exceptions=False) as client:
        assert candidates(request(client, "open-crops", "search", portrait("grace")))[0]["subject_id"] == "grace"
        locked = client.post("/search?collection=sealed-crops", content=portrait("grace"), headers=JPEG)
        assert (locked.status_code, locked.json()["type"]) == (503, "urn:vestibule:problem:collection-locked")
        assert client.get(f"/erasures/{WRITTEN['erasure']['id']}").json() == WRITTEN["erasure"] | {
            "backups_until": None,
            "sightings": 0,
        }


def test_old_api_keys_are_valid(tmp_path: Path) -> None:
    unpack("keys", tmp_path / "keys")
    keys = ApiKeys(open_keys(tmp_path))
    stored = {key["id"]: key for key in KEYS["keys"].values()}
    fields_of = {key.id: {**fields(key, stored[key.id]), "scopes": sorted(key.scopes)} for key in keys.all()}
    assert fields_of == stored
    entries, _ = keys.audit.read()
    heads = [LogHead(sequence, digest) for sequence, digest, _ in KEYS["entries"]]
    assert [LogHead(entry.sequence, entry.hash) for entry in entries] == heads
    assert [(e.event.action, e.event.of) for e in entries] == [(a["action"], a["of"]) for _, _, a in KEYS["entries"]]
    assert {entry.event.action for entry in entries} == {"create_key", "revoke_key", "reload"}
    assert keys.audit.verify(heads) is None
    keys.close()
    app = create_app(Settings(state=tmp_path, default_classifier="lenet5-mnist"))
    with TestClient(app, base_url=BASE_URL, raise_server_exceptions=False) as client:
        assert client.get("/collections").status_code == 401
        for name, status in (("admin", 200), ("infer", 403), ("expired", 401), ("revoked", 401)):
            bearer = {"authorization": f"Bearer {KEYS['secrets'][name]}"}
            assert client.get("/collections", headers=bearer).status_code == status, name
