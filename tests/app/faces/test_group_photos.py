"""Photos with many faces: threads, fairness between requests, detection scales and prominence."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
from fastapi.testclient import TestClient

from app.gallery import embedding_pipeline
from app.inference import loaded_model
from app.inference.executors import FairThreadPool
from app.inference.model_manager import ModelManager
from app.inference.predictor import MAP_CHUNK_SIZE, MAX_QUEUED_TILES, Predictor
from app.settings import Settings
from models import align
from tests.app.conftest import until
from tests.app.face_pictures import grace_hopper, passer_by, side_by_side, small_faces
from tests.conftest import encode


@pytest.fixture
def pool() -> Iterator[FairThreadPool]:
    threads = FairThreadPool(2, "decode")
    yield threads
    threads.stop()


@pytest.fixture
def predictor(pool: FairThreadPool) -> Predictor:
    model_manager = cast("ModelManager", SimpleNamespace(executors=SimpleNamespace(run_cpu=pool.run)))
    return Predictor(Settings(), model_manager)


def test_map_keeps_the_order(predictor: Predictor) -> None:
    numbers = list(range(3 * MAP_CHUNK_SIZE + 1))
    assert asyncio.run(predictor.map(lambda number: 2 * number, numbers)) == [2 * number for number in numbers]
    assert asyncio.run(predictor.map(str, [])) == []


def test_map_lets_other_tasks_run_between_its_chunks(predictor: Predictor, pool: FairThreadPool) -> None:
    """With one of two threads busy, a short task waits for at most one chunk of a long list; then that is cancelled."""
    done: list[int] = []
    release = threading.Event()

    async def scenario() -> int:
        busy = asyncio.ensure_future(pool.run(release.wait))
        await asyncio.sleep(0.05)
        mapping = asyncio.ensure_future(predictor.map(done.append, range(50 * MAP_CHUNK_SIZE)))
        await asyncio.sleep(0)
        try:
            waited = await pool.run(lambda: len(done))
            mapping.cancel()
            with pytest.raises(asyncio.CancelledError):
                await mapping
        finally:
            release.set()
        await busy
        return waited

    assert asyncio.run(scenario()) <= MAP_CHUNK_SIZE
    assert len(done) < 50 * MAP_CHUNK_SIZE  # a cancelled call starts no further items


def test_faces_are_aligned_and_measured_off_the_event_loop(
    running: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: dict[str, set[str]] = {"measure": set(), "align": set(), "crop": set()}

    def recorded(name: str, function: Any) -> Any:
        def call(*args: Any) -> Any:
            threads[name].add(threading.current_thread().name.partition("_")[0])
            return function(*args)

        return call

    monkeypatch.setattr(align, "measure", recorded("measure", align.measure))
    monkeypatch.setattr(align, "align", recorded("align", align.align))
    monkeypatch.setattr(embedding_pipeline, "encode_crop", recorded("crop", embedding_pipeline.encode_crop))
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


def test_scale_and_min_face(running: TestClient) -> None:
    image, centres = small_faces()
    png: dict[str, Any] = {"content": encode(image), "headers": {"content-type": "image/png"}}
    (default,) = running.post("/faces/detect", **png).json()["data"]
    assert default["scale"] == pytest.approx(0.4)
    assert default["min_face"] == pytest.approx(40, rel=1e-2)
    assert len(default["faces"]) >= len(centres) - 3
    (coarse,) = running.post("/faces/detect?min_face=75", **png).json()["data"]
    assert coarse["min_face"] == pytest.approx(75, rel=1e-2)
    assert len(coarse["faces"]) < 5
    small: dict[str, Any] = {"content": encode(grace_hopper()), "headers": {"content-type": "image/png"}}
    (whole,) = running.post("/faces/detect?min_face=10", **small).json()["data"]
    assert (whole["scale"], whole["min_face"]) == (1, 16)
    for invalid in ("7", "0", "-40", "nan", "inf", "1e9"):
        assert running.post(f"/faces/detect?min_face={invalid}", **small).status_code == 422, invalid


def test_few_tiles_of_large_photos_are_queued(running: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a small photo would wait for a whole batch of tiles."""
    sizes = []
    run_by_shape = loaded_model.run_by_shape

    def recorded(preprocess: Any, network: Any, items: Any) -> Any:
        sizes.append(len(items))
        return run_by_shape(preprocess, network, items)

    monkeypatch.setattr(loaded_model, "run_by_shape", recorded)
    files = [("file", (f"{number}.png", encode(small_faces()[0].resize((4000, 640))))) for number in range(2)]
    assert running.post("/faces/detect", files=files).is_success
    assert sum(sizes) >= 2 * (1 + 3)
    assert max(sizes) <= 2 + 2 * MAX_QUEUED_TILES  # tiles, and each whole photo at the detector's size


def test_existing_collection_keeps_its_scale_rule_until_re_embedding(running: TestClient) -> None:
    gallery = running.app.state.gallery._gallery  # type: ignore[attr-defined]
    assert running.portal is not None
    pipeline = running.portal.call(running.app.state.gallery._embedder.pipeline, None)  # type: ignore[attr-defined]
    fingerprint = replace(pipeline, scales="whole").fingerprint  # that of the first version; see test_golden_state
    gallery.create("existing", "mobilefacenet-triplet", fingerprint, pipeline.embedder.dimensions, keep_crops=True)
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
    assert running.post("/collections/existing/reembed", json={}).status_code == 202
    until(lambda: running.get("/collections/existing").json()["fingerprint"] == new["fingerprint"], 60)
    assert enrolled("existing") > 25


def test_central_face_is_more_prominent_than_a_larger_one_at_the_edge(running: TestClient) -> None:
    image = encode(passer_by())
    png: dict[str, Any] = {"content": image, "headers": {"content-type": "image/png"}}
    faces = running.post("/faces/detect", **png).json()["data"][0]["faces"]
    middle, edge = sorted((face["box"] for face in faces), key=lambda box: box[0])
    assert (middle[2] - middle[0]) * (middle[3] - middle[1]) < (edge[2] - edge[0]) * (edge[3] - edge[1])
    assert running.post("/embed", **png).json()["data"][0]["face"]["box"] == middle
    files = dict.fromkeys(("source", "target"), ("a.png", image))
    assert running.post("/verify", files=files).json()["source_face"]["box"] == middle
    running.put("/collections/passers", json={})
    subject = "/collections/passers/subjects/eileen"
    enrolled = running.post(f"{subject}/faces?quality_gate=false", **png).json()
    assert [face["face"]["box"] for face in enrolled["indexed"]] == [middle]
    assert [(face["face"]["box"], face["reasons"]) for face in enrolled["rejected"]] == [(edge, ["EXCEEDS_MAX_FACES"])]
    verified = running.post(f"{subject}/verify", **png).json()
    assert verified["face"]["box"] == middle
    assert verified["distance"] == pytest.approx(0, abs=1e-5)
