"""The gallery over HTTP beside faults: rows that cannot be read, changes without an author, slow and full disks."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apsw
import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from structlog.testing import capture_logs

from app import main
from app.auth.keys import FOLDER, Keys
from app.gallery.bulk import enrolment
from app.main import create_app
from app.settings import PROJECT, Settings
from index.embedded.admin.verify import faults
from index.embedded.audit.log import Audit
from index.embedded.gallery import EmbeddedGallery
from index.validation import MAX_DEPTH
from tests.app.embedder import random_embedder
from tests.app.threaded import serving_here
from tests.conftest import encode, photo

BASE_URL = "http://127.0.0.1:8000"
PNG, LINES = {"content-type": "image/png"}, {"content-type": "application/x-ndjson"}
TOO_LATE = "9999-12-31T23:59:59.999999Z"
SUBJECT = "/collections/doors/subjects/eileen"


class Clock:
    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


def settings(folder: Path, **changed: Any) -> Settings:
    weights, state = folder / "weights", folder / "state"
    weights.mkdir()
    random_embedder(weights)
    (weights / "vgg-cifar10").symlink_to(PROJECT / "weights" / "vgg-cifar10")
    made: dict[str, Any] = {"weights": weights, "default_classifier": "lenet5-mnist", "state": state, "upkeep_s": 3600}
    return Settings(**(made | changed))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """Its maintenance does a round at the start and no other."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(enrolment, "POLL_S", 0.05)
        app = create_app(settings(tmp_path_factory.mktemp("faults")))
        with TestClient(app, base_url=BASE_URL, raise_server_exceptions=False) as running:
            yield running


@pytest.fixture
def client(service: TestClient) -> Iterator[TestClient]:
    """With an empty collection `doors`."""
    assert service.put("/collections/doors", json={"keep_crops": True}).status_code == 201
    yield service
    assert service.delete("/collections/doors").status_code == 200


@pytest.fixture
def clock(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(gallery_of(client), "clock", made)
    return made


def gallery_of(client: TestClient) -> EmbeddedGallery:
    found: EmbeddedGallery = client.app.state.galleries._gallery  # type: ignore[attr-defined]
    return found


def deep(depth: int) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for _ in range(depth - 1):
        made = {"a": made}
    return made


def finished(client: TestClient, job: dict[str, Any]) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while (now := client.get(f"/collections/doors/jobs/{job['id']}").json())["finished_at"] is None:
        assert time.monotonic() < deadline, now
        time.sleep(0.02)
    return dict(now)


def send(client: TestClient, *lines: dict[str, Any]) -> list[dict[str, Any]]:
    """What became of lines of a bulk job."""
    fingerprint = client.get("/collections/doors").json()["fingerprint"]
    content = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    job = client.post(
        "/collections/doors/faces:bulk", content=content, headers=LINES, params={"fingerprint": fingerprint}
    )
    assert job.status_code == 202, job.text
    finished(client, job.json())
    return list(client.get(f"/collections/doors/jobs/{job.json()['id']}/items").json()["data"])


# Vectors.


def test_tiny_vectors_are_compared_by_their_direction(client: TestClient) -> None:
    for scale in (1.0, 1e-40, 1.5e-162, 1e150):
        body = {"source": [scale] * 32, "targets": [[scale] * 32, [-scale] * 32, [scale] * 16 + [-scale] * 16]}
        answer = client.post("/verify/embeddings", json=body).json()
        assert [one["distance"] for one in answer["data"]] == pytest.approx([0, 2, 1], abs=1e-6)
    for wrong in ([0.0] * 32,):
        refused = client.post("/verify/embeddings", json={"source": wrong, "targets": [[1.0] * 32]})
        assert (refused.status_code, "no direction" in refused.json()["detail"]) == (422, True)


def test_a_tiny_vector_does_not_match_everybody(client: TestClient) -> None:
    sent = send(
        client, {"subject_id": "x", "vector": [1.6e-162] + 31 * [1.5e-162]}, {"subject_id": "y", "vector": [0.0] * 32}
    )
    assert [one["status"] for one in sent] == ["enrolled", "failed"]
    assert "no direction" in sent[1]["problem"]["detail"]
    answer = client.post("/search?collection=doors&fpir=0.5", content=encode(photo("astronaut")), headers=PNG).json()
    ((face,),) = (item["faces"] for item in answer["data"])
    assert all(0 <= candidate["distance"] <= 2 for candidate in face["candidates"])
    gallery = gallery_of(client)
    assert list(faults(gallery)) == []
    direction = np.array([[1.6] + 31 * [1.5]], np.float32)
    assert gallery.search("doors", direction)[0][0].similarity == pytest.approx(1, abs=1e-6)


def test_a_picture_whose_features_have_no_direction_is_refused(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    from app.inference.predictor import Predictor

    run = Predictor.run

    async def zeros(self: Predictor, *given: Any, **named: Any) -> Any:
        return 0 * await run(self, *given, **named)

    assert client.put("/collections/things", json={"embedder": "vgg-cifar10"}).status_code == 201
    monkeypatch.setattr(Predictor, "run", zeros)
    url = "/collections/things/subjects/black/faces"
    refused = client.post(url, content=encode(photo("coffee")), headers=PNG)
    assert (refused.status_code, "no direction" in refused.json()["detail"]) == (422, True)
    assert client.delete("/collections/things").json()["subjects"] == 0


# Rows.


@pytest.mark.parametrize(
    "properties",
    [
        {"expires_at": TOO_LATE},
        {"expires_at": "9999-12-31T23:59:59.5Z"},
        {"metadata": deep(MAX_DEPTH + 1)},
        {"metadata": deep(256)},
        {"metadata": {"a": [[deep(MAX_DEPTH)]]}},
        {"expires_at": "2001-01-01T00:00:00Z"},
    ],
)
def test_what_cannot_be_answered_is_not_stored(client: TestClient, properties: dict[str, Any]) -> None:
    refused = client.put(SUBJECT, json=properties)
    assert refused.status_code == 422, refused.text
    (item,) = send(client, {"subject_id": "eileen", "vector": [1.0] * 32, **properties})
    assert (item["status"], item["problem"]["status"] in {400, 422}) == ("failed", True)
    assert client.get("/collections/doors/subjects").json()["data"] == []


def test_what_can_be_answered_is_stored(client: TestClient) -> None:
    properties = {"name": None, "expires_at": "9999-12-31T23:59:59Z", "metadata": deep(MAX_DEPTH)}
    made = client.put(SUBJECT, json=properties)
    assert made.status_code == 200, made.text
    assert client.get("/collections/doors/subjects").json()["data"] == [made.json()]


def test_an_answer_that_cannot_be_serialised_undoes_the_change(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("index.embedded.gallery.records.upsert_subject", spoiled)
        assert client.put(SUBJECT, json={}).status_code == 500
    assert client.get(SUBJECT).status_code == 404
    assert client.put(SUBJECT, json={}).status_code == 200


def spoiled(*given: Any, **named: Any) -> Any:
    """Store the subject, but say that its metadata is what no answer can hold."""
    from dataclasses import replace

    from index.embedded.store.records import upsert_subject

    return replace(upsert_subject(*given, **named), metadata={"a": float("nan")})


def test_rows_of_older_versions_do_not_keep_others_from_being_listed(client: TestClient) -> None:
    for key in "abc":
        assert client.put(f"/collections/doors/subjects/{key}", json={}).status_code == 200
    send(client, {"subject_id": "a", "vector": [1.0] * 32})

    def poison(db: apsw.Connection) -> None:
        db.execute("UPDATE subjects SET expires_at = 253402300800.0 WHERE key = 'a'")
        db.execute("UPDATE subjects SET metadata = ? WHERE key = 'b'", (json.dumps(deep(300)),))
        db.execute('UPDATE subjects SET metadata = \'{"a": NaN, "b": "\\ud800"}\' WHERE key = \'c\'')
        db.execute("UPDATE faces SET details = '{\"a\": NaN}'")
        db.execute("UPDATE jobs SET settings = 'nonsense'")
        db.execute("UPDATE collections SET settings = '{}', created_at = 1e18 WHERE name = 'doors'")

    gallery_of(client).ledger.write(poison)
    listed = client.get("/collections/doors/subjects").json()["data"]
    assert [one["id"] for one in listed] == ["a", "b", "c"]
    assert listed[0]["expires_at"] == "9999-12-31T23:59:59Z"
    assert listed[2]["metadata"] == {"a": None, "b": "\N{REPLACEMENT CHARACTER}" * 3}
    assert client.get("/collections/doors/subjects/a/faces").json()["data"][0]["details"] == {"a": None}
    assert client.get("/collections").json()["data"][0]["keep_crops"] is False
    assert client.get("/collections/doors/jobs").status_code == 200
    assert client.get("/collections/doors").status_code == 200


# Who did it.


def test_every_change_is_in_the_audit_log_with_the_keys_id(service: TestClient) -> None:
    keys = Keys(service.app.state.settings.state / FOLDER)  # type: ignore[attr-defined]
    made, secret = keys.create("auditor", ["infer", "enrol", "admin"])
    service.headers["authorization"] = f"Bearer {secret}"
    try:
        _walk(service, keys, made.id)
    finally:
        del service.headers["authorization"]
        # Else nobody can ask the other tests' questions without one.
        keys._write(lambda db: db.execute("DELETE FROM keys").fetchall())  # type: ignore[arg-type]
        keys.close()


# They compute, and change nothing.
COMPUTING = {
    f"post {path}"
    for path in (
        "/classify",
        "/denoise",
        "/embed",
        "/encode",
        "/faces/detect",
        "/reconstruct",
        "/search",  # is in the log all the same
        "/verify",
        "/verify/embeddings",
        "/v1/embeddings",
        "/v1/images/generations",
        "/generate",
        "/v2/models/{name}/infer",
        "/v2/models/{name}/versions/{version}/infer",
        "/v2/repository/index",
        "/collections/{collection}/subjects/{subject}/verify",  # so is this
    )
}


def _walk(client: TestClient, keys: Keys, actor: str) -> None:
    gallery = gallery_of(client)
    picture: dict[str, Any] = {"content": encode(photo("astronaut")), "headers": PNG}
    known: dict[str, str] = {}
    one = "/collections/walked"
    requests: dict[str, Callable[[], Any]] = {
        "put /collections/{collection}": lambda: client.put(one, json={"keep_crops": True}),
        "put /collections/{collection}/subjects/{subject}": lambda: client.put(f"{one}/subjects/e", json={}),
        "post /collections/{collection}/subjects/{subject}/faces": lambda: remembered(
            "face", client.post(f"{one}/subjects/e/faces", **picture), lambda it: it["indexed"][0]["face_id"]
        ),
        "post /collections/{collection}/subjects/{subject}/feedback": lambda: remembered(
            "feedback", client.post(f"{one}/subjects/e/feedback", **picture), lambda it: it["id"]
        ),
        "delete /collections/{collection}/subjects/{subject}/feedback/{feedback}": lambda: client.delete(
            f"{one}/subjects/e/feedback/{known['feedback']}"
        ),
        "post /collections/{collection}/reembed": lambda: client.post(
            f"{one}/reembed", json={"embedder": "uncalibrated"}
        ),
        "delete /collections/{collection}/reembed": lambda: client.delete(f"{one}/reembed"),
        "post /collections/{collection}/faces:bulk": lambda: remembered(
            "job",
            client.post(f"{one}/faces:bulk", content=b'{"subject_id": "b", "image": "AAAA"}', headers=LINES),
            lambda it: it["id"],
        ),
        "delete /collections/{collection}/jobs/{job}": lambda: client.delete(f"{one}/jobs/{known['job']}"),
        "delete /collections/{collection}/faces/{face}": lambda: client.delete(f"{one}/faces/{known['face']}"),
        "delete /collections/{collection}/subjects/{subject}": lambda: client.delete(f"{one}/subjects/e"),
        "delete /collections/{collection}": lambda: client.delete(one),
        "post /models/{name}/reload": lambda: client.post("/models/uncalibrated/reload"),
    }

    def remembered(what: str, answer: Any, part: Callable[[Any], str]) -> Any:
        known[what] = part(answer.json())
        return answer

    paths = client.get("/openapi.json").json()["paths"]
    operations = {f"{method} {path}" for path, methods in paths.items() for method in methods}
    assert operations >= COMPUTING
    changing = {one for one in operations if one.split()[0] not in {"get", "head", "options"}} - COMPUTING
    assert changing == set(requests)
    card = client.app.state.settings.weights / "uncalibrated" / "card.json"  # type: ignore[attr-defined]
    with busy(client):  # else the job is over, and the re-embedding, before they can be cancelled
        for operation, request in requests.items():
            if operation.endswith("/reload"):
                changed = json.loads(card.read_text()) | {"description": "another"}
                card.write_text(json.dumps(changed))
            log: Audit = keys.audit if operation.endswith("/reload") else gallery.audit
            before = len(log.read(limit=10_000)[0])
            answer = request()
            assert answer.status_code < 300, (operation, answer.text)
            new = [entry.act for entry in log.read(limit=10_000)[0][before:]]
            assert actor in {act.actor for act in new}, operation


@contextlib.contextmanager
def busy(client: TestClient) -> Iterator[None]:
    """Nothing is done in the background meanwhile."""
    galleries = client.app.state.galleries  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(galleries.jobs._worker, "claim", lambda *_: None)
        patched.setattr(galleries.reembedder._worker, "waiting", list)
        yield


def test_faces_of_a_bulk_job_are_its_senders(client: TestClient) -> None:
    gallery = gallery_of(client)
    assert [one["status"] for one in send(client, {"subject_id": "b", "vector": [1.0] * 32})] == ["enrolled"]
    job = client.app.state.galleries.jobs._jobs.begin("doors", {}, actor="key-9")  # type: ignore[attr-defined]
    jobs = client.app.state.galleries.jobs._jobs  # type: ignore[attr-defined]
    from index.embedded.store.job_records import Item

    fingerprint = client.get("/collections/doors").json()["fingerprint"]
    gallery.ledger.write(
        lambda db: db.execute("UPDATE jobs SET settings = ?", (json.dumps({"fingerprint": fingerprint}),)).fetchall()
    )
    jobs.append(job, [Item(0, "c", "vector", np.ones(32, "<f4").tobytes())])
    jobs.ready(job)
    finished(client, {"id": job.token})
    acts = [entry.act for entry in gallery.audit.read(limit=10_000)[0]]
    assert [(act.action, act.actor) for act in acts[-2:]] == [("submit_job", "key-9"), ("enrol", "key-9")]


# Time.


def test_an_expired_subject_is_not_found_from_that_second_on(client: TestClient, clock: Clock) -> None:
    until = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3000))
    picture: dict[str, Any] = {"content": encode(photo("astronaut")), "headers": PNG}
    assert client.post(f"{SUBJECT}/faces", **picture).json()["indexed"]
    assert client.put(SUBJECT, json={"name": "Eileen", "expires_at": until}).status_code == 200
    assert client.get(SUBJECT).status_code == 200
    clock.ahead = 3001
    for path in (SUBJECT, f"{SUBJECT}/faces", f"{SUBJECT}/feedback"):
        assert client.get(path).status_code == 404, path
    for path in (f"{SUBJECT}/verify", f"{SUBJECT}/feedback"):
        assert client.post(path, **picture).status_code == 404, path
    assert client.get("/collections/doors/subjects").json()["data"] == []
    answer = client.post("/search?collection=doors&fpir=0.5", **picture).json()
    assert answer["data"][0]["faces"][0]["candidates"] == []
    # Whoever has that id from now on is somebody else.
    again = client.put(SUBJECT, json={}).json()
    assert (again["name"], again["faces"], again["expires_at"]) == (None, 0, None)


def test_an_expired_subject_can_be_erased(client: TestClient, clock: Clock) -> None:
    until = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3000))
    assert client.put(SUBJECT, json={"expires_at": until}).status_code == 200
    clock.ahead = 3001
    assert client.delete(SUBJECT).json()["subjects"] == 1


def test_a_line_that_expires_while_its_job_waits_is_told_of(client: TestClient, clock: Clock) -> None:
    until = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 100))
    clock.ahead = 3000  # the line was valid when it was sent
    (item,) = send(client, {"subject_id": "eileen", "vector": [1.0] * 32, "expires_at": until})
    assert (item["status"], item["problem"]["status"]) == ("failed", 422)
    assert "in the past" in item["problem"]["detail"]


# Disks.


class GatedFile(apsw.VFSFile):
    """A file each sync of which waits until the disk's gate is open."""

    def __init__(self, name: str | apsw.URIFilename | None, flags: list[int], disk: GatedDisk):
        super().__init__("", name, flags)
        self._disk = disk

    def xSync(self, flags: int) -> None:  # noqa: N802
        super().xSync(flags)
        self._disk.syncs += 1
        assert self._disk.gate.wait(120)


class GatedDisk(apsw.VFS):
    """The platform's own VFS, whose syncs end only while the gate is open: as slow a disk as a test needs."""

    def __init__(self, name: str):
        self.gate = threading.Event()
        self.gate.set()
        self.syncs = 0
        super().__init__(name, "")

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:  # noqa: N802
        return GatedFile(name, flags, self)


def test_writes_share_slow_syncs_and_reads_do_not_wait_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = GatedDisk("gated")
    opened: list[EmbeddedGallery] = []

    def open_gallery(*given: Any, **named: Any) -> EmbeddedGallery:
        opened.append(EmbeddedGallery(*given, vfs="gated", **named))
        return opened[0]

    monkeypatch.setattr(main, "EmbeddedGallery", open_gallery)

    async def measure(url: str) -> int:
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(base_url=url, limits=limits, timeout=120, trust_env=False) as client:
            assert (await client.put("/collections/doors", json={})).status_code == 201
            assert (await client.put("/collections/doors/subjects/there", json={})).status_code == 200
            disk.gate.clear()
            before = disk.syncs
            first = asyncio.create_task(client.put("/collections/doors/subjects/first", json={}))
            while disk.syncs == before:  # noqa: ASYNC110  the disk is another thread's
                await asyncio.sleep(0.01)
            puts = [client.put(f"/collections/doors/subjects/p{number}", json={}) for number in range(64)]
            writes = [first, *map(asyncio.create_task, puts)]
            async with asyncio.timeout(60):  # all of them wait for one sync
                while opened[0].ledger._waiting.qsize() < 64:  # noqa: ASYNC110  as is the queue
                    await asyncio.sleep(0.01)
                for path in ("/collections/doors/subjects/there", "/collections/doors", "/collections/doors/subjects"):
                    assert (await client.get(path)).status_code == 200
            assert not any(write.done() for write in writes)
            before = disk.syncs
            disk.gate.set()
            assert {answer.status_code for answer in await asyncio.gather(*writes)} == {200}
            return disk.syncs - before

    with serving_here(settings(tmp_path)) as url:
        try:
            assert asyncio.run(measure(url)) <= 4  # of one commit, and of a checkpoint if that comes just then
        finally:
            disk.gate.set()
    disk.unregister()


def test_a_full_disk_answers_507_and_readiness_says_so(client: TestClient) -> None:
    gallery = gallery_of(client)
    assert client.put(SUBJECT, json={"name": "before"}).status_code == 200
    fill = {"name": "after", "metadata": {"x": "x" * 16_000}}
    most: list[int] = []

    def full(db: apsw.Connection) -> None:
        most.append(db.pragma("max_page_count"))
        db.pragma("max_page_count", db.pragma("page_count"))

    gallery.ledger.write(full)
    try:
        refused = client.put(SUBJECT, json=fill)
        assert (refused.status_code, refused.json()["type"]) == (507, "urn:vestibule:problem:disk-full")
        many = [client.put(f"/collections/doors/subjects/p{n}", json=fill).status_code for n in range(3)]
        assert many == [507] * 3
        ready = client.get("/health/ready").json()
        assert (ready["status"], "the disk is full" in ready["reasons"][0]) == ("degraded", True)
        assert client.get(SUBJECT).json()["name"] == "before"
    finally:
        gallery.ledger.write(lambda db: db.pragma("max_page_count", most[0]))
    assert client.put(SUBJECT, json=fill).json()["name"] == "after"
    assert list(faults(gallery)) == []
    gallery.ledger.full_at = None
    assert client.get("/health/ready").json()["status"] == "ready"


def test_a_full_disk_beside_the_ledger_answers_507(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    assert client.put(SUBJECT, json={}).status_code == 200

    def full(*given: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("index.embedded.store.tombstones.os.fsync", full)
        assert client.delete(SUBJECT).status_code == 507
    assert client.get("/health/ready").json()["status"] == "degraded"
    gallery_of(client).ledger.full_at = None


# Maintenance.


def test_a_damaged_row_is_told_by_readiness_log_and_metrics(tmp_path: Path) -> None:
    app = create_app(settings(tmp_path, upkeep_s=0.05))
    with TestClient(app, base_url=BASE_URL, raise_server_exceptions=False) as client, capture_logs() as logs:
        for name in ("good", "damaged"):
            assert client.put(f"/collections/{name}", json={}).status_code == 201
        gallery = gallery_of(client)
        fingerprint = gallery.collection("good").fingerprint
        from index.embedded.store.records import NewFace

        for name in ("good", "damaged"):
            gallery.enrol(
                name, [NewFace("a", np.ones(32, np.float32)), NewFace("b", -np.ones(32, np.float32))], fingerprint
            )
        assert waited(lambda: "maintained_at" in client.get("/health/ready").json())
        gallery.ledger.write(
            lambda db: db.execute(
                "UPDATE collections SET unscaled = 1 WHERE name = 'damaged';"
                " UPDATE vectors SET data = x'00' WHERE face_id = 3"
            ).fetchall()
        )
        assert waited(lambda: client.get("/health/ready").json()["status"] == "degraded")
        (reason,) = client.get("/health/ready").json()["reasons"]
        assert reason == "maintenance failed in collection 2; the log says why"
        receipt = gallery.remove_subject("good", "a")
        assert waited(lambda: gallery.receipt(receipt.token).erased_at is not None)
        assert 'vestibule_maintenance_failures_total{step="collection"}' in client.get("/metrics").text
        gallery.remove_subject("damaged", "a")
        assert waited(lambda: client.get("/health/ready").json()["status"] == "ready")
        told = [line for line in logs if line["event"] == "upkeep_failed"]
        assert [line["step"] for line in told] == ["collection 2"]


def waited(condition: Callable[[], bool], seconds: float = 30) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        threading.Event().wait(0.02)
    return False
