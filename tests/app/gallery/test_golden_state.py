"""A state folder that commit 3efbd78 wrote: its collections keep their embedder, and are used as before.

Collections of faces are there with and without stored crops, collections of whole pictures, and collections with a
waiting bulk job; each of them once as `open-*` and once encrypted, as `sealed-*`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr
from typer.testing import CliRunner

from app.auth.keys import Keys
from app.cli.gallery import gallery_cli
from app.gallery import reembedding
from app.gallery.bulk import enrolment
from app.main import create_app
from app.settings import PROJECT, Settings
from index.embedded.audit.log import Head
from index.embedded.encryption.aead import OperatorKey
from index.embedded.gallery import EmbeddedGallery
from tests.app.conftest import BASE_URL
from tests.app.gallery.test_reembedding import other_embedder
from tests.conftest import encode, photo
from tests.golden_files import GOLDEN, KEY, expected, fields, unpack

WRITTEN, KEYS = expected("state"), expected("keys")
OF_FACES = ("open-bare", "open-crops", "sealed-bare", "sealed-crops")
OF_PICTURES = ("open-pictures", "sealed-pictures")
WITH_JOBS = ("open-job", "sealed-job")
JPEG, PNG = {"content-type": "image/jpeg"}, {"content-type": "image/png"}
# A cosine computed on another processor differs by less.
ROUNDING = 1e-4


def settings(folder: Path, **changes: Any) -> Settings:
    """Of a service on a copy of the golden state, with the shipped models and one more, `another`."""
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


@pytest.fixture(scope="module", autouse=True)
def _looks_often_for_work() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(enrolment, "POLL_S", 0.05)
        patched.setattr(reembedding, "POLL_S", 0.05)
        yield


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """Over the golden state; new collections get an embedder that nobody knew when it was written."""
    chosen = settings(tmp_path_factory.mktemp("service"), default_embedder="another")
    with TestClient(create_app(chosen), base_url=BASE_URL, raise_server_exceptions=False) as client:
        client.app_state["settings"] = chosen
        yield client


def picture(name: str) -> bytes:
    return (GOLDEN / f"{name}.jpg").read_bytes()


def same(answer: Any, stored: Any, where: str = "") -> None:
    """The stored answer again; there may be more in it. What was measured of the photo itself is left out."""
    if isinstance(stored, dict):
        for key in stored.keys() - {"face"}:
            same(answer[key], stored[key], f"{where}.{key}")
    elif isinstance(stored, list):
        assert len(answer) == len(stored), where
        for number, (one, other) in enumerate(zip(answer, stored, strict=True)):
            same(one, other, f"{where}[{number}]")
    elif isinstance(stored, float):
        assert answer == pytest.approx(stored, abs=ROUNDING), where
    else:
        assert answer == stored, where


def ask(
    client: TestClient, collection: str, call: str, content: bytes, headers: dict[str, str] = JPEG
) -> dict[str, Any]:
    """The answer to a call whose answers were stored: `search`, `search where` or `verify SUBJECT`."""
    if call.startswith("verify"):
        url, params = f"/collections/{collection}/subjects/{call.partition(' ')[2]}/verify", {"fmr": "0.01"}
    else:
        where = {"where": '{"site": "north"}'} if call == "search where" else {}
        url, params = "/search", {"collection": collection, "fpir": "0.1", **where}
    response = client.post(url, params=params, content=content, headers=headers)
    assert response.status_code == 200, response.text
    return dict(response.json())


def candidates(answer: dict[str, Any]) -> list[dict[str, Any]]:
    (face,) = answer["data"][0]["faces"]
    return list(face["candidates"])


def erased(client: TestClient, receipt: dict[str, Any]) -> None:
    deadline = time.monotonic() + 60
    while client.get(f"/erasures/{receipt['id']}").json()["status"] != "erased":
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_old_collections_keep_their_embedder(service: TestClient) -> None:
    listed = {one["name"]: one for one in service.get("/collections").json()["data"]}
    assert sorted(listed) == sorted((*OF_FACES, *OF_PICTURES, *WITH_JOBS))
    for name in (*OF_FACES, *OF_PICTURES):
        stored = WRITTEN["collections"][name]["collection"]
        same(listed[name], {key: stored[key] for key in stored.keys() & listed[name].keys()})
    assert {listed[name]["embedder"] for name in (*OF_FACES, *WITH_JOBS)} == {"face-embedder"}
    assert len({listed[name]["fingerprint"] for name in (*OF_FACES, *WITH_JOBS)}) == 1
    # The call that made a collection finds it again, as it did then.
    for name in (*OF_FACES, *WITH_JOBS):
        options = {key: listed[name][key] for key in ("keep_crops", "encrypted")}
        again = service.put(f"/collections/{name}", json=options)
        assert (again.status_code, again.json()) == (200, listed[name]), again.text
        again = service.put(f"/collections/{name}", json={**options, "embedder": "face-embedder"})
        assert (again.status_code, again.json()) == (200, listed[name]), again.text
        refused = service.put(f"/collections/{name}", json={**options, "keep_crops": not options["keep_crops"]})
        assert refused.status_code == 409
    made = service.put("/collections/new", json={})
    assert (made.status_code, made.json()["embedder"]) == (201, "another")
    service.delete("/collections/new")


@pytest.mark.parametrize("name", [*OF_FACES, *OF_PICTURES])
def test_an_old_collection_is_used(
    service: TestClient, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored, url = WRITTEN["collections"][name], f"/collections/{name}"
    first, second = sorted(stored["queries"])
    same(service.get(url).json(), stored["collection"])
    same(service.get(f"{url}/subjects").json()["data"], stored["subjects"])
    for key, answers in stored["queries"].items():
        same(service.get(f"{url}/subjects/{key}/faces").json()["data"], stored["faces"][key])
        same(service.get(f"{url}/subjects/{key}/feedback").json()["data"], stored["feedback"][key])
        for call, answer in answers.items():
            same(ask(service, name, call, picture(key)), answer, f"{key} {call}")
        assert candidates(ask(service, name, "search", picture(key)))[0]["subject_id"] == key

    # Another face of the first subject is nearer than those that 3efbd78 enrolled.
    before = candidates(ask(service, name, "search", picture(first)))[0]
    enrolled = service.post(f"{url}/subjects/{first}/faces", content=picture(first), headers=JPEG)
    assert enrolled.status_code == 200, enrolled.text
    (new,) = enrolled.json()["indexed"]
    answer = ask(service, name, "search", picture(first))
    after = candidates(answer)[0]
    assert (after["subject_id"], after["face_id"]) == (first, new["face_id"])
    assert after["distance"] < ROUNDING < before["distance"]
    assert answer["model"] == stored["collection"]["embedder"]
    assert service.get(f"{url}/subjects/{first}").json()["faces"] == len(stored["faces"][first]) + 1
    if name in OF_FACES:
        for key, verified in ((first, True), (second, False)):
            assert ask(service, name, f"verify {key}", picture(first))["verified"] is verified

    erased(service, service.delete(f"{url}/subjects/{first}").json())
    left = [one["id"] for one in service.get(f"{url}/subjects").json()["data"]]
    assert left == [second]
    assert {one["subject_id"] for one in candidates(ask(service, name, "search", picture(first)))} <= {second}
    assert candidates(ask(service, name, "search", picture(second)))[0]["subject_id"] == second

    # What is exported from it is a collection elsewhere.
    monkeypatch.setenv("VESTIBULE_ENCRYPTION_KEY", WRITTEN["key"])
    for state, command in ((service.app_state["settings"].state, "export"), (tmp_path, "import")):
        monkeypatch.setenv("VESTIBULE_STATE", str(state))
        arguments = [name] if command == "export" else []
        done = CliRunner().invoke(gallery_cli, [command, *arguments, str(tmp_path / "faces.parquet")])
        assert done.exit_code == 0, done.output
    moved = EmbeddedGallery(tmp_path / "gallery", key=OperatorKey(KEY))
    assert moved.collection(name).fingerprint == stored["collection"]["fingerprint"]
    assert [face.token for face in moved.faces(name, second)] == [face["id"] for face in stored["faces"][second]]
    moved.close()


@pytest.mark.parametrize("name", WITH_JOBS)
def test_a_waiting_bulk_job_is_done(service: TestClient, name: str) -> None:
    url = f"/collections/{name}"
    job, deadline = f"{url}/jobs/{WRITTEN['jobs'][name]['id']}", time.monotonic() + 60
    while (now := service.get(job).json())["state"] != "done":
        assert time.monotonic() < deadline, now
        time.sleep(0.02)
    assert (now["items"]["enrolled"], now["items"]["failed"], now["total"]) == (2, 1, 3)
    assert sorted(one["id"] for one in service.get(f"{url}/subjects").json()["data"]) == ["eileen", "grace"]
    for key in ("eileen", "grace"):
        assert candidates(ask(service, name, "search", picture(key)))[0]["subject_id"] == key


def test_an_old_receipt_is_read_and_all_is_as_it_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VESTIBULE_STATE", str(unpack("state", tmp_path)))
    monkeypatch.setenv("VESTIBULE_ENCRYPTION_KEY", WRITTEN["key"])
    done = CliRunner().invoke(gallery_cli, ["verify"])
    assert (done.exit_code, done.output) == (0, "no faults found\n")
    app = create_app(Settings(state=tmp_path, default_classifier="lenet5-mnist"))
    with TestClient(app, base_url=BASE_URL) as client:
        receipt = client.get(f"/erasures/{WRITTEN['erasure']['id']}")
        assert receipt.json() == WRITTEN["erasure"]


def test_an_old_collection_moves_to_another_embedder(tmp_path: Path) -> None:
    chosen = settings(tmp_path, default_embedder="another")
    with TestClient(create_app(chosen), base_url=BASE_URL, raise_server_exceptions=False) as client:
        for name in ("open-crops", "sealed-crops"):
            begun = client.post(f"/collections/{name}/reembed", json={"embedder": "another"})
            assert begun.status_code == 202, begun.text
            deadline = time.monotonic() + 60
            while client.get(f"/collections/{name}/reembed").status_code != 404:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            assert client.get(f"/collections/{name}").json()["embedder"] == "another"
            answer = ask(client, name, "search", encode(photo("astronaut")), PNG)
            (best, *_) = candidates(answer)
            assert (answer["model"], best["subject_id"]) == ("another", "eileen")
            assert best["distance"] < 0.05  # the crop was kept as WebP, which loses something
            assert best["face_id"] == WRITTEN["collections"][name]["faces"]["eileen"][0]["id"]
        for name in ("open-bare", "sealed-bare"):
            refused = client.post(f"/collections/{name}/reembed", json={"embedder": "another"})
            assert refused.status_code == 409
            assert f"3 of 3 faces of '{name}' have no crop" in refused.json()["detail"]
            assert ask(client, name, "search", picture("eileen"))["model"] == "face-embedder"


def test_without_the_operator_s_key_the_rest_is_served(tmp_path: Path) -> None:
    app = create_app(Settings(state=unpack("state", tmp_path), default_classifier="lenet5-mnist"))
    with TestClient(app, base_url=BASE_URL, raise_server_exceptions=False) as client:
        assert candidates(ask(client, "open-crops", "search", picture("grace")))[0]["subject_id"] == "grace"
        locked = client.post("/search?collection=sealed-crops", content=picture("grace"), headers=JPEG)
        assert (locked.status_code, locked.json()["type"]) == (503, "urn:vestibule:problem:collection-locked")


def test_keys_open_what_they_opened(tmp_path: Path) -> None:
    unpack("keys", tmp_path / "keys")
    keys = Keys(tmp_path / "keys")
    stored = {key["id"]: key for key in KEYS["keys"].values()}
    known = {key.id: {**fields(key, stored[key.id]), "scopes": sorted(key.scopes)} for key in keys.all()}
    assert known == stored
    entries, _ = keys.audit.read()
    heads = [Head(sequence, digest) for sequence, digest, _ in KEYS["entries"]]
    assert [Head(entry.sequence, entry.hash) for entry in entries] == heads
    assert [(e.act.action, e.act.of) for e in entries] == [(a["action"], a["of"]) for _, _, a in KEYS["entries"]]
    assert {entry.act.action for entry in entries} == {"create_key", "revoke_key", "reload"}
    assert keys.audit.verify(heads) is None
    keys.close()
    app = create_app(Settings(state=tmp_path, default_classifier="lenet5-mnist"))
    with TestClient(app, base_url=BASE_URL, raise_server_exceptions=False) as client:
        assert client.get("/collections").status_code == 401
        for name, status in (("admin", 200), ("infer", 403), ("expired", 401), ("revoked", 401)):
            bearer = {"authorization": f"Bearer {KEYS['secrets'][name]}"}
            assert client.get("/collections", headers=bearer).status_code == status, name
