"""Reload models while the service runs: no request is lost, damaged files are refused, the old model is freed."""

from __future__ import annotations

import asyncio
import gc
import json
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from torch import Tensor, nn

from app.auth.keys import ApiKeys
from app.errors import ModelRefused, NotReady, UnknownModel
from app.gallery.embedding_pipeline import ImageEmbedder
from app.inference import reload_sync
from app.inference.batcher import Batcher
from app.inference.loaded_model import LoadedModel
from app.inference.model_manager import ModelManager, ReloadResult
from app.inference.predictor import Predictor
from app.inference.reload_sync import ReloadSync
from app.inference.submodels import WHOLE
from app.main import create_app
from app.models_api.service import Models
from app.observability.metrics import Metrics
from app.settings import Settings
from index.embedded.reloads import FileReloads
from index.factory import open_keys
from models import checkpoint
from models.lenet import LeNet1989
from models.runtime import Runtime, TorchRuntime
from models.runtime_selection import RuntimeComparison, RuntimeSelector
from models.timing import RunWork
from tests.app.async_test import async_test, until
from tests.app.conftest import BASE_URL
from tests.app.embedder import random_embedder
from tests.app.face_pictures import grace_hopper
from tests.app.generators import random_generators
from tests.app.tiny_model import GatedRuntime, model_manager, tiny_model
from tests.conftest import encode, photo

PNG = {"content-type": "image/png"}
IMAGE = torch.zeros(1, 16, 16)
SMALL = encode(photo("coffee").resize((24, 16)))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    weights = tmp_path / "weights"
    tiny_model(weights)
    tiny_model(weights, "other", seed=1)
    return Settings(weights=weights, default_classifier="tiny", state=tmp_path / "state")


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(settings), base_url=BASE_URL) as running:
        yield running


def version(settings: Settings, name: str = "tiny") -> str:
    return checkpoint.read_card(settings.weights / name).version


def expected_output(settings: Settings) -> Tensor:
    module, _ = checkpoint.load(settings.weights / "tiny")
    with torch.inference_mode():
        return module(IMAGE[None])[0]  # type: ignore[no-any-return]


def classify(client: TestClient, model: str = "tiny") -> dict[str, Any]:
    response = client.post(f"/classify?model={model}", content=SMALL, headers=PNG)
    assert response.status_code == 200, response.text
    return dict(response.json())


def reload(client: TestClient, name: str) -> Any:
    return client.post(f"/models/{name}/reload")


def change_weights(folder: Path, change: Callable[[Tensor], object]) -> None:
    """Save the model again with changed parameters."""
    module, card = checkpoint.load(folder)
    with torch.no_grad():
        for parameter in module.parameters():
            change(parameter)
    fields = card.model_dump(exclude={"sha256", "parameters", "schema_version", "matching"}, exclude_unset=True)
    checkpoint.save(folder, module, **fields, matching=card.matching)


def copy_centerface(weights: Path) -> None:
    """Replace the link to the shipped detector by a copy, which may be changed."""
    shipped = (weights / "centerface").resolve()
    (weights / "centerface").unlink()
    shutil.copytree(shipped, weights / "centerface")


@async_test
async def test_earlier_requests_get_the_old_weights_and_later_ones_the_new(settings: Settings) -> None:
    before = expected_output(settings)
    async with model_manager(settings) as manager:
        old = await manager.load("tiny", "classify")
        gated = GatedRuntime("gated", TorchRuntime(checkpoint.load(settings.weights / "tiny")[0], torch.device("cpu")))
        old.runtime = gated
        early = [asyncio.create_task(old.infer(IMAGE, 20)) for _ in range(100)]
        await asyncio.to_thread(gated.entered.wait, 10)
        tiny_model(settings.weights, seed=5)
        reloading = asyncio.create_task(manager.reload("tiny"))
        # The new model waits for the compute thread, on which it is checked before it replaces the old one.
        await asyncio.sleep(0.1)
        assert await manager.load("tiny", "classify") is old
        gated.gate.set()
        reloaded = await reloading
        card = checkpoint.read_card(settings.weights / "tiny")
        assert (reloaded.change, reloaded.before, reloaded.now) == ("reloaded", old.card, card)
        new = await manager.load("tiny", "classify")
        assert (new.card.version, new.card) == (version(settings), manager.cards["tiny"])
        assert old.retired
        for result in [*await asyncio.gather(*early), await old.infer(IMAGE, 20)]:
            torch.testing.assert_close(result.output, before, rtol=1e-4, atol=1e-5)
        output = (await new.infer(IMAGE, 20)).output
        torch.testing.assert_close(output, expected_output(settings), rtol=1e-4, atol=1e-5)


def test_open_inference_reports_the_version_that_computed_the_output(
    client: TestClient, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager: ModelManager = client.app.state.model_manager  # type: ignore[attr-defined]
    load_submodel = manager.load_submodel

    async def reload_first(*arguments: Any) -> LoadedModel:
        await manager.reload("tiny")
        return await load_submodel(*arguments)

    pixels = {"name": "pictures", "shape": [1, 1, 16, 16], "datatype": "FP32", "data": IMAGE.flatten().tolist()}
    body = {"inputs": [pixels], "outputs": [{"name": "logits"}]}
    before = version(settings)
    tiny_model(settings.weights, seed=5)
    monkeypatch.setattr(manager, "load_submodel", reload_first)
    response = client.post("/v2/models/tiny/infer", json=body).json()
    assert before != response["model_version"] == version(settings)
    (logits,) = response["outputs"]
    torch.testing.assert_close(torch.tensor(logits["data"]), expected_output(settings), rtol=1e-4, atol=1e-5)
    tiny_model(settings.weights, seed=6)
    gone = client.post(f"/v2/models/tiny/versions/{response['model_version']}/infer", json=body)
    assert (gone.status_code, version(settings) in gone.json()["error"]) == (404, True)


def _truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def _replace_by_another_model(folder: Path) -> None:
    tiny_model(folder.parent, "elsewhere")
    shutil.copytree(folder.parent / "elsewhere", folder, dirs_exist_ok=True)
    shutil.rmtree(folder.parent / "elsewhere")


def _change_size(folder: Path) -> None:
    card = checkpoint.read_card(folder)
    wrong = card.preprocess.model_copy(update={"size": (28, 28)})
    checkpoint.write_card(folder, card.model_copy(update={"preprocess": wrong}))


def _damage_card(folder: Path) -> None:
    (folder / "card.json").write_text('{"name": "tiny"}')


def _fill(value: float) -> Callable[[Path], None]:
    return lambda folder: change_weights(folder, lambda parameter: parameter.fill_(value))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_truncate, "model.safetensors: sha256 is"),
        (_replace_by_another_model, "its card is that of elsewhere"),
        (_change_size, "16"),
        (_damage_card, "card.json: "),
        (_fill(float("nan")), "NaN"),
        (_fill(3e38), "NaN"),  # so large that the layers overflow
    ],
)
def test_damaged_model_is_refused_and_the_old_one_serves(
    client: TestClient, settings: Settings, damage: Callable[[Path], None], reason: str
) -> None:
    before = classify(client)
    damage(settings.weights / "tiny")
    response = reload(client, "tiny")
    assert (response.status_code, response.json()["type"]) == (422, "urn:vestibule:problem:model-refused")
    assert reason in response.json()["detail"]
    assert str(settings.weights) not in response.text
    assert classify(client) == before
    tiny_model(settings.weights, seed=3)
    assert reload(client, "tiny").json()["change"] == "reloaded"
    metrics = client.get("/metrics").text
    assert 'vestibule_reloads_total{model="tiny",outcome="refused"} 1.0' in metrics
    assert 'vestibule_reloads_total{model="tiny",outcome="reloaded"} 1.0' in metrics
    assert metrics.count("vestibule_model_loaded{") == 1
    assert f'vestibule_model_loaded{{model="tiny",version="{version(settings)}"}} 1.0' in metrics


def test_service_does_not_start_with_a_default_model_whose_output_is_nan(settings: Settings) -> None:
    _fill(float("nan"))(settings.weights / "tiny")
    with pytest.raises(NotReady, match="tiny are incomplete"), TestClient(create_app(settings)):
        pass


def test_models_are_added_and_removed_by_reload_only(client: TestClient, settings: Settings) -> None:
    def names() -> list[str]:
        return [model["name"] for model in client.get("/models").json()["data"]]

    tiny_model(settings.weights, "new", seed=2)
    assert names() == ["other", "tiny"]
    added = {"model": "new", "change": "added", "version": version(settings, "new"), "previous": None}
    assert reload(client, "new").json() == added
    assert names() == ["new", "other", "tiny"]
    assert classify(client, "new")["version"] == version(settings, "new")
    assert reload(client, "new").json()["change"] == "unchanged"
    shutil.rmtree(settings.weights / "new")
    assert classify(client, "new")
    removed = reload(client, "new").json()
    assert (removed["change"], removed["version"]) == ("removed", None)
    assert client.post("/classify?model=new", content=SMALL, headers=PNG).status_code == 422
    assert reload(client, "new").status_code == 404
    for name in ("..", "%2e%2e", ".hidden", "A"):
        assert reload(client, name).status_code in (404, 405, 422)


def test_default_classifier_cannot_be_removed(client: TestClient, settings: Settings, tmp_path: Path) -> None:
    (settings.weights / "tiny").rename(tmp_path / "moved")
    response = reload(client, "tiny")
    assert (response.status_code, response.json()["type"]) == (409, "urn:vestibule:problem:conflict")
    assert classify(client)
    random_generators(tmp_path)
    shutil.copytree(tmp_path / "cvae-mnist", settings.weights / "tiny")
    card = json.loads((settings.weights / "tiny" / "card.json").read_text())
    (settings.weights / "tiny" / "card.json").write_text(json.dumps(card | {"name": "tiny"}))
    assert reload(client, "tiny").status_code == 409
    assert classify(client)


@async_test
async def test_replaced_files_do_not_serve_without_a_reload(settings: Settings) -> None:
    async with model_manager(settings) as manager:
        tiny_model(settings.weights, "other", seed=8)
        with pytest.raises(NotReady, match="POST /models/other/reload"):
            await manager.load("other", "classify")
        await manager.reload("other")
        assert (await manager.load("other", "classify")).card.version == version(settings, "other")


@async_test
async def test_cancelled_reload_is_completed_announced_and_audited(settings: Settings) -> None:
    async with model_manager(settings) as manager:
        await manager.start()
        folder = settings.state / "reloads"
        keys, other_worker = ApiKeys(open_keys(settings.state)), ReloadSync(FileReloads(folder))
        models = Models(manager, keys, ReloadSync(FileReloads(folder)))
        tiny_model(settings.weights, seed=8)
        cancelled = asyncio.create_task(models.reload("tiny", "somebody"))
        await asyncio.sleep(0)
        cancelled.cancel()
        await until(lambda: [entry.event.actor for entry in keys.audit.read()[0]] == ["somebody"])
        assert other_worker.take_changes() == ["tiny"]
        assert (await manager.load(None, "classify")).card.version == version(settings)
        results = await asyncio.gather(*(manager.reload("tiny") for _ in range(3)))
        assert [result.change for result in results] == ["unchanged"] * 3
        keys.close()


@async_test
async def test_failed_reload_of_another_worker_is_retried(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reload_sync, "POLL_S", 0.02)
    monkeypatch.setattr(reload_sync, "RETRY_S", 0.05)
    attempts: list[float] = []

    async with model_manager(settings) as manager:
        await manager.start()
        reload, run_io, reads = manager.reload, manager.executors.run_io, list[int]()

        async def record(name: str) -> ReloadResult:
            attempts.append(time.monotonic())
            return await reload(name)

        async def fail_once(function: Callable[[], Any]) -> Any:
            reads.append(0)
            if len(reads) == 1:
                raise OSError("too many open files")
            return await run_io(function)

        monkeypatch.setattr(manager, "reload", record)
        monkeypatch.setattr(manager.executors, "run_io", fail_once)
        folder = settings.state / "reloads"
        this_worker, other_worker = ReloadSync(FileReloads(folder)), ReloadSync(FileReloads(folder))
        following = asyncio.create_task(this_worker.follow(manager))
        before = version(settings)
        tiny_model(settings.weights, seed=8)
        path = settings.weights / "tiny" / "model.safetensors"
        weights = path.read_bytes()
        path.write_bytes(weights[:100])
        other_worker.announce("tiny")
        await until(lambda: len(attempts) >= 3)
        assert manager.cards["tiny"].version == before
        path.write_bytes(weights)
        await until(lambda: manager.cards["tiny"].version == version(settings) != before)
        count = len(attempts)
        await asyncio.sleep(0.5)
        assert len(attempts) == count  # no retry after a success
        following.cancel()
        await asyncio.wait([following])
    first, second = np.diff(attempts[:3])
    assert first >= 0.05
    assert second >= 0.1


@async_test
async def test_reload_during_a_load_keeps_the_loaded_model(settings: Settings) -> None:
    async with model_manager(settings) as manager:
        loading = asyncio.create_task(manager.load("other", "classify"))
        await asyncio.sleep(0)
        reloading = asyncio.create_task(manager.reload("other"))
        model = await loading
        assert (await reloading).change == "unchanged"
        assert await manager.load("other", "classify") is model


@async_test
async def test_a_removed_model_is_not_loaded(settings: Settings) -> None:
    async with model_manager(settings) as manager:
        card = manager.find_card("other", "classify")
        (settings.weights / "other" / "model.safetensors").unlink()
        with pytest.raises(ModelRefused):
            await manager.reload("other")
        shutil.rmtree(settings.weights / "other")
        assert (await manager.reload("other")).change == "removed"
        with pytest.raises(UnknownModel, match="removed"):
            await manager.load_submodel(card, WHOLE)


def test_etag_of_generated_images_depends_on_the_weights(tmp_path: Path) -> None:
    random_generators(tmp_path)
    settings = Settings(weights=tmp_path, default_classifier="lenet5-mnist", state=tmp_path / "state")
    url = "/generate?model=cvae-mnist&seed=1&n=2"
    with TestClient(create_app(settings), base_url=BASE_URL) as client:
        before = client.get(url)
        headers = {"if-none-match": before.headers["etag"]}
        assert client.get(url, headers=headers).status_code == 304
        change_weights(tmp_path / "cvae-mnist", lambda parameter: parameter.mul_(1.1))
        assert client.get(url).headers["etag"] == before.headers["etag"]
        assert reload(client, "cvae-mnist").json()["change"] == "reloaded"
        after = client.get(url, headers=headers)
        assert after.status_code == 200
        assert after.headers["etag"] != before.headers["etag"]
        assert after.content != before.content
        reported = client.get(url + "&format=json").json()["version"]
        assert reported == version(settings, "cvae-mnist") == client.get("/models/cvae-mnist").json()["version"]


@pytest.mark.parametrize("name", ["mobilefacenet-triplet", "centerface"])
def test_collection_refuses_vectors_of_a_reloaded_pipeline(tmp_path: Path, name: str) -> None:
    random_embedder(tmp_path)
    copy_centerface(tmp_path)
    settings = Settings(weights=tmp_path, default_classifier="lenet5-mnist", state=tmp_path / "state")
    content = encode(grace_hopper())
    with TestClient(create_app(settings), base_url=BASE_URL) as client:
        fingerprint = client.put("/collections/doors", json={"keep_crops": True}).json()["fingerprint"]
        client.post("/collections/doors/subjects/grace/faces", content=content, headers=PNG)
        change_weights(tmp_path / name, lambda parameter: parameter.mul_(1.001))
        assert client.post("/search?collection=doors", content=content, headers=PNG).status_code == 200
        assert reload(client, name).json()["change"] == "reloaded"
        for url in ("/search?collection=doors", "/collections/doors/subjects/grace/faces"):
            response = client.post(url, content=content, headers=PNG)
            assert response.status_code == 409
            assert "reembed" in response.json()["detail"]
        assert client.put("/collections/others", json={}).json()["fingerprint"] != fingerprint


def test_collection_refuses_an_image_whose_vector_is_zero(client: TestClient, settings: Settings) -> None:
    change_weights(settings.weights / "other", lambda parameter: parameter.zero_())
    assert reload(client, "other").json()["change"] == "reloaded"
    assert client.put("/collections/doors", json={"embedder": "other"}).status_code == 201
    response = client.post("/collections/doors/subjects/a/faces", content=SMALL, headers=PNG)
    assert (response.status_code, response.json()["detail"]) == (422, "a vector of zeros has no direction")


@async_test
async def test_pipeline_in_use_keeps_its_detector_after_a_reload(tmp_path: Path) -> None:
    random_embedder(tmp_path)
    copy_centerface(tmp_path)
    settings = Settings(weights=tmp_path, default_classifier="lenet5-mnist")
    image = encode(grace_hopper())
    async with model_manager(settings) as manager:
        embedder = ImageEmbedder(Predictor(settings, manager))
        pipeline = await embedder.pipeline(None)
        fingerprint = pipeline.fingerprint
        (before,) = await embedder.embed_image(pipeline, image)
        change_weights(tmp_path / "centerface", lambda parameter: parameter.zero_())  # it detects no face
        assert (await manager.reload("centerface")).change == "reloaded"
        (after,) = await embedder.embed_image(pipeline, image)
        assert torch.equal(before.vector, after.vector)
        reloaded = await embedder.pipeline(None)
        assert pipeline.fingerprint == fingerprint != reloaded.fingerprint
        assert await embedder.embed_image(reloaded, image) == []


@async_test
async def test_fifty_reloads_leak_nothing(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def select(
        choice: RuntimeSelector, reference: Runtime, images: Path, turn: RunWork
    ) -> tuple[Runtime, RuntimeComparison | None]:
        turn(lambda: None)
        return reference, None

    def count_objects() -> dict[str, int]:
        kinds: tuple[type, ...] = (LoadedModel, Batcher, LeNet1989, RuntimeSelector, asyncio.Task, TorchRuntime)
        objects = Counter(map(type, gc.get_objects()))
        counts = {"threads": threading.active_count(), "tasks": len(asyncio.all_tasks())}
        return counts | {kind.__name__: objects[kind] for kind in kinds}

    monkeypatch.setattr(RuntimeSelector, "select", select)
    async with model_manager(settings.model_copy(update={"runtime": "auto"})) as manager:

        async def reload_and_infer(seed: int) -> None:
            tiny_model(settings.weights, seed=seed)
            assert (await manager.reload("tiny")).change == "reloaded"
            model = await manager.load(None, "classify")
            await model.infer(IMAGE, 10)
            await until(lambda: model.choice is None)

        await manager.start()
        for seed in range(1, 4):  # creates the objects that are created once
            await reload_and_infer(seed)
        await asyncio.sleep(0.05)
        gc.collect()
        before = count_objects()
        gc.disable()
        try:
            for seed in range(4, 54):
                await reload_and_infer(seed)
            await until(lambda: len(manager.cache.models) == 1)  # without the garbage collector
        finally:
            gc.enable()
        gc.collect()
        await until(lambda: all(count <= before[name] for name, count in count_objects().items()))
        assert manager.cache.retired_bytes == 0


def model_bytes(settings: Settings) -> int:
    module, _ = checkpoint.load(settings.weights / "tiny")
    return sum(value.nbytes for value in module.state_dict().values())


@async_test
async def test_least_recently_used_model_is_evicted_and_finishes_its_requests(settings: Settings) -> None:
    tiny_model(settings.weights, "third", seed=2)
    metrics = Metrics()

    def evictions(name: str) -> float:
        return metrics.registry.get_sample_value("vestibule_evictions_total", {"model": name}) or 0

    async with model_manager(settings, metrics) as manager:
        cache, size = manager.cache, model_bytes(settings)
        assert cache.budget is None
        cache.budget = 2 * size
        await manager.start()
        other = await manager.load("other", "classify")
        assert (cache.used_bytes, other.runtime.size) == (2 * size, size)
        gated = GatedRuntime("gated", TorchRuntime(nn.Flatten(), torch.device("cpu")), size)
        loading = asyncio.create_task(manager.load("third", "classify"))
        other.runtime = gated
        early = asyncio.create_task(other.infer(IMAGE, 10))
        await asyncio.to_thread(gated.entered.wait, 10)
        await asyncio.sleep(0.01)
        gated.gate.set()
        await loading
        # The default classifier was used before the other model, but is never evicted.
        assert [manager.is_loaded(name) for name in ("tiny", "other", "third")] == [True, False, True]
        assert [evictions(name) for name in ("tiny", "other", "third")] == [0, 1, 0]
        assert other.retired
        assert (await early).output.shape == (256,)
        assert cache.used_bytes == 2 * size
        assert await manager.load("other", "classify") is not other
        assert not manager.is_loaded("third")


def test_memory_is_reported_with_the_budget_of_the_settings(settings: Settings) -> None:
    size = model_bytes(settings)
    with TestClient(create_app(settings.model_copy(update={"model_memory_mb": 64})), base_url=BASE_URL) as client:
        classify(client, "other")
        models = client.get("/models").json()
        assert models["memory"] == {"used": 2 * size, "leaving": 0, "budget": 64 * 2**20}
        assert [model["memory_bytes"] for model in models["data"]] == [size, size]
        assert client.get("/models/other").json()["memory_bytes"] == size
        assert f'vestibule_model_bytes{{model="other"}} {float(size)}' in client.get("/metrics").text
