"""Bulk jobs over HTTP."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from app.errors import Conflict, NotReady, Overloaded
from app.gallery.bulk import enrolment, upload
from app.gallery.bulk.enrolment import JobBackoff
from app.gallery.embedding_pipeline import ImageEmbedder
from app.inference.executors import Executors
from tests.app.face_pictures import grace_hopper, side_by_side
from tests.app.gallery.helpers import (
    BULK,
    LINES,
    PNG,
    ZIP,
    base64_text,
    faces_of,
    lines,
    outcomes,
    search,
    subjects,
    submit,
    wait_for_job,
    wait_until,
    zipped,
)
from tests.conftest import encode, photo

VECTOR = {"subject_id": "late", "vector": [1.0] * 32}


async def overloaded(*_: object) -> object:
    raise Overloaded("the queue is full")


def eileens_photo() -> bytes:
    return zipped({"eileen/1.png": encode(photo("astronaut"))})


def test_each_file_of_a_zip_has_an_outcome(gallery: TestClient) -> None:
    dark = Image.eval(photo("astronaut").resize((128, 128)), lambda value: value // 6)
    files = {
        "people/eileen/": b"",
        "people/eileen/1.png": encode(photo("astronaut")),
        "grace/a.png": encode(grace_hopper()),
        "grace/b.png": b"not an image",
        "cup/1.png": encode(photo("coffee")),
        "lonely.png": encode(grace_hopper()),
        "shade/1.png": encode(dark),
        "grace/.DS_Store": b"x",
        "__MACOSX/grace/a.png": b"x",
    }
    job = submit(gallery, zipped(files), ZIP)
    assert (job["collection"], job["total"]) == ("doors", 6)
    assert job["state"] in {"queued", "running"}
    ended = wait_for_job(gallery, job)
    assert (ended["state"], ended["problem"]) == ("done", None)
    assert ended["items"] == {"pending": 0, "enrolled": 2, "rejected": 1, "failed": 3, "erased": 0, "cancelled": 0}
    items = outcomes(gallery, job)
    assert [item["index"] for item in items] == list(range(6))
    assert [item["status"] for item in items] == ["enrolled", "enrolled", "failed", "failed", "failed", "rejected"]
    assert [item["problem"]["status"] for item in items if item["status"] == "failed"] == [415, 422, 400]
    assert "LOW_BRIGHTNESS" in items[5]["reasons"]
    assert subjects(gallery) == {"eileen": 1, "grace": 1}
    best = faces_of(search(gallery, photo("astronaut")))[0]["candidates"][0]
    assert (best["subject_id"], best["face_id"]) == ("eileen", items[0]["faces"][0])


def test_max_faces_limits_the_faces_of_an_image(gallery: TestClient) -> None:
    crowd = zipped({"crowd/1.png": encode(side_by_side())})
    (one,), (two,) = (outcomes(gallery, submit(gallery, crowd, ZIP, max_faces=count)) for count in (1, 2))
    assert (one["status"], len(one["faces"]), one["reasons"]) == ("enrolled", 1, ["EXCEEDS_MAX_FACES"])
    assert (two["status"], len(two["faces"]), two["reasons"]) == ("enrolled", 2, [])


def test_lines_contain_images_vectors_and_properties(gallery: TestClient) -> None:
    image = base64_text(encode(photo("astronaut")))
    embedded = gallery.post("/embed", content=encode(grace_hopper()), headers=PNG).json()["data"][0]["embedding"]
    vector = base64_text(np.array(embedded, "<f4").tobytes())
    valid = lines(
        {"subject_id": "eileen", "image": image, "name": "Eileen", "metadata": {"floor": 2}},
        {"subject_id": "grace", "vector": [3 * number for number in embedded]},
        {"subject_id": "grace", "vector": vector, "expires_at": "2050-01-01T00:00Z"},
        {"subject_id": "both", "image": f"data:image/png;base64,{image}"},
    )
    broken = b'\n{"subject_id": "a/b", "vector": [1]}\n{"subject_id": "x"}\n{"subject_id": "x", "vector": [1]}\n[\n'
    broken += lines(
        {"subject_id": "x", "vector": [0.0] * 32}, {"subject_id": "x", "image": "https://example.org/a.png"}
    )
    items = outcomes(gallery, submit(gallery, valid + broken, LINES))
    assert [item["index"] for item in items] == [0, 1, 2, 3, 5, 6, 7, 8, 9, 10]
    assert [item["status"] for item in items] == ["enrolled"] * 4 + ["failed"] * 6
    assert [item["problem"]["status"] for item in items[4:]] == [400] * 6
    assert "https" not in json.dumps(items)
    assert subjects(gallery) == {"both": 1, "eileen": 1, "grace": 2}
    eileen, grace = (gallery.get(f"/collections/doors/subjects/{name}").json() for name in ("eileen", "grace"))
    assert (eileen["name"], eileen["metadata"], eileen["expires_at"]) == ("Eileen", {"floor": 2}, None)
    assert (grace["name"], grace["expires_at"]) == (None, "2050-01-01T00:00:00Z")
    best = faces_of(search(gallery, grace_hopper()))[0]["candidates"][0]
    assert (best["subject_id"], best["distance"]) == ("grace", pytest.approx(0, abs=1e-5))


def test_an_upload_is_read_in_chunks_and_its_outcomes_in_pages(
    gallery: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[bool] = []
    run_cpu = Executors.run_cpu

    async def recorded(self: Executors, function: Any, *, is_long: bool = False) -> Any:
        reads.append(is_long)
        return await run_cpu(self, function, is_long=is_long)

    monkeypatch.setattr(enrolment, "CHUNK_ITEMS", 70)
    monkeypatch.setattr(Executors, "run_cpu", recorded)
    vectors = np.random.default_rng(1).normal(size=(300, 32)).tolist()
    body = lines(*({"subject_id": f"p{n % 100}", "vector": vector} for n, vector in enumerate(vectors)))
    job = submit(gallery, body, LINES)
    assert reads == [True] * 6  # five chunks, and the end
    assert wait_for_job(gallery, job)["items"]["enrolled"] == 300
    items: list[dict[str, Any]] = []
    page: dict[str, Any] = {"next": -1}
    while page["next"] is not None:
        params = {"after": page["next"], "limit": 90}
        page = gallery.get(f"/collections/doors/jobs/{job['id']}/items", params=params).json()
        items += page["data"]
    assert [item["index"] for item in items] == list(range(300))
    assert len({item["faces"][0] for item in items}) == 300
    assert gallery.get("/collections/doors/subjects/p7/faces").json()["data"][2]["id"] == items[207]["faces"][0]


def test_jobs_are_listed_and_cancelled_and_pending_items_erased(
    gallery: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(ImageEmbedder, "embed_image", overloaded)
        first = submit(gallery, eileens_photo(), ZIP)
        second = submit(gallery, zipped({f"{who}/1.png": encode(grace_hopper()) for who in ("ann", "grace")}), ZIP)
        third = submit(gallery, lines(VECTOR), LINES)
        page = gallery.get("/collections/doors/jobs", params={"limit": 2}).json()
        assert [job["id"] for job in page["data"]] == [first["id"], second["id"]]
        rest = gallery.get("/collections/doors/jobs", params={"limit": 2, "after": page["next"]}).json()
        assert ([job["id"] for job in rest["data"]], rest["next"]) == ([third["id"]], None)
        cancelled = gallery.delete(f"/collections/doors/jobs/{first['id']}").json()
        assert (cancelled["state"], cancelled["items"]["cancelled"]) == ("cancelled", 1)
        receipt = gallery.delete("/collections/doors/subjects/ann").json()
        assert (receipt["subjects"], receipt["faces"]) == (1, 0)
        assert gallery.delete("/collections/doors/subjects/ann").status_code == 404
    assert [item["status"] for item in outcomes(gallery, second)] == ["erased", "enrolled"]
    assert wait_for_job(gallery, third)["state"] == "done"
    assert subjects(gallery) == {"grace": 1, "late": 1}
    assert gallery.delete(f"/collections/doors/jobs/{second['id']}").json()["state"] == "done"


def test_an_unexpected_error_fails_one_item(gallery: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    embed_image = ImageEmbedder.embed_image

    async def sometimes(self: ImageEmbedder, pipeline: Any, data: bytes) -> Any:
        if data == b"trap":
            raise ZeroDivisionError("a bug")
        return await embed_image(self, pipeline, data)

    monkeypatch.setattr(ImageEmbedder, "embed_image", sometimes)
    files = {"a/1.png": b"trap", "eileen/1.png": encode(photo("astronaut"))}
    items = outcomes(gallery, submit(gallery, zipped(files), ZIP))
    assert [item["status"] for item in items] == ["failed", "enrolled"]
    assert items[0]["problem"]["status"] == 500
    assert "bug" not in json.dumps(items)


def test_a_job_fails_if_the_models_have_changed(gallery: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    async def changed(*_: object) -> object:
        raise Conflict("'doors' holds vectors of another version")

    monkeypatch.setattr(ImageEmbedder, "collection_pipeline", changed)
    job = wait_for_job(gallery, submit(gallery, eileens_photo(), ZIP))
    assert (job["state"], job["problem"]) == ("failed", "'doors' holds vectors of another version")
    assert [(item["status"], item["faces"]) for item in outcomes(gallery, job)] == [("failed", [])]
    assert subjects(gallery) == {}


@pytest.mark.parametrize("error", [NotReady("its files do not fit together"), OSError("no space")])
def test_a_failing_job_is_retried_and_does_not_delay_later_ones(
    gallery: TestClient, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    attempts: list[float] = []

    async def failing(*_: object) -> object:
        attempts.append(time.monotonic())
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(ImageEmbedder, "collection_pipeline", failing)
        first = submit(gallery, eileens_photo(), ZIP)
        later = submit(gallery, lines(VECTOR), LINES)
        assert wait_for_job(gallery, later)["state"] == "done"
        wait_until(lambda: len(attempts) >= 4)
        assert gallery.get(f"/collections/doors/jobs/{first['id']}").json()["finished_at"] is None
    assert (np.diff(attempts)[:3] >= [0.05, 0.1, 0.2]).all()
    assert wait_for_job(gallery, first)["state"] == "done"
    assert subjects(gallery) == {"eileen": 1, "late": 1}


def test_pauses_of_a_job_double_up_to_a_limit_and_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(enrolment, "POLL_S", 1.0)
    backoff = JobBackoff(lambda: now)

    def pause() -> float:
        nonlocal now
        backoff.pause(7)
        start = now
        while backoff.paused() == {7}:
            now += 0.5
        return now - start

    assert [pause() for _ in range(7)] == [1, 2, 4, 8, 16, enrolment.MAX_PAUSE_S, enrolment.MAX_PAUSE_S]
    backoff.reset(7)
    assert [pause(), pause()] == [1, 2]
    now += enrolment.FORGET_S
    assert backoff.paused() == set()
    assert pause() == 1


@pytest.mark.parametrize(
    ("data", "headers", "params", "status"),
    [
        (b" \n\n", LINES, {}, 400),
        (b"\xef\xbb\xbf\n", LINES, {}, 400),
        (b"not a zip", ZIP, {}, 400),
        (zipped({"a/": b""}), ZIP, {}, 400),
        (b"{}", {"content-type": "application/json"}, {}, 415),
        (lines(VECTOR), LINES, {}, 422),
        (lines(VECTOR), LINES, {"fingerprint": "other"}, 409),
        (zipped({"a/1.png": b"x"}), ZIP, {"max_faces": 0}, 422),
        (zipped({"a/1.png": b"x"}), ZIP, {"color": "red"}, 422),
        (zipped({"a/1.png": bytes(1001)}), ZIP, {}, 413),
    ],
)
def test_an_invalid_upload_creates_no_job(
    gallery: TestClient,
    monkeypatch: pytest.MonkeyPatch,
    data: bytes,
    headers: dict[str, str],
    params: dict[str, str],
    status: int,
) -> None:
    monkeypatch.setattr(upload, "MAX_UNPACKED_BYTES", 1000)
    response = gallery.post(BULK, content=data, headers=headers, params=params)
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert gallery.get("/collections/doors/jobs").json() == {"data": [], "next": None}


@pytest.mark.parametrize("name", [name for names in upload.CONTENT_TYPES.values() for name in names])
def test_content_types_of_other_programs_are_accepted(gallery: TestClient, name: str) -> None:
    data = zipped({"eileen/1.png": b"x"}) if "zip" in name else b"\xef\xbb\xbf" + lines({"subject_id": "x"})
    assert submit(gallery, data, {"content-type": f"{name}; charset=utf-8"})["total"] == 1
    operation = gallery.get("/openapi.json").json()["paths"]["/collections/{collection}/faces:bulk"]["post"]
    assert name in operation["requestBody"]["content"]


def test_a_missing_job_is_not_found(gallery: TestClient) -> None:
    assert gallery.post("/collections/x/faces:bulk", content=b"{}", headers=LINES).status_code == 404
    for path in ("/collections/doors/jobs/0123", "/collections/doors/jobs/0123/items", "/collections/x/jobs"):
        assert gallery.get(path).status_code == 404
    assert gallery.get(f"/collections/doors/jobs?after={10**30}").status_code == 422
    assert gallery.delete("/collections/doors/jobs/0123").status_code == 404
