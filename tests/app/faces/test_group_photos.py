"""Photos with many faces: what they cost, where that is computed, and that other requests get their turn."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from fastapi.testclient import TestClient

from app.gallery import embedding_pipeline
from app.inference import loader
from app.inference.executors import FairThreadPool
from app.inference.model_manager import ModelManager
from app.inference.predictor import MAP_CHUNK_SIZE, MAX_QUEUED_TILES, Predictor
from app.settings import Settings
from models import align, checkpoint
from tests.app.face_pictures import grace_hopper, passer_by, side_by_side, small_faces
from tests.conftest import encode


@pytest.fixture
def pool() -> Iterator[FairThreadPool]:
    made = FairThreadPool(2, "decode")
    yield made
    made.stop()


@pytest.fixture
def predictor(pool: FairThreadPool) -> Predictor:
    model_manager = cast("ModelManager", SimpleNamespace(executors=SimpleNamespace(run_cpu=pool.run)))
    return Predictor(Settings(), model_manager)


def test_items_are_mapped_in_order(predictor: Predictor) -> None:
    numbers = list(range(3 * MAP_CHUNK_SIZE + 1))
    assert asyncio.run(predictor.map(lambda number: 2 * number, numbers)) == [2 * number for number in numbers]
    assert asyncio.run(predictor.map(str, [])) == []


def test_one_call_never_holds_two_threads_and_lets_others_in_between(
    predictor: Predictor, pool: FairThreadPool
) -> None:
    """With one of the two threads busy, a short task waits for at most one piece of a long list."""
    running, done, waited = [], [], []
    free = threading.Event()

    def slow(number: int) -> None:
        running.append(threading.get_ident())
        done.append(number)

    async def scenario() -> None:
        busy = asyncio.ensure_future(pool.run(free.wait))
        await asyncio.sleep(0.05)
        many = asyncio.ensure_future(predictor.map(slow, range(50 * MAP_CHUNK_SIZE)))
        await asyncio.sleep(0)
        try:
            await pool.run(lambda: waited.append(len(done)))
        finally:
            free.set()
        await asyncio.gather(busy, many)

    asyncio.run(scenario())
    assert waited[0] <= MAP_CHUNK_SIZE
    assert len(done) == 50 * MAP_CHUNK_SIZE


def test_a_cancelled_call_begins_no_further_items(predictor: Predictor) -> None:
    begun: list[int] = []
    started, go_on = threading.Event(), threading.Event()

    def work(number: int) -> None:
        begun.append(number)
        started.set()
        go_on.wait(20)

    async def scenario() -> None:
        many = asyncio.ensure_future(predictor.map(work, range(10 * MAP_CHUNK_SIZE)))
        await asyncio.get_running_loop().run_in_executor(None, started.wait)
        many.cancel()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await many
        await asyncio.sleep(0.1)

    asyncio.run(scenario())
    assert len(begun) <= MAP_CHUNK_SIZE


def test_faces_are_measured_and_their_crops_encoded_off_the_event_loop(
    running: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the event loop a hundred faces would keep every other request waiting."""
    threads: dict[str, set[str]] = {"measure": set(), "align": set(), "crop": set()}

    def noting(name: str, function: Any) -> Any:
        def noted(*given: Any) -> Any:
            threads[name].add(threading.current_thread().name.partition("_")[0])
            return function(*given)

        return noted

    monkeypatch.setattr(align, "measure", noting("measure", align.measure))
    monkeypatch.setattr(align, "align", noting("align", align.align))
    monkeypatch.setattr(embedding_pipeline, "crop_of", noting("crop", embedding_pipeline.crop_of))
    crowd = encode(side_by_side())
    png: dict[str, Any] = {"content": crowd, "headers": {"content-type": "image/png"}}
    assert running.put("/collections/crowd", json={"keep_crops": True}).status_code == 201
    for path in ("/faces/detect", "/embed", "/collections/crowd/subjects/both/faces?max_faces=2"):
        assert running.post(path, **png).is_success, path
    assert running.post("/search", params={"collection": "crowd"}, **png).is_success
    assert running.post("/collections/crowd/subjects/both/feedback", **png).is_success
    files = dict.fromkeys(("source", "target"), ("a.png", crowd))
    assert running.post("/verify", files=files).is_success
    assert threads == {"measure": {"decode"}, "align": {"decode"}, "crop": {"decode"}}


def test_small_faces_of_a_large_photo_are_found_and_the_scale_is_told(running: TestClient) -> None:
    picture, centres = small_faces()
    png: dict[str, Any] = {"content": encode(picture), "headers": {"content-type": "image/png"}}
    (usual,) = running.post("/faces/detect", **png).json()["data"]
    assert usual["scale"] == pytest.approx(0.4)
    assert usual["min_face"] == pytest.approx(40, rel=1e-2)
    assert len(usual["faces"]) >= len(centres) - 3
    (coarse,) = running.post("/faces/detect?min_face=75", **png).json()["data"]
    assert coarse["min_face"] == pytest.approx(75, rel=1e-2)
    assert len(coarse["faces"]) < 5
    small: dict[str, Any] = {"content": encode(grace_hopper()), "headers": {"content-type": "image/png"}}
    (whole,) = running.post("/faces/detect?min_face=10", **small).json()["data"]
    assert (whole["scale"], whole["min_face"]) == (1, 16)
    for wrong in ("7", "0", "-40", "nan", "inf", "1e9"):
        assert running.post(f"/faces/detect?min_face={wrong}", **small).status_code == 422, wrong


def test_tiles_of_a_large_photo_wait_a_few_at_a_time(running: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a small photo would wait for a whole batch of them."""
    sizes = []
    run_by_shape = loader.run_by_shape

    def noting(preprocess: Any, ready: Any, items: Any) -> Any:
        sizes.append(len(items))
        return run_by_shape(preprocess, ready, items)

    monkeypatch.setattr(loader, "run_by_shape", noting)
    files = [("file", (f"{number}.png", encode(small_faces()[0].resize((4000, 640))))) for number in range(2)]
    assert running.post("/faces/detect", files=files).is_success
    assert sum(sizes) >= 2 * (1 + 3)
    assert max(sizes) <= 2 + 2 * MAX_QUEUED_TILES  # tiles, and each photo at the detector's size


def first_fingerprint(client: TestClient) -> tuple[str, int]:
    """The fingerprint that the first version of the service gave a collection, and the number of dimensions."""
    weights = client.app.state.settings.weights  # type: ignore[attr-defined]
    card, finder = (checkpoint.read_card(weights / name) for name in ("mobilefacenet-triplet", "centerface"))
    parts = {
        "weights": card.sha256,
        "preprocess": card.preprocess.model_dump(mode="json"),
        "tta": card.tta,
        "detector": finder.sha256,
        "alignment": [align.TEMPLATE, align.SIDE],
    }
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return f"mobilefacenet-triplet:{digest[:16]}", card.config["dimensions"]


def test_an_existing_collection_keeps_its_rule_until_it_is_embedded_anew(running: TestClient) -> None:
    gallery = running.app.state.galleries._gallery  # type: ignore[attr-defined]
    fingerprint, dimensions = first_fingerprint(running)
    gallery.create("existing", "mobilefacenet-triplet", fingerprint, dimensions, keep_crops=True)
    created = running.put("/collections/existing", json={"keep_crops": True, "embedder": "mobilefacenet-triplet"})
    assert (created.status_code, created.json()["fingerprint"]) == (200, fingerprint)
    assert running.put("/collections/existing", json={"keep_crops": False}).status_code == 409
    new = running.put("/collections/new", json={"keep_crops": True}).json()
    assert new["fingerprint"] != fingerprint

    def enrolled(collection: str) -> int:
        response = running.post(
            f"/collections/{collection}/subjects/crowd/faces?max_faces=100&quality_gate=false",
            content=encode(small_faces()[0]),
            headers={"content-type": "image/png"},
        )
        return len(response.json()["indexed"]) if response.is_success else 0

    assert enrolled("new") > 25
    assert enrolled("existing") < 5
    one: dict[str, Any] = {"content": encode(grace_hopper()), "headers": {"content-type": "image/png"}}
    for collection in ("existing", "new"):
        assert running.post(f"/collections/{collection}/subjects/grace/faces", **one).is_success
        found = running.post(f"/search?collection={collection}", **one).json()["data"][0]["faces"][0]
        assert found["candidates"][0]["subject_id"] == "grace"
        assert found["candidates"][0]["distance"] == pytest.approx(0, abs=1e-5)
    assert running.post("/collections/existing/reembed", json={}).status_code == 202
    deadline = time.monotonic() + 60
    while running.get("/collections/existing").json()["fingerprint"] == fingerprint:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert running.get("/collections/existing").json()["fingerprint"] == new["fingerprint"]
    assert enrolled("existing") > 25


def test_the_face_in_the_middle_is_meant_before_a_larger_one_at_the_edge(running: TestClient) -> None:
    picture = encode(passer_by())
    png: dict[str, Any] = {"content": picture, "headers": {"content-type": "image/png"}}
    faces = running.post("/faces/detect", **png).json()["data"][0]["faces"]
    middle, edge = sorted((face["box"] for face in faces), key=lambda box: box[0])
    assert (middle[2] - middle[0]) * (middle[3] - middle[1]) < (edge[2] - edge[0]) * (edge[3] - edge[1])
    assert running.post("/embed", **png).json()["data"][0]["face"]["box"] == middle
    files = dict.fromkeys(("source", "target"), ("a.png", picture))
    assert running.post("/verify", files=files).json()["source_face"]["box"] == middle
    running.put("/collections/passers", json={})
    subject = "/collections/passers/subjects/eileen"
    enrolled = running.post(f"{subject}/faces?quality_gate=false", **png).json()
    assert [face["face"]["box"] for face in enrolled["indexed"]] == [middle]
    assert [(face["face"]["box"], face["reasons"]) for face in enrolled["rejected"]] == [(edge, ["EXCEEDS_MAX_FACES"])]
    verified = running.post(f"{subject}/verify", **png).json()
    assert verified["face"]["box"] == middle
    assert verified["distance"] == pytest.approx(0, abs=1e-5)
