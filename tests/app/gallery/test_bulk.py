"""Bulk jobs over HTTP: photos and vectors by the hundred, each enrolled once and told of."""

from __future__ import annotations

import base64
import io
import json
import time
import unicodedata
import zipfile
from collections.abc import Iterator
from typing import Any

import apsw
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from app.errors import Conflict, NotReady, Overloaded
from app.gallery.bulk import enrolment, upload
from app.gallery.embedding_pipeline import Pipeline
from app.inference.executors import Executors
from index.embedded.store.records import Floats
from index.embedded.tasks.bulk_enrolment import Worker
from tests.app.face_pictures import grace_hopper, side_by_side
from tests.conftest import encode, photo

URL = "/collections/doors/faces:bulk"
LINES, ZIP = {"content-type": "application/x-ndjson"}, {"content-type": "application/zip"}
PNG = {"content-type": "image/png"}


@pytest.fixture(scope="module", autouse=True)
def _looks_often_for_jobs() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(enrolment, "POLL_S", 0.05)
        yield


@pytest.fixture
def gallery(running: TestClient) -> Iterator[TestClient]:
    assert running.put("/collections/doors", json={"keep_crops": True}).status_code == 201
    yield running
    assert running.delete("/collections/doors").status_code == 200


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def lines(*sent: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in sent)


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def vectors(count: int, dimensions: int = 32) -> Floats:
    return np.random.default_rng(1).normal(size=(count, dimensions)).astype(np.float32)


def fingerprint(client: TestClient) -> dict[str, str]:
    return {"fingerprint": client.get("/collections/doors").json()["fingerprint"]}


def send(client: TestClient, data: bytes, headers: dict[str, str], **params: object) -> dict[str, Any]:
    response = client.post(URL, content=data, headers=headers, params=params)  # type: ignore[arg-type]
    assert response.status_code == 202, response.text
    return dict(response.json())


def finished(client: TestClient, job: dict[str, Any], seconds: float = 60) -> dict[str, Any]:
    deadline = time.monotonic() + seconds
    while True:
        now = client.get(f"/collections/doors/jobs/{job['id']}").json()
        if now["finished_at"] is not None:
            return dict(now)
        assert time.monotonic() < deadline, now
        time.sleep(0.02)


def items(client: TestClient, job: dict[str, Any], **params: int) -> list[dict[str, Any]]:
    return list(client.get(f"/collections/doors/jobs/{job['id']}/items", params=params).json()["data"])


def subjects(client: TestClient) -> dict[str, int]:
    return {s["id"]: s["faces"] for s in client.get("/collections/doors/subjects").json()["data"]}


def candidates(client: TestClient, picture: Image.Image) -> list[dict[str, Any]]:
    answer = client.post("/search?collection=doors&fpir=0.5", content=encode(picture), headers=PNG).json()
    return list(answer["data"][0]["faces"][0]["candidates"])


def test_a_zip_of_photos_is_enrolled_and_each_file_told_of(gallery: TestClient) -> None:
    dark = Image.eval(photo("astronaut").resize((128, 128)), lambda value: value // 6)
    files = {
        "people/eileen/": b"",
        "people/eileen/1.png": encode(photo("astronaut")),
        "grace/a.png": encode(grace_hopper()),
        "grace/b.png": b"no picture",
        "cup/1.png": encode(photo("coffee")),
        "lonely.png": encode(grace_hopper()),
        "shade/1.png": encode(dark),
        "grace/.DS_Store": b"x",
        "__MACOSX/grace/a.png": b"x",
    }
    job = send(gallery, zipped(files), ZIP)
    assert (job["collection"], job["total"]) == ("doors", 6)
    assert job["state"] in {"queued", "running"}
    done = finished(gallery, job)
    assert (done["state"], done["problem"]) == ("done", None)
    assert done["items"] == {"pending": 0, "enrolled": 2, "rejected": 1, "failed": 3, "erased": 0, "cancelled": 0}
    told = items(gallery, job)
    assert [item["index"] for item in told] == list(range(6))
    assert [item["status"] for item in told] == ["enrolled", "enrolled", "failed", "failed", "failed", "rejected"]
    assert [item["problem"]["status"] for item in told if item["status"] == "failed"] == [415, 422, 400]
    assert "LOW_BRIGHTNESS" in told[5]["reasons"]
    assert subjects(gallery) == {"eileen": 1, "grace": 1}
    best = candidates(gallery, photo("astronaut"))[0]
    assert (best["subject_id"], best["face_id"]) == ("eileen", told[0]["faces"][0])


def test_options_are_those_of_enrolling(gallery: TestClient) -> None:
    crowd = zipped({"crowd/1.png": encode(side_by_side())})
    one, two = send(gallery, crowd, ZIP), send(gallery, crowd, ZIP, max_faces=2)
    assert [finished(gallery, job)["items"]["enrolled"] for job in (one, two)] == [1, 1]
    assert [(len(i["faces"]), i["reasons"]) for i in items(gallery, one)] == [(1, ["EXCEEDS_MAX_FACES"])]
    assert [(len(i["faces"]), i["reasons"]) for i in items(gallery, two)] == [(2, [])]


def test_lines_carry_pictures_vectors_and_properties(gallery: TestClient) -> None:
    picture = encode(photo("astronaut"))
    embedded = gallery.post("/embed", content=encode(grace_hopper()), headers=PNG).json()["data"][0]["embedding"]
    longer = [3 * number for number in embedded]
    sent = lines(
        {"subject_id": "eileen", "image": text(picture), "name": "Eileen", "metadata": {"floor": 2}},
        {"subject_id": "grace", "vector": longer},
        {"subject_id": "grace", "vector": text(np.array(embedded, "<f4").tobytes()), "expires_at": "2050-01-01T00:00Z"},
        {"subject_id": "both", "image": f"data:image/png;base64,{text(picture)}"},
    )
    broken = b'\n{"subject_id": "a/b", "vector": [1]}\n{"subject_id": "x"}\n{"subject_id": "x", "vector": [1]}\n[\n'
    zeros = lines({"subject_id": "x", "vector": [0.0] * 32}, {"subject_id": "x", "image": "https://example.org/a.png"})
    job = send(gallery, sent + broken + zeros, LINES, **fingerprint(gallery))
    done = finished(gallery, job)
    assert done["items"] | {"enrolled": 4, "failed": 6} == done["items"]
    told = items(gallery, job)
    assert [item["index"] for item in told] == [0, 1, 2, 3, 5, 6, 7, 8, 9, 10]
    assert [item["problem"]["status"] for item in told[4:]] == [400] * 6
    assert "https" not in json.dumps(told)
    assert subjects(gallery) == {"both": 1, "eileen": 1, "grace": 2}
    eileen, grace = (gallery.get(f"/collections/doors/subjects/{name}").json() for name in ("eileen", "grace"))
    assert (eileen["name"], eileen["metadata"], eileen["expires_at"]) == ("Eileen", {"floor": 2}, None)
    assert (grace["name"], grace["expires_at"]) == (None, "2050-01-01T00:00:00Z")
    best = candidates(gallery, grace_hopper())[0]
    assert best["subject_id"] == "grace"
    assert best["distance"] == pytest.approx(0, abs=1e-5)


def test_thousands_of_vectors_and_pages_of_what_became_of_them(
    gallery: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enrolment, "MOST_ITEMS", 700)
    sent = vectors(3000)
    job = send(
        gallery,
        lines(*({"subject_id": f"p{n % 1000}", "vector": text(v.tobytes())} for n, v in enumerate(sent))),
        LINES,
        **fingerprint(gallery),
    )
    assert finished(gallery, job)["items"]["enrolled"] == 3000
    seen: list[dict[str, Any]] = []
    page = {"next": -1}
    while page["next"] is not None:
        query = {"after": page["next"], "limit": 900}
        page = gallery.get(f"/collections/doors/jobs/{job['id']}/items", params=query).json()
        seen += page["data"]
    assert [item["index"] for item in seen] == list(range(3000))
    assert len({item["faces"][0] for item in seen}) == 3000
    detail = gallery.get("/collections/doors").json()
    assert (detail["subjects"], detail["faces"]) == (1000, 3000)
    assert gallery.get("/collections/doors/subjects/p7/faces").json()["data"][2]["id"] == seen[2007]["faces"][0]


def test_jobs_are_listed_and_cancelled(gallery: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_: object) -> object:
        raise Overloaded("the queue is full")

    with monkeypatch.context() as patched:
        patched.setattr(Pipeline, "seen", never)
        first = send(gallery, zipped({"eileen/1.png": encode(photo("astronaut"))}), ZIP)
        second = send(gallery, zipped({"grace/1.png": encode(grace_hopper())}), ZIP)
        third = send(gallery, lines({"subject_id": "late", "vector": [1.0] * 32}), LINES, **fingerprint(gallery))
        page = gallery.get("/collections/doors/jobs", params={"limit": 2}).json()
        assert [job["id"] for job in page["data"]] == [first["id"], second["id"]]
        rest = gallery.get("/collections/doors/jobs", params={"limit": 2, "after": page["next"]}).json()
        assert ([job["id"] for job in rest["data"]], rest["next"]) == ([third["id"]], None)
        cancelled = gallery.delete(f"/collections/doors/jobs/{first['id']}").json()
        assert (cancelled["state"], cancelled["items"]["cancelled"]) == ("cancelled", 1)
    assert finished(gallery, second)["state"] == finished(gallery, third)["state"] == "done"
    assert subjects(gallery) == {"grace": 1, "late": 1}
    assert gallery.delete(f"/collections/doors/jobs/{second['id']}").json()["state"] == "done"


def test_an_unexpected_error_costs_one_item(gallery: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Pipeline.seen

    async def sometimes(self: Pipeline, model: Any, data: bytes) -> Any:
        if data == b"trap":
            raise ZeroDivisionError("a bug")
        return await whole(self, model, data)

    monkeypatch.setattr(Pipeline, "seen", sometimes)
    job = send(gallery, zipped({"a/1.png": b"trap", "eileen/1.png": encode(photo("astronaut"))}), ZIP)
    finished(gallery, job)
    told = items(gallery, job)
    assert [item["status"] for item in told] == ["failed", "enrolled"]
    assert told[0]["problem"]["status"] == 500
    assert "bug" not in json.dumps(told)


def test_a_job_fails_where_the_models_are_others_than_the_collections(
    gallery: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def changed(*_: object) -> object:
        raise Conflict("'doors' holds vectors of another version")

    monkeypatch.setattr(Pipeline, "model", changed)
    job = finished(gallery, send(gallery, zipped({"eileen/1.png": encode(photo("astronaut"))}), ZIP))
    assert (job["state"], job["problem"]) == ("failed", "'doors' holds vectors of another version")
    assert [(item["status"], item["faces"]) for item in items(gallery, job)] == [("failed", [])]
    assert subjects(gallery) == {}


def test_an_error_of_the_ledger_costs_nothing(gallery: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    failures: list[Exception] = [apsw.BusyError("locked"), OSError("no space")]
    enrol = Worker.enrol

    def sometimes(self: Worker, *given: Any) -> bool:
        if failures:
            raise failures.pop()
        return enrol(self, *given)

    monkeypatch.setattr(Worker, "enrol", sometimes)
    sent = lines({"subject_id": "a", "vector": [1.0] * 32})
    assert finished(gallery, send(gallery, sent, LINES, **fingerprint(gallery)))["state"] == "done"
    assert failures == []
    assert subjects(gallery) == {"a": 1}


@pytest.mark.parametrize("error", [NotReady("its files do not fit together"), OSError("no space")])
def test_a_job_that_cannot_go_on_keeps_no_later_one_waiting(
    gallery: TestClient, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    attempts: list[float] = []

    async def not_ready(*_: object) -> object:
        attempts.append(time.monotonic())
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(Pipeline, "model", not_ready)
        first = send(gallery, zipped({"eileen/1.png": encode(photo("astronaut"))}), ZIP)
        later = send(gallery, lines({"subject_id": "late", "vector": [1.0] * 32}), LINES, **fingerprint(gallery))
        assert finished(gallery, later, seconds=20)["state"] == "done"
        deadline = time.monotonic() + 20
        while len(attempts) < 4:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert gallery.get(f"/collections/doors/jobs/{first['id']}").json()["finished_at"] is None
    pauses = np.diff(attempts)
    assert (pauses[:3] >= [0.05, 0.1, 0.2]).all()
    assert finished(gallery, first)["state"] == "done"
    assert subjects(gallery) == {"eileen": 1, "late": 1}


def test_pauses_double_up_to_a_limit_and_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(enrolment, "POLL_S", 1.0)
    postponed = enrolment.Postponed(lambda: now)

    def pause() -> float:
        nonlocal now
        postponed.add(7)
        start = now
        while postponed.current() == {7}:
            now += 0.5
        return now - start

    assert [pause() for _ in range(7)] == [1, 2, 4, 8, 16, enrolment.MOST_PAUSE_S, enrolment.MOST_PAUSE_S]
    postponed.remove(7)
    assert [pause(), pause()] == [1, 2]
    now += enrolment.FORGOTTEN_S
    assert postponed.current() == set()
    assert pause() == 1


def test_to_read_an_upload_is_long_work(gallery: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds: list[bool] = []
    run_cpu = Executors.run_cpu

    async def recorded(self: Executors, function: Any, *, is_long: bool = False) -> Any:
        kinds.append(is_long)
        return await run_cpu(self, function, is_long=is_long)

    monkeypatch.setattr(Executors, "run_cpu", recorded)
    sent = lines({"subject_id": "a", "vector": [1.0] * 32})
    assert finished(gallery, send(gallery, sent, LINES, **fingerprint(gallery)))["state"] == "done"
    assert kinds == [True, True]  # the only chunk, and the end


def test_whose_photos_wait_is_erased_there(gallery: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_: object) -> object:
        raise Overloaded("the queue is full")

    with monkeypatch.context() as patched:
        patched.setattr(Pipeline, "seen", never)
        photos = {f"{who}/1.png": encode(grace_hopper()) for who in ("eileen", "grace")}
        job = send(gallery, zipped(photos), ZIP)
        receipt = gallery.delete("/collections/doors/subjects/eileen").json()
        assert (receipt["subjects"], receipt["faces"]) == (1, 0)
        assert gallery.delete("/collections/doors/subjects/eileen").status_code == 404
    assert [item["status"] for item in items(gallery, finished(gallery, job))] == ["erased", "enrolled"]
    assert subjects(gallery) == {"grace": 1}


def test_whole_pictures_are_items_of_a_classifiers_collection(running: TestClient) -> None:
    running.put("/collections/doors", json={"embedder": "vgg-cifar10"})
    job = send(running, zipped({f"{n}/1.png": encode(photo(n)) for n in ("coffee", "rocket")}), ZIP)
    assert finished(running, job)["items"]["enrolled"] == 2
    answer = running.post("/search?collection=doors", content=encode(photo("rocket")), headers=PNG).json()
    assert answer["data"][0]["faces"][0]["candidates"][0]["subject_id"] == "rocket"
    running.delete("/collections/doors")
    assert running.get(f"/collections/doors/jobs/{job['id']}").status_code == 404


def encrypted() -> bytes:
    data = bytearray(zipped({"a/1.png": b"secret"}))
    data[6] |= 1  # the flag in the file's own header,
    data[data.index(b"PK\x01\x02") + 8] |= 1  # and in the directory
    return bytes(data)


@pytest.mark.parametrize(
    "data",
    [zipped({"a/1.png": bytes(100_000)}), encrypted(), zipped({"a/1.png": b"abcd"}).replace(b"abcd", b"abce")],
    ids=["too large", "encrypted", "damaged"],
)
def test_a_file_that_cannot_be_unpacked_costs_no_neighbour(
    gallery: TestClient, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "MOST_PACKED", 50_000)
    job = send(gallery, data, ZIP)
    assert finished(gallery, job)["items"]["failed"] == 1
    assert items(gallery, job)[0]["problem"]["status"] in {400, 413}


@pytest.mark.parametrize(
    ("data", "headers", "query", "status"),
    [
        (b"", LINES, {}, 400),
        (b" \n\n", LINES, {}, 400),
        (b"no zip", ZIP, {}, 400),
        (zipped({}), ZIP, {}, 400),
        (zipped({"a/": b""}), ZIP, {}, 400),
        (b"{}", {"content-type": "application/json"}, {}, 415),
        (lines({"subject_id": "a", "vector": [1.0] * 32}), LINES, {}, 422),
        (lines({"subject_id": "a", "vector": [1.0] * 32}), LINES, {"fingerprint": "other"}, 409),
        (zipped({"a/1.png": b"x"}), ZIP, {"max_faces": 0}, 422),
        (zipped({"a/1.png": b"x"}), ZIP, {"color": "red"}, 422),
    ],
)
def test_bad_uploads_make_no_job(
    gallery: TestClient, data: bytes, headers: dict[str, str], query: dict[str, str], status: int
) -> None:
    response = gallery.post(URL, content=data, headers=headers, params=query)
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert gallery.get("/collections/doors/jobs").json() == {"data": [], "next": None}


def test_a_zip_that_unpacks_to_too_much_is_refused(gallery: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "MOST_UNPACKED", 1000)
    assert gallery.post(URL, content=zipped({"a/1.png": bytes(1001)}), headers=ZIP).status_code == 413


@pytest.mark.parametrize("name", [name for names in upload.CONTENT_TYPES.values() for name in names])
def test_content_types_that_other_programs_send(gallery: TestClient, name: str) -> None:
    sent = zipped({"eileen/1.png": b"x"}) if "zip" in name else b"\xef\xbb\xbf" + lines({"subject_id": "x"})
    assert send(gallery, sent, {"content-type": f"{name}; charset=utf-8"})["total"] == 1
    content = gallery.get("/openapi.json").json()["paths"]["/collections/{collection}/faces:bulk"]["post"]
    assert name in content["requestBody"]["content"]


def test_a_body_of_nothing_but_a_byte_order_mark_is_empty(gallery: TestClient) -> None:
    assert gallery.post(URL, content=b"\xef\xbb\xbf\n", headers=LINES).status_code == 400


def test_a_job_of_which_every_item_failed_has_failed(gallery: TestClient) -> None:
    bad = zipped({"a/1.png": b"no picture", "b/1.png": b"nor this"})
    for sent, headers in ((bad, ZIP), (lines({"subject_id": "x"}), LINES)):
        done = finished(gallery, send(gallery, sent, headers))
        assert (done["state"], done["problem"]) == ("failed", "every item failed; its own problem says why")
        assert done["items"]["failed"] == done["total"]
    mixed = zipped({"a/1.png": b"no picture", "eileen/1.png": encode(photo("astronaut"))})
    assert finished(gallery, send(gallery, mixed, ZIP))["state"] == "done"


def test_both_unicode_forms_of_an_id_are_one_subject(gallery: TestClient) -> None:
    composed, decomposed = (unicodedata.normalize(form, "m\u00fcller") for form in ("NFC", "NFD"))
    picture = encode(photo("astronaut"))
    sent = zipped({f"{composed}/1.png": picture, f"{decomposed}/2.png": picture})
    assert finished(gallery, send(gallery, sent, ZIP))["items"]["enrolled"] == 2
    url = f"/collections/doors/subjects/{decomposed}"
    assert gallery.post(f"{url}/faces", content=picture, headers=PNG).status_code == 200
    assert gallery.put(url, json={"metadata": {"site": decomposed}}).json()["id"] == composed
    assert subjects(gallery) == {composed: 3}
    where = json.dumps({"site": composed})
    answer = gallery.post("/search", params={"collection": "doors", "where": where}, content=picture, headers=PNG)
    assert answer.json()["collection"]["chosen"]["subjects"] == 1
    assert gallery.delete(url).json()["faces"] == 3
    assert subjects(gallery) == {}


def test_error_for_an_id_in_a_path_names_the_character(gallery: TestClient) -> None:
    answer = gallery.put("/collections/doors/subjects/o%27neill", json={})
    assert answer.status_code == 422
    assert answer.json()["errors"] == [
        {
            "parameter": "subject",
            "detail": "expected 1 to 128 letters, digits, spaces and . _ @ : + -; got U+0027 (APOSTROPHE)",
        }
    ]


def test_there_is_no_job_of_that_name(gallery: TestClient) -> None:
    assert gallery.post("/collections/x/faces:bulk", content=b"{}", headers=LINES).status_code == 404
    for path in ("/collections/doors/jobs/0123", "/collections/doors/jobs/0123/items", "/collections/x/jobs"):
        assert gallery.get(path).status_code == 404
    assert gallery.get(f"/collections/doors/jobs?after={10**30}").status_code == 422
    assert gallery.delete("/collections/doors/jobs/0123").status_code == 404
