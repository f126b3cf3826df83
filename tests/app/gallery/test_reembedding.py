"""Re-embeddings over HTTP, with two random embedders: the same people are found before, during and after."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from app.cli.main import cli
from app.errors import DamagedImage, NotFound
from app.faces.service import AlignedFace, Faces
from app.gallery.embedding_pipeline import ImageEmbedder
from app.gallery.schemas import NewEmbedder
from app.inference.batcher import Priority
from app.inference.loaded_model import LoadedModel
from app.settings import PROJECT, Settings
from index.embedded.gallery import EmbeddedGallery
from index.embedded.tasks.reembedding import ReembeddingWorker
from tests.app.conftest import started
from tests.app.embedder import random_embedder, save_embedder
from tests.app.gallery.helpers import (
    PNG,
    ZIP,
    candidate_ids,
    enrol,
    faces_of,
    outcomes,
    portrait,
    post_image,
    search,
    submit,
    wait_for_erasure,
    wait_for_job,
    wait_for_switch,
    wait_until,
    zipped,
)
from tests.app.threaded import serving_here
from tests.conftest import encode

REEMBED = "/collections/doors/reembed"
EILEEN = "/collections/doors/subjects/eileen"
TO_BETTER = {"embedder": "better"}


def other_embedder(weights: Path, name: str = "better", seed: int = 7) -> None:
    save_embedder(weights, name, dimensions=48, seed=seed)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    random_embedder(folder)
    other_embedder(folder)
    (folder / "vgg-cifar10").symlink_to(PROJECT / "weights" / "vgg-cifar10")
    return folder


@pytest.fixture(scope="module")
def running(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    state = tmp_path_factory.mktemp("state")
    with started(weights, state=state, upkeep_s=0.05) as client:
        client.app_state["state"] = state
        yield client


def find(client: TestClient, person: str) -> str:
    """Search for the person, who must be found, and return the name of the embedder."""
    response = search(client, portrait(person), fpir=0.5)
    best = faces_of(response)[0]["candidates"][0]
    assert best["subject_id"] == person
    assert best["distance"] < 0.05  # the stored crop is WebP, which is lossy
    return str(response["model"])


def wait_for_progress(client: TestClient, **expected: object) -> dict[str, Any]:
    progress: dict[str, Any] = {}

    def is_reached() -> bool:
        progress.update(client.get(REEMBED).raise_for_status().json())
        return progress | expected == progress

    wait_until(is_reached)
    detail = client.get("/collections/doors").json()["reembedding"]
    assert detail | {"state": progress["state"]} == progress  # the worker may have begun between the two requests
    return progress


def test_subjects_are_found_during_a_reembedding(gallery: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    enrol(gallery, "eileen")
    post_image(gallery, f"{EILEEN}/feedback", portrait("grace"))
    other_process = EmbeddedGallery(gallery.app_state["state"] / "gallery")
    assert gallery.get("/collections/doors").json()["reembedding"] is None
    assert other_process.size("doors") == 1
    with monkeypatch.context() as patch:
        patch.setattr(ReembeddingWorker, "claim", lambda *_: False)  # nothing is re-embedded yet
        response = gallery.post(REEMBED, json=TO_BETTER)
        assert response.status_code == 202, response.text
        begun = response.json()
        assert (begun["embedder"], begun["dimensions"], begun["faces"], begun["done"]) == ("better", 48, 1, 0)
        assert (begun["state"], begun["feedback"], begun["feedback_lost"]) == ("queued", 1, 0)
        assert begun["fingerprint"].startswith("better:")
        assert gallery.post(REEMBED, json={}).status_code == 409
        # The old pipeline serves; faces that are enrolled meanwhile are re-embedded, erased ones are not.
        enrol(gallery, "grace")
        face = enrol(gallery, "grace")["indexed"][0]["face_id"]
        gallery.delete(f"/collections/doors/faces/{face}")
        wait_for_progress(gallery, faces=2, done=0)
        assert (find(gallery, "eileen"), find(gallery, "grace")) == ("mobilefacenet-triplet", "mobilefacenet-triplet")
    wait_for_switch(gallery)
    after = gallery.get("/collections/doors").json()
    assert (after["embedder"], after["dimensions"], after["fingerprint"]) == ("better", 48, begun["fingerprint"])
    assert (after["subjects"], after["faces"], after["reembedding"]) == (2, 2, None)
    assert (find(gallery, "eileen"), find(gallery, "grace")) == ("better", "better")
    denied = post_image(gallery, f"{EILEEN}/verify", portrait("grace"), fmr=0.1)
    assert (denied["denied"], denied["model"]) == (True, "better")
    assert "eileen" not in candidate_ids(search(gallery, portrait("grace"), fpir=0.5))
    enrol(gallery, "eileen")
    assert other_process.collection("doors").fingerprint == begun["fingerprint"]
    assert other_process.size("doors") == 3
    other_process.close()
    wait_for_erasure(gallery, begun["erasure"])


def test_background_work_has_a_lower_priority(gallery: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: set[tuple[str, str]] = set()
    infer = LoadedModel.infer

    async def recorded(self: LoadedModel, item: torch.Tensor, wait_s: float, priority: Priority) -> Any:
        calls.add((self.card.name, priority))
        return await infer(self, item, wait_s, priority)

    monkeypatch.setattr(LoadedModel, "infer", recorded)
    enrol(gallery, "eileen")
    assert calls == {("centerface", "interactive"), ("mobilefacenet-triplet", "interactive")}
    calls.clear()
    outcomes(gallery, submit(gallery, zipped({"grace/1.png": encode(portrait("grace"))}), ZIP))
    assert calls == {("centerface", "background"), ("mobilefacenet-triplet", "background")}
    calls.clear()
    gallery.post(REEMBED, json=TO_BETTER)
    wait_for_switch(gallery)
    assert calls == {("better", "background")}


def test_a_refused_reembedding_has_a_reason(running: TestClient) -> None:
    running.put("/collections/bare", json={})
    running.put("/collections/whole", json={"embedder": "vgg-cifar10", "keep_crops": True})
    for collection in ("bare", "whole"):
        enrol(running, "eileen", collection=collection)
    for collection, body, status, detail in (
        ("bare", TO_BETTER, 409, "1 of 1 faces of 'bare' have no crop"),
        ("bare", {}, 409, "bare"),  # it has those vectors
        ("bare", {"embedder": "nobody"}, 422, "nobody"),
        ("nowhere", {}, 404, "nowhere"),
        ("whole", TO_BETTER, 409, "1 of 1 faces of 'whole' have no crop"),
        ("whole", {}, 409, "crops are stored of faces only"),
    ):
        refused = running.post(f"/collections/{collection}/reembed", json=body)
        assert (refused.status_code, detail in refused.json()["detail"]) == (status, True), refused.text
    for method in ("GET", "DELETE"):
        assert running.request(method, "/collections/bare/reembed").status_code == 404
    for collection in ("bare", "whole"):
        running.delete(f"/collections/{collection}")


def test_the_command_waits_for_the_switch_or_reports_the_problem_which_blocks_it(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def damaged(*_: Any) -> Any:
        raise DamagedImage("it is broken")

    settings = Settings(weights=weights, default_classifier="lenet5-mnist", state=tmp_path, upkeep_s=0.05)
    with serving_here(settings) as url, httpx.Client(base_url=url) as client:

        def run(collection: str, embedder: str) -> Any:
            return CliRunner().invoke(cli, ["gallery", "reembed", "--url", url, collection, embedder])

        for name in ("doors", "blocked"):
            client.put(f"/collections/{name}", json={"keep_crops": True}).raise_for_status()
            enrol(client, "eileen", collection=name)
        result = run("doors", "better")
        assert result.exit_code == 0, result.output
        assert "doors has vectors of better, " in result.stdout
        assert client.get("/collections/doors").json()["embedder"] == "better"
        assert client.get(f"/erasures/{result.stdout.split()[-1]}").status_code == 200
        monkeypatch.setattr(Faces, "embed_whole_image", damaged)
        client.post("/collections/blocked/reembed", json=TO_BETTER).raise_for_status()
        for collection, embedder, message in (
            ("doors", "better", "doors"),  # it has those vectors
            ("nowhere", "better", "nowhere"),
            # It follows a re-embedding that has begun already.
            ("blocked", "better", "the re-embedding is blocked: 1 faces have no crop that can be read"),
        ):
            result = run(collection, embedder)
            assert result.exit_code == 1
            assert message in result.stderr
        cancelled = client.delete("/collections/blocked/reembed")
        assert (cancelled.status_code, cancelled.json()["state"], cancelled.json()["done"]) == (200, "cancelled", 0)
        assert client.get("/collections/blocked/reembed").status_code == 404
        assert client.get("/collections/blocked").json()["embedder"] == "mobilefacenet-triplet"


@pytest.mark.parametrize("call", ["search", "enrol", "verify", "feedback", "bulk"])
def test_a_request_during_the_switch_uses_the_new_vectors(
    gallery: TestClient, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    enrol(gallery, "eileen")
    embed = ImageEmbedder._embed
    first_embedder: list[str] = []

    async def then_switch(self: ImageEmbedder, embedder: LoadedModel, faces: Sequence[AlignedFace]) -> Any:
        embedded = await embed(self, embedder, faces)
        if not first_embedder:
            first_embedder.append(embedder.card.name)
            reembedder = gallery.app.state.gallery.reembedder  # type: ignore[attr-defined]
            await reembedder.begin("doors", NewEmbedder(embedder="better"), None)
            with suppress(NotFound):  # it has switched
                while await reembedder.progress("doors"):  # noqa: ASYNC110  there is no event for this
                    await asyncio.sleep(0.02)
        return embedded

    monkeypatch.setattr(ImageEmbedder, "_embed", then_switch)
    if call == "search":
        assert find(gallery, "eileen") == "better"
    elif call == "enrol":
        enrol(gallery, "eileen")
        assert gallery.get(EILEEN).json()["faces"] == 2
    elif call == "bulk":
        job = submit(gallery, zipped({"eileen/1.png": encode(portrait("eileen"))}), ZIP)
        assert wait_for_job(gallery, job)["items"]["enrolled"] == 1
    else:
        post_image(gallery, f"{EILEEN}/{call}", portrait("eileen"))
    assert first_embedder == ["mobilefacenet-triplet"]
    assert gallery.get("/collections/doors").json()["embedder"] == "better"
    if call != "feedback":
        find(gallery, "eileen")


def test_changed_weights_are_refused_until_a_reembedding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = {name: tmp_path / name for name in ("old", "new", "newest")}
    for seed, folder in enumerate(folders.values()):
        folder.mkdir()
        random_embedder(folder)
        if seed:
            (folder / "mobilefacenet-triplet" / "card.json").unlink()
            (folder / "mobilefacenet-triplet" / "model.safetensors").unlink()
            other_embedder(folder, "mobilefacenet-triplet", seed)
    state = tmp_path / "state"
    with started(folders["old"], state=state) as client:
        client.put("/collections/doors", json={"keep_crops": True})
        enrol(client, "eileen")
    with started(folders["new"], state=state) as client, monkeypatch.context() as patch:
        for url in ("/search?collection=doors", f"{EILEEN}/faces"):
            refused = client.post(url, content=encode(portrait("eileen")), headers=PNG)
            assert refused.status_code == 409
            assert f"POST {REEMBED} computes them again" in refused.json()["detail"]
        assert client.get("/collections/doors").json()["reembedding"] is None
        patch.setattr(ReembeddingWorker, "claim", lambda *_: False)
        assert client.post(REEMBED, json={}).status_code == 202
    with started(folders["newest"], state=state) as client:
        assert "restore its weights, or cancel" in wait_for_progress(client, state="blocked")["problem"]
    with started(folders["new"], state=state) as client:
        wait_for_switch(client)
        assert find(client, "eileen") == "mobilefacenet-triplet"
