"""Collections embedded anew over HTTP, by two random embedders: the same people are found before, during and after."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image
from typer.testing import CliRunner

from app.cli.main import cli
from app.errors import DamagedImage, Overloaded
from app.gallery import reembedding
from app.gallery.bulk import enrolment
from app.gallery.embedding_pipeline import Pipeline, Sight
from app.gallery.schemas import NewEmbedder
from app.inference.batcher import Priority
from app.inference.loaded_model import LoadedModel
from app.main import create_app
from app.settings import PROJECT, Settings
from index.embedded.gallery import EmbeddedGallery
from index.embedded.tasks.reembedding import Worker
from models import checkpoint
from models.registry import build, configure
from tests.app.conftest import BASE_URL
from tests.app.embedder import MATCHING, PREPROCESS, random_embedder
from tests.app.face_pictures import grace_hopper
from tests.app.gallery.test_bulk import ZIP, finished, send, zipped
from tests.app.server.test_process import serving
from tests.app.threaded import serving_here
from tests.conftest import encode, photo

PNG = {"content-type": "image/png"}
PEOPLE = ("eileen", "grace")


def other_embedder(weights: Path, name: str = "better", seed: int = 7) -> None:
    """Another embedder of random weights, of other dimensions, in the folder."""
    changes = {"backbone_config": {"depths": [1, 1], "widths": [8, 16]}, "dimensions": 48}
    torch.manual_seed(seed)
    network = build("embedder", changes)
    with torch.no_grad():
        network.train()
        network(torch.randn(64, 3, 112, 112))
    card: dict[str, Any] = {
        "description": "random",
        "task": "embed",
        "architecture": "embedder",
        "config": asdict(configure("embedder", changes)),
        "preprocess": PREPROCESS,
        "data": "none",
        "source": "this test",
        "license": "Apache-2.0",
    }
    checkpoint.save(weights / name, network.eval(), name=name, matching=MATCHING, **card)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    random_embedder(folder)
    other_embedder(folder)
    (folder / "vgg-cifar10").symlink_to(PROJECT / "weights" / "vgg-cifar10")
    return folder


@pytest.fixture(scope="module")
def service(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(reembedding, "POLL_S", 0.05)
        patched.setattr(enrolment, "POLL_S", 0.05)
        state = tmp_path_factory.mktemp("state")
        settings = Settings(weights=weights, default_classifier="lenet5-mnist", state=state, upkeep_s=0.05)
        with TestClient(create_app(settings), base_url=BASE_URL, raise_server_exceptions=False) as client:
            client.app_state["state"] = state
            yield client


@pytest.fixture
def gallery(service: TestClient) -> Iterator[TestClient]:
    assert service.put("/collections/doors", json={"keep_crops": True}).status_code == 201
    yield service
    assert service.delete("/collections/doors").status_code == 200


def picture(person: str) -> Image.Image:
    return photo("astronaut") if person == "eileen" else grace_hopper()


def enrol(client: TestClient | httpx.Client, person: str, collection: str = "doors") -> None:
    url = f"/collections/{collection}/subjects/{person}/faces"
    response = client.post(url, content=encode(picture(person)), headers=PNG)
    assert response.status_code == 200, response.text
    assert len(response.json()["indexed"]) == 1


def found(client: TestClient, person: str, **query: str) -> dict[str, Any]:
    """The search's answer, whose first candidate must be the person."""
    params = {"collection": "doors", "fpir": "0.5", **query}
    response = client.post("/search", params=params, content=encode(picture(person)), headers=PNG)
    assert response.status_code == 200, response.text
    answer = dict(response.json())
    best = answer["data"][0]["faces"][0]["candidates"][0]
    assert best["subject_id"] == person
    assert best["distance"] < 0.05  # the crop was kept as WebP, which loses something
    return answer


def switched(client: TestClient | httpx.Client, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while (response := client.get("/collections/doors/reembed")).status_code != 404:
        assert time.monotonic() < deadline, response.text
        time.sleep(0.02)


def told(client: TestClient, **expected: object) -> dict[str, Any]:
    """The progress, when it is as expected."""
    deadline = time.monotonic() + 60
    while True:
        now = dict(client.get("/collections/doors/reembed").raise_for_status().json())
        if now | expected == now:
            also = client.get("/collections/doors").json()["reembedding"]
            assert also | {"state": now["state"]} == now  # the worker may have begun between the two answers
            return now
        assert time.monotonic() < deadline, now
        time.sleep(0.02)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Nothing is embedded anew before this is called."""
    with monkeypatch.context() as patched:
        of_crop = Pipeline.of_crop
        free: list[bool] = []

        async def later(self: Pipeline, *arguments: Any) -> Any:
            if not free:
                raise Overloaded("the queue is full")
            return await of_crop(self, *arguments)

        patched.setattr(Pipeline, "of_crop", later)
        yield lambda: free.append(True)
        free.append(True)


def test_the_same_people_are_found_before_meanwhile_and_after(gallery: TestClient, held: Callable[[], None]) -> None:
    enrol(gallery, "eileen")
    second = EmbeddedGallery(gallery.app_state["state"] / "gallery")
    before = gallery.get("/collections/doors").json()
    assert before["reembedding"] is None
    assert second.size("doors") == 1
    begun = gallery.post("/collections/doors/reembed", json={"embedder": "better"})
    assert begun.status_code == 202, begun.text
    now = begun.json()
    assert (now["embedder"], now["dimensions"], now["faces"], now["done"]) == ("better", 48, 1, 0)
    assert now["state"] == "queued"
    assert now["fingerprint"].startswith("better:")
    assert gallery.post("/collections/doors/reembed", json={}).status_code == 409
    # The old pipeline serves: who is enrolled comes along, who is erased does not.
    enrol(gallery, "grace")
    enrol(gallery, "grace")
    (face,) = gallery.get("/collections/doors/subjects/grace/faces").json()["data"][1:]
    gallery.delete(f"/collections/doors/faces/{face['id']}")
    told(gallery, faces=2, done=0)
    for person in PEOPLE:
        assert found(gallery, person)["model"] == "mobilefacenet-triplet"
    held()
    switched(gallery)
    after = gallery.get("/collections/doors").json()
    assert after["reembedding"] is None
    assert (after["embedder"], after["dimensions"], after["fingerprint"]) == ("better", 48, now["fingerprint"])
    assert (after["subjects"], after["faces"], after["keep_crops"]) == (2, 2, True)
    for person in PEOPLE:
        assert found(gallery, person)["model"] == "better"
    enrol(gallery, "eileen")
    assert second.collection("doors").fingerprint == now["fingerprint"]
    assert second.size("doors") == 3
    second.close()
    deadline = time.monotonic() + 60
    while gallery.get(f"/erasures/{now['erasure']}").json()["status"] != "erased":
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_is_done_in_the_background_lets_those_go_first_who_wait(
    gallery: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    lanes: set[tuple[str, str]] = set()
    infer = LoadedModel.infer

    async def noted(self: LoadedModel, item: torch.Tensor, wait_s: float, lane: Priority) -> Any:
        lanes.add((self.card.name, lane))
        return await infer(self, item, wait_s, lane)

    monkeypatch.setattr(LoadedModel, "infer", noted)
    enrol(gallery, "eileen")
    assert lanes == {("centerface", "interactive"), ("mobilefacenet-triplet", "interactive")}
    lanes.clear()
    finished(gallery, send(gallery, zipped({"grace/1.png": encode(picture("grace"))}), ZIP))
    assert lanes == {("centerface", "background"), ("mobilefacenet-triplet", "background")}
    lanes.clear()
    gallery.post("/collections/doors/reembed", json={"embedder": "better"})
    switched(gallery)
    assert lanes == {("better", "background")}


def test_without_crops_it_says_what_is_needed(service: TestClient) -> None:
    service.put("/collections/bare", json={})
    enrol(service, "eileen", "bare")
    refused = service.post("/collections/bare/reembed", json={"embedder": "better"})
    assert (refused.status_code, refused.json()["type"]) == (409, "urn:vestibule:problem:conflict")
    assert "1 of 1 faces of 'bare' have no crop" in refused.json()["detail"]
    assert "in a new collection of better" in refused.json()["detail"]
    assert service.get("/collections/bare/reembed").status_code == 404
    assert service.delete("/collections/bare/reembed").status_code == 404
    service.put("/collections/like", json={"embedder": "vgg-cifar10", "keep_crops": True})
    enrol(service, "eileen", "like")
    for asked, detail in (
        ({"embedder": "better"}, "1 of 1 faces of 'like' have no crop"),
        ({}, "crops are kept of faces only"),
        ({"embedder": "vgg-cifar10"}, "vgg-cifar10 sees whole pictures"),
    ):
        refused = service.post("/collections/like/reembed", json=asked)
        assert refused.status_code == 409
        assert detail in refused.json()["detail"]
    for name, body, status in (
        ("bare", {"embedder": "nobody"}, 422),
        ("bare", {"embedder": None}, 409),  # it has those vectors
        ("nowhere", {}, 404),
    ):
        assert service.post(f"/collections/{name}/reembed", json=body).status_code == status
    for name in ("bare", "like"):
        service.delete(f"/collections/{name}")


def test_the_command_moves_a_collection_and_waits(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reembedding, "POLL_S", 0.05)
    settings = Settings(weights=weights, default_classifier="lenet5-mnist", state=tmp_path, upkeep_s=0.05)
    with serving_here(settings) as url, httpx.Client(base_url=url) as client:
        for name, crops in (("doors", True), ("bare", False)):
            client.put(f"/collections/{name}", json={"keep_crops": crops}).raise_for_status()
            enrol(client, "eileen", name)
        command = ["gallery", "reembed", "--url", url]
        result = CliRunner().invoke(cli, [*command, "doors", "better"])
        assert result.exit_code == 0, result.output
        assert "doors has vectors of better, " in result.stdout
        assert client.get("/collections/doors").json()["embedder"] == "better"
        receipt = result.stdout.split()[-1]
        assert client.get(f"/erasures/{receipt}").status_code == 200
        for collection, embedder, message in (
            ("doors", "better", "doors"),  # it has those vectors
            ("bare", "better", "1 of 1 faces of 'bare' have no crop"),
            ("nowhere", "better", "nowhere"),
            ("bare", "nobody", "nobody"),
        ):
            result = CliRunner().invoke(cli, [*command, collection, embedder])
            assert result.exit_code == 1
            assert message in result.stderr


def test_the_command_follows_one_that_is_under_way_and_names_what_blocks_it(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def damaged(*_: Any) -> Any:
        raise DamagedImage("it is broken")

    monkeypatch.setattr(reembedding, "POLL_S", 0.05)
    monkeypatch.setattr(Pipeline, "of_crop", damaged)
    settings = Settings(weights=weights, default_classifier="lenet5-mnist", state=tmp_path, upkeep_s=0.05)
    with serving_here(settings) as url, httpx.Client(base_url=url) as client:
        client.put("/collections/doors", json={"keep_crops": True}).raise_for_status()
        enrol(client, "eileen")
        client.post("/collections/doors/reembed", json={"embedder": "better"}).raise_for_status()
        result = CliRunner().invoke(cli, ["gallery", "reembed", "doors", "better", "--url", url])
        assert result.exit_code == 1
        assert "the re-embedding is blocked: 1 faces have no crop that can be read" in result.stderr


def test_it_is_cancelled(gallery: TestClient, held: Callable[[], None]) -> None:
    enrol(gallery, "eileen")
    gallery.post("/collections/doors/reembed", json={"embedder": "better"})
    over = gallery.delete("/collections/doors/reembed")
    assert (over.status_code, over.json()["state"], over.json()["done"]) == (200, "cancelled", 0)
    assert gallery.get("/collections/doors/reembed").status_code == 404
    held()
    assert found(gallery, "eileen")["model"] == "mobilefacenet-triplet"


def test_a_crop_that_cannot_be_read_is_told_of(gallery: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    enrol(gallery, "eileen")
    enrol(gallery, "grace")
    of_crop = Pipeline.of_crop
    refused: list[bytes] = []

    async def damaged(self: Pipeline, model: Any, crop: bytes) -> Any:
        if crop in (refused or [crop]):
            refused.append(crop)
            raise DamagedImage("it is broken")
        return await of_crop(self, model, crop)

    monkeypatch.setattr(Pipeline, "of_crop", damaged)
    monkeypatch.setattr(reembedding, "CROPS", 1)
    gallery.post("/collections/doors/reembed", json={"embedder": "better"})
    now = told(gallery, state="blocked", done=1)
    assert now["problem"].startswith("1 faces have no crop that can be read")
    assert found(gallery, "eileen")["model"] == "mobilefacenet-triplet"
    gallery.delete("/collections/doors/reembed")


def test_feedback_follows(gallery: TestClient, held: Callable[[], None]) -> None:
    enrol(gallery, "eileen")
    url = "/collections/doors/subjects/eileen/feedback"
    assert gallery.post(url, content=encode(picture("grace")), headers=PNG).status_code == 201
    gallery.post("/collections/doors/reembed", json={"embedder": "better"})
    assert told(gallery, feedback=1, feedback_lost=0)
    held()
    switched(gallery)
    params = {"collection": "doors", "fpir": "0.5"}
    answer = gallery.post("/search", params=params, content=encode(picture("grace")), headers=PNG).json()
    assert answer["data"][0]["faces"][0]["candidates"] == []
    verified = gallery.post(
        "/collections/doors/subjects/eileen/verify?fmr=0.1", content=encode(picture("grace")), headers=PNG
    )
    assert (verified.json()["denied"], verified.json()["model"]) == (True, "better")


@pytest.mark.parametrize("call", ["search", "enrol", "verify", "feedback", "bulk"])
def test_a_request_that_is_overtaken_by_the_switch_is_answered_after_it(
    gallery: TestClient, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    enrol(gallery, "eileen")
    seen = Pipeline.seen
    overtaken: list[str] = []

    async def after_the_switch(self: Pipeline, sight: Sight, data: bytes) -> Any:
        answer = await seen(self, sight, data)
        if not overtaken:
            overtaken.append(sight.model.card.name)
            begun = gallery.app.state.galleries.reembedder  # type: ignore[attr-defined]
            await begun.begin("doors", NewEmbedder(embedder="better"), None)
            while await begun.told("doors") is not None:  # noqa: ASYNC110  it has no event for what others wait for
                await asyncio.sleep(0.02)
        return answer

    monkeypatch.setattr(Pipeline, "seen", after_the_switch)
    send_it = {"content": encode(picture("eileen")), "headers": PNG}
    if call == "search":
        assert found(gallery, "eileen")["model"] == "better"
    elif call == "enrol":
        enrol(gallery, "eileen")
        assert gallery.get("/collections/doors/subjects/eileen").json()["faces"] == 2
    elif call == "bulk":
        job = send(gallery, zipped({"eileen/1.png": encode(picture("eileen"))}), ZIP)
        assert finished(gallery, job)["items"]["enrolled"] == 1
    else:
        response = gallery.post(f"/collections/doors/subjects/eileen/{call}", **send_it)  # type: ignore[arg-type]
        assert response.status_code == (200 if call == "verify" else 201), response.text
    assert overtaken == ["mobilefacenet-triplet"]
    assert gallery.get("/collections/doors").json()["embedder"] == "better"
    if call != "feedback":
        found(gallery, "eileen")


def test_other_weights_of_the_same_name_change_nothing_by_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reembedding, "POLL_S", 0.05)
    settings = {"default_classifier": "lenet5-mnist", "state": tmp_path / "state", "upkeep_s": 0.05}
    folders = {name: tmp_path / name for name in ("old", "new", "newest")}
    for seed, folder in enumerate(folders.values()):
        folder.mkdir()
        random_embedder(folder)
        if seed:
            (folder / "mobilefacenet-triplet" / "card.json").unlink()
            (folder / "mobilefacenet-triplet" / "model.safetensors").unlink()
            other_embedder(folder, "mobilefacenet-triplet", seed)

    def service(name: str) -> TestClient:
        app = create_app(Settings(weights=folders[name], **settings))  # type: ignore[arg-type]
        return TestClient(app, base_url=BASE_URL, raise_server_exceptions=False)

    with service("old") as client:
        client.put("/collections/doors", json={"keep_crops": True})
        enrol(client, "eileen")
    image = encode(picture("eileen"))
    with service("new") as client, monkeypatch.context() as patched:
        for url in ("/search?collection=doors", "/collections/doors/subjects/eileen/faces"):
            refused = client.post(url, content=image, headers=PNG)
            assert refused.status_code == 409
            assert "POST /collections/doors/reembed makes them anew" in refused.json()["detail"]
        assert client.get("/collections/doors").json()["reembedding"] is None
        patched.setattr(Worker, "claim", lambda *_: False)
        assert client.post("/collections/doors/reembed", json={}).status_code == 202
    with service("newest") as client:
        now = told(client, state="blocked")
        assert "put its weights back, or cancel" in now["problem"]
    with service("new") as client:
        switched(client)
        assert found(client, "eileen")["model"] == "mobilefacenet-triplet"


@pytest.mark.slow
def test_a_kill_in_the_middle_is_gone_on_from(weights: Path, tmp_path: Path) -> None:
    settings = {
        "VESTIBULE_WEIGHTS": str(weights),
        "VESTIBULE_STATE": str(tmp_path / "state"),
        "VESTIBULE_DEFAULT_CLASSIFIER": "lenet5-mnist",
    }
    count = 40
    for attempt in range(2):
        with serving(**settings) as (process, address, _), httpx.Client(base_url=address, timeout=60) as client:
            if attempt == 0:
                client.put("/collections/doors", json={"keep_crops": True}).raise_for_status()
                image = encode(picture("eileen"))
                for number in range(count):
                    url = f"/collections/doors/subjects/p{number}/faces"
                    client.post(url, content=image, headers=PNG).raise_for_status()
                client.post("/collections/doors/reembed", json={"embedder": "better"}).raise_for_status()
                while client.get("/collections/doors/reembed").raise_for_status().json()["done"] == 0:
                    time.sleep(0.005)
                os.kill(process.pid, signal.SIGKILL)
            else:
                switched(client)
                detail = client.get("/collections/doors").json()
                assert (detail["embedder"], detail["faces"]) == ("better", count)
