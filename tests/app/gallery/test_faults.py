"""The gallery over HTTP with invalid rows, expired subjects, slow and full disks, and its audit log."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import apsw
import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from structlog.testing import capture_logs

from app import main
from app.auth.keys import ApiKeys
from app.main import create_app
from app.settings import PROJECT, Settings
from index.embedded.admin.verify import find_faults
from index.embedded.gallery import EmbeddedGallery
from index.embedded.keys import EmbeddedKeys
from index.embedded.storage import EmbeddedStorage
from index.embedded.store import subject_records
from index.embedded.tasks.maintenance import Maintenance
from index.factory import KEYS_FOLDER, open_storage
from index.protocol import AuditLog
from index.types import Item, NewFace
from index.validation import MAX_DEPTH
from tests.app.conftest import BASE_URL
from tests.app.embedder import random_embedder
from tests.app.gallery.helpers import LINES, PNG, gallery_of, lines, outcomes, submit, wait_until
from tests.app.threaded import serving_here
from tests.conftest import encode, photo

SUBJECT = "/collections/doors/subjects/eileen"


def settings(folder: Path, **options: Any) -> Settings:
    weights, state = folder / "weights", folder / "state"
    weights.mkdir()
    random_embedder(weights)
    (weights / "vgg-cifar10").symlink_to(PROJECT / "weights" / "vgg-cifar10")
    defaults: dict[str, Any] = {"weights": weights, "default_classifier": "lenet5-mnist", "state": state}
    return Settings(**(defaults | {"upkeep_s": 3600} | options))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A client of a service that runs one round of maintenance, when it starts."""
    app = create_app(settings(tmp_path_factory.mktemp("faults")))
    with TestClient(app, base_url=BASE_URL, raise_server_exceptions=False) as client:
        yield client


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth - 1):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    "properties",
    [
        b'{"metadata": {"a": NaN}}',
        b'{"metadata": {"a": "\\ud800"}}',
        b'{"name": "\\ud800"}',
        b'{"expires_at": "0001-01-01T00:00:00+14:00"}',
        b'{"expires_at": "9999-12-31T23:59:59-12:00"}',
        b'{"expires_at": "9999-12-31T23:59:59.5Z"}',
        b'{"expires_at": "2001-01-01T00:00:00Z"}',
        json.dumps({"metadata": {"a": "x" * 20_000}}).encode(),
        json.dumps({"metadata": {"a": [[nested(MAX_DEPTH)]]}}).encode(),
    ],
)
def test_properties_that_no_response_can_contain_are_refused(gallery: TestClient, properties: bytes) -> None:
    refused = gallery.put(SUBJECT, content=properties, headers={"content-type": "application/json"})
    assert refused.status_code == 422, refused.text
    line = b'{"subject_id": "eileen", "vector": ' + json.dumps([1.0] * 32).encode() + b", " + properties[1:]
    (item,) = outcomes(gallery, submit(gallery, line, LINES))
    assert (item["status"], item["problem"]["status"] in {400, 422}) == ("failed", True)
    assert gallery.get("/collections/doors/subjects").json()["data"] == []


def test_a_change_whose_response_cannot_be_serialised_is_rolled_back(
    gallery: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def upsert_with_nan(*args: Any, **options: Any) -> Any:
        return replace(subject_records.upsert(*args, **options), metadata={"a": float("nan")})

    with monkeypatch.context() as patch:
        patch.setattr("index.embedded.gallery.subject_records.upsert", upsert_with_nan)
        assert gallery.put(SUBJECT, json={}).status_code == 500
    assert gallery.get(SUBJECT).status_code == 404
    assert gallery.put(SUBJECT, json={}).status_code == 200


def test_invalid_rows_of_older_versions_are_listed(gallery: TestClient) -> None:
    outcomes(gallery, submit(gallery, lines(*({"subject_id": key, "vector": [1.0] * 32} for key in "ab")), LINES))

    def damage(db: apsw.Connection) -> None:
        for key, metadata in (("a", {"a": float("nan"), "b": "\ud800"}), ("b", nested(300))):
            db.execute("UPDATE subjects SET metadata = ? WHERE key = ?", (json.dumps(metadata), key))
        db.execute("UPDATE subjects SET expires_at = 253402300800.0")
        db.execute("UPDATE faces SET details = '{\"a\": NaN}'")
        db.execute("UPDATE jobs SET settings = 'nonsense'")
        db.execute("UPDATE collections SET settings = '{}', created_at = 1e18 WHERE name = 'doors'")

    gallery_of(gallery).ledger.write(damage)
    first, second = gallery.get("/collections/doors/subjects").json()["data"]
    assert (first["id"], second["id"], second["expires_at"]) == ("a", "b", "9999-12-31T23:59:59Z")
    assert first["metadata"] == {"a": None, "b": "\N{REPLACEMENT CHARACTER}" * 3}
    assert gallery.get("/collections/doors/subjects/a/faces").json()["data"][0]["details"] == {"a": None}
    assert gallery.get("/collections").json()["data"][0]["keep_crops"] is False
    for path in ("/collections/doors/jobs", "/collections/doors"):
        assert gallery.get(path).status_code == 200


# They compute, and change nothing.
UNLOGGED = {
    *("post /classify", "post /denoise", "post /embed", "post /encode", "post /faces/detect", "post /reconstruct"),
    *("post /verify", "post /verify/embeddings", "post /v1/embeddings", "post /v1/images/generations"),
    *("post /generate", "post /v2/models/{name}/infer", "post /v2/models/{name}/versions/{version}/infer"),
    *("post /v2/repository/index", "post /cluster/embeddings"),
}
COLLECTION, PERSON = "/collections/{collection}", "/collections/{collection}/subjects/{subject}"
PICTURE: dict[str, Any] = {"content": encode(photo("astronaut")), "headers": PNG}
RULE = {"name": "strangers", "trigger": "unknown", "targets": []}
# These need undelivered alerts or many people: see tests/app/alerts and tests/app/gallery/test_calibration.py.
LOGGED_ELSEWHERE = {
    "post /alerts/{alert}/resend",
    f"post {COLLECTION}/calibrations",
    f"put {COLLECTION}/calibration",
}
# All other requests, in an order in which they succeed, with their options. Texts of JSON bodies are filled like paths.
LOGGED: dict[str, dict[str, Any]] = {
    f"put {COLLECTION}": {"json": {"keep_crops": True}},
    f"put {PERSON}": {"json": {}},
    f"post {PERSON}/faces": PICTURE,
    "post /search": PICTURE | {"params": {"collection": "walked"}},
    f"post {PERSON}/verify": PICTURE,
    f"post {PERSON}/feedback": PICTURE,
    f"delete {PERSON}/feedback/{{feedback}}": {},
    "post /search/embeddings": {"params": {"collection": "walked"}, "json": {"faces": ["{face}"]}},
    f"post {COLLECTION}/faces/move": {"json": {"faces": ["{face}"], "to": "f"}},
    f"post {PERSON}/merge": {"json": {"from": ["f"]}},
    f"post {COLLECTION}/merges/{{merge}}/undo": {},
    "post /alerts/rules": {"json": RULE | {"collection": "walked"}},
    "put /alerts/rules/{rule}": {"json": RULE},
    "delete /alerts/rules/{rule}": {},
    f"put {COLLECTION}/sighting-settings": {"json": {"unknown_s": 3600, "known_s": 3600}},
    "post /sightings": {
        "json": {"collection": "walked", "camera": "north", "started_at": "{now}", "ended_at": "{now}", "frames": 1}
    },
    "delete /sightings/{sighting}": {},
    f"post {COLLECTION}/reembed": {"json": {"embedder": "faces-only"}},
    f"delete {COLLECTION}/reembed": {},
    f"post {COLLECTION}/faces:bulk": {"content": b'{"subject_id": "b", "image": "AAAA"}', "headers": LINES},
    f"delete {COLLECTION}/jobs/{{job}}": {},
    f"delete {COLLECTION}/faces/{{face}}": {},
    f"delete {PERSON}": {},
    f"delete {COLLECTION}": {},
    "post /models/{name}/reload": {},
}


def filled(value: Any, ids: dict[str, str]) -> Any:
    """Return the value with all texts in it filled as `str.format` does."""
    if isinstance(value, str):
        return value.format(**ids)
    if isinstance(value, dict):
        return {key: filled(each, ids) for key, each in value.items()}
    return [filled(each, ids) for each in value] if isinstance(value, list) else value


def test_the_audit_log_has_the_key_id_of_each_change_and_search(
    running: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = running.get("/openapi.json").json()["paths"]
    operations = {f"{method} {path}" for path, methods in paths.items() for method in methods}
    assert {name for name in operations if name.split()[0] not in {"get", "head", "options"}} == (
        UNLOGGED | LOGGED_ELSEWHERE | set(LOGGED)
    )
    state = running.app.state  # type: ignore[attr-defined]
    # Else the job and the re-embedding end before they can be cancelled.
    monkeypatch.setattr(state.gallery.jobs._worker, "claim", lambda *_: None)
    monkeypatch.setattr(state.gallery.reembedder._worker, "waiting", list)
    card = state.settings.weights / "uncalibrated" / "card.json"
    ids = {"collection": "walked", "subject": "e", "name": "uncalibrated", "now": in_seconds(0)}
    store = EmbeddedKeys(state.settings.state / KEYS_FOLDER)
    keys = ApiKeys(store)
    key, secret = keys.create("auditor", ["infer", "enrol", "observe", "admin"])
    monkeypatch.setitem(running.headers, "authorization", f"Bearer {secret}")
    try:
        for operation, options in LOGGED.items():
            method, path = operation.split()
            log: AuditLog = gallery_of(running).audit
            if path.endswith("/reload"):
                log = keys.audit
                card.write_text(json.dumps(json.loads(card.read_text()) | {"description": "another"}))
            before = len(log.read(limit=10_000)[0])
            response = running.request(method, path.format(**ids), **filled(options, ids))
            assert response.status_code < 300, (operation, response.text)
            if path.endswith("/faces"):
                ids["face"] = response.json()["indexed"][0]["face_id"]
            elif path.endswith(("/feedback", ":bulk")):
                ids["feedback" if path.endswith("/feedback") else "job"] = response.json()["id"]
            elif path.endswith(("/merge", "/rules", "/sightings")):
                ids[path.rpartition("/")[2].removesuffix("s")] = response.json()["id"]
            events = [entry.event for entry in log.read(limit=10_000)[0][before:]]
            assert key.id in {event.actor for event in events}, operation
    finally:
        store._write(lambda db: db.execute("DELETE FROM keys").fetchall())  # type: ignore[arg-type]
        keys.close()


def test_the_audit_log_has_the_key_id_of_a_jobs_sender(gallery: TestClient) -> None:
    storage, jobs = gallery_of(gallery), gallery.app.state.gallery.jobs._jobs  # type: ignore[attr-defined]
    job = jobs.begin("doors", {"fingerprint": storage.collection("doors").fingerprint}, actor="key-9")
    jobs.append(job, [Item(0, "c", "vector", np.ones(32, "<f4").tobytes())])
    jobs.ready(job)
    assert [item["status"] for item in outcomes(gallery, {"id": job.token})] == ["enrolled"]
    events = [entry.event for entry in storage.audit.read(limit=10_000)[0]]
    assert [(event.action, event.actor) for event in events[-2:]] == [("submit_job", "key-9"), ("enrol", "key-9")]


def in_seconds(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + seconds))


def test_an_item_that_expires_while_its_job_waits_fails(gallery: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    until = in_seconds(100)
    monkeypatch.setattr(gallery_of(gallery), "clock", lambda: time.time() + 3000)  # the line was valid when it was sent
    line = lines({"subject_id": "eileen", "vector": [1.0] * 32, "expires_at": until})
    (item,) = outcomes(gallery, submit(gallery, line, LINES))
    assert (item["status"], item["problem"]["status"]) == ("failed", 422)
    assert "in the past" in item["problem"]["detail"]


def test_waiting_writes_hold_no_thread_and_delay_no_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many writes wait for the disk as a service has threads several times over."""
    galleries: list[EmbeddedGallery] = []

    def open_gallery(*args: Any, **options: Any) -> EmbeddedStorage:
        storage = open_storage(*args, **options)
        assert isinstance(storage, EmbeddedStorage)
        galleries.append(storage.gallery)
        return storage

    monkeypatch.setattr(main, "open_storage", open_gallery)
    is_writable = threading.Event()

    async def write_and_read(url: str) -> None:
        limits, doors = httpx.Limits(max_connections=200), "/collections/doors"
        async with httpx.AsyncClient(base_url=url, limits=limits, timeout=120, trust_env=False) as client:
            assert (await client.put(doors, json={})).status_code == 201
            galleries[0].ledger.submit(lambda _: is_writable.wait(120))
            puts = [client.put(f"{doors}/subjects/p{number}", json={}) for number in range(64)]
            writes = [asyncio.create_task(put) for put in puts]
            async with asyncio.timeout(120):
                while galleries[0].ledger._waiting.qsize() < 64:  # noqa: ASYNC110  it belongs to another thread
                    await asyncio.sleep(0.01)
                for path in (doors, f"{doors}/subjects", "/collections"):
                    assert (await client.get(path)).status_code == 200
            assert not any(write.done() for write in writes)
            is_writable.set()
            assert {response.status_code for response in await asyncio.gather(*writes)} == {200}

    with serving_here(settings(tmp_path)) as url:
        try:
            asyncio.run(write_and_read(url))
        finally:
            is_writable.set()


def test_a_full_disk_is_a_507_and_degrades_readiness(gallery: TestClient) -> None:
    storage = gallery_of(gallery)
    assert gallery.put(SUBJECT, json={"name": "before"}).status_code == 200
    fill = {"name": "after", "metadata": {"x": "x" * 16_000}}
    limits: list[int] = []

    def full(db: apsw.Connection) -> None:
        limits.append(db.pragma("max_page_count"))
        db.pragma("max_page_count", db.pragma("page_count"))

    storage.ledger.write(full)
    try:
        refused = gallery.put(SUBJECT, json=fill)
        assert (refused.status_code, refused.json()["type"]) == (507, "urn:vestibule:problem:disk-full")
        ready = gallery.get("/health/ready").json()
        assert (ready["status"], "the disk is full" in ready["reasons"][0]) == ("degraded", True)
        assert gallery.get(SUBJECT).json()["name"] == "before"
    finally:
        storage.ledger.write(lambda db: db.pragma("max_page_count", limits[0]))
    assert gallery.put(SUBJECT, json=fill).json()["name"] == "after"
    assert list(find_faults(storage)) == []
    storage.ledger.full_at = None
    assert gallery.get("/health/ready").json()["status"] == "ready"


def test_maintenance_continues_after_failures_which_readiness_log_and_metrics_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, errors = Maintenance.run, list[OSError]()

    def fail_once(self: Maintenance) -> bool:
        if errors:
            raise errors.pop()
        return run(self)

    monkeypatch.setattr(Maintenance, "run", fail_once)
    app = create_app(settings(tmp_path, upkeep_s=0.05))
    with TestClient(app, base_url=BASE_URL, raise_server_exceptions=False) as client, capture_logs() as logs:
        errors.append(OSError("no space"))
        wait_until(lambda: not errors)
        before = app.state.maintenance.completed_at
        wait_until(lambda: app.state.maintenance.completed_at != before)
        assert client.put("/collections/damaged", json={}).status_code == 201
        storage = gallery_of(client)
        faces = [NewFace("a", np.ones(32, np.float32)), NewFace("b", -np.ones(32, np.float32))]
        storage.enrol("damaged", faces, storage.collection("damaged").fingerprint)
        damage = "UPDATE collections SET unscaled = 1; UPDATE vectors SET data = x'00' WHERE face_id = 1"
        storage.ledger.write(lambda db: db.execute(damage).fetchall())
        wait_until(lambda: client.get("/health/ready").json()["status"] == "degraded")
        (reason,) = client.get("/health/ready").json()["reasons"]
        assert reason == "maintenance failed in collection 1; the log says why"
        assert 'vestibule_maintenance_failures_total{step="collection"}' in client.get("/metrics").text
        storage.remove_subject("damaged", "a")
        wait_until(lambda: client.get("/health/ready").json()["status"] == "ready")
    assert app.state.maintenance.problems[0].startswith("maintenance does not run")
    failures = [line["step"] for line in logs if line["event"] == "maintenance_failed"]
    assert failures == ["round", "collection 1"]
