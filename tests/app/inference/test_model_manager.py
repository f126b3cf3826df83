"""Loading models, selecting runtimes, refusing damaged files, and errors under overload."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from torch import Tensor, nn
from torchvision.transforms.v2.functional import ten_crop

from app.errors import DeadlineExceeded, NotReady, OutOfMemory, Overloaded
from app.inference import loaded_model
from app.inference.loaded_model import LoadedModel
from app.inference.model_manager import ModelManager
from app.main import create_app
from app.observability.metrics import Metrics
from app.settings import Settings
from models import checkpoint, runtime
from models.card import ModelCard
from models.runtime import Runtime
from models.runtime_selection import RuntimeComparison, RuntimeSelector
from models.timing import RunWork
from tests.app.async_test import async_test, until
from tests.app.conftest import BASE_URL
from tests.app.tiny_model import GatedRuntime, model_manager, tiny_model
from tests.conftest import encode, photo

IMAGE = torch.zeros(1, 16, 16)
PNG = {"content-type": "image/png"}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    tiny_model(tmp_path)
    return Settings(weights=tmp_path, default_classifier="tiny")


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(settings), base_url=BASE_URL, raise_server_exceptions=False) as running:
        yield running


def classify(client: TestClient, query: str = "") -> Any:
    return client.post(f"/classify{query}", content=encode(photo("coffee")), headers=PNG)


def problem(response: Any) -> tuple[int, str]:
    return response.status_code, response.json()["type"].removeprefix("urn:vestibule:problem:")


@async_test
async def test_model_is_loaded_once_for_many_callers_and_despite_a_cancelled_one(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[Path] = []
    original = checkpoint.load

    def count(folder: Path) -> tuple[nn.Module, ModelCard]:
        loads.append(folder)
        return original(folder)

    monkeypatch.setattr(checkpoint, "load", count)
    async with model_manager(settings) as manager:
        assert not manager.is_loaded("tiny")
        first = asyncio.create_task(manager.load("tiny", "classify"))
        await asyncio.sleep(0)
        first.cancel()
        models = await asyncio.gather(*(manager.load(None, "classify") for _ in range(20)))
        assert len(set(models)) == 1
        assert manager.cache.submodels("tiny") == [models[0]]
    assert len(loads) == 1


@async_test
async def test_torch_serves_until_another_runtime_is_selected_and_no_request_is_lost(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, finish = threading.Event(), threading.Event()
    constant = GatedRuntime("constant", lambda batch: torch.full((len(batch), 10), 7.0))
    constant.gate.set()

    def select(
        choice: RuntimeSelector, reference: Runtime, images: Path, turn: RunWork
    ) -> tuple[Runtime, RuntimeComparison | None]:
        started.set()
        assert finish.wait(10)
        assert turn(lambda: threading.current_thread().name).startswith("compute")
        return constant, None

    async def infer_until_switched(model: LoadedModel) -> list[float]:
        outputs: list[float] = []
        while not outputs or (outputs[-1] != 7 and len(outputs) < 10_000):
            outputs.append(float((await model.infer(IMAGE, 10)).output[0]))
        return outputs

    monkeypatch.setattr(RuntimeSelector, "select", select)
    async with model_manager(settings.model_copy(update={"runtime": "auto"})) as manager:
        model = await manager.load(None, "classify")
        assert (model.runtime.name, model.choice is None) == ("torch-cpu-float32", False)
        first = float((await model.infer(IMAGE, 10)).output[0])
        await asyncio.to_thread(started.wait, 10)
        requests = [asyncio.create_task(infer_until_switched(model)) for _ in range(20)]
        await asyncio.sleep(0.02)
        finish.set()
        for outputs in await asyncio.gather(*requests):
            assert outputs[:-1] == [pytest.approx(first, abs=1e-5)] * (len(outputs) - 1)
            assert outputs[-1] == 7
        assert (model.runtime.name, model.choice is None) == ("constant", True)


@async_test
async def test_torch_serves_after_a_failed_selection(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def select(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(RuntimeSelector, "select", select)
    async with model_manager(settings.model_copy(update={"runtime": "auto"})) as manager:
        model = await manager.load(None, "classify")
        await until(lambda: model.choice is None)
        assert model.runtime.name == "torch-cpu-float32"
        assert (await model.infer(IMAGE, 10)).output.shape == (10,)


@async_test
async def test_stopping_cancels_the_selection(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []

    def select(choice: RuntimeSelector, reference: Runtime, images: Path, turn: RunWork) -> None:
        for number in range(10_000):
            turn(lambda number=number: steps.append(number))  # type: ignore[misc]
            time.sleep(0.001)
        pytest.fail("the selection was not cancelled")

    monkeypatch.setattr(RuntimeSelector, "select", select)
    async with model_manager(settings.model_copy(update={"runtime": "auto"})) as manager:
        model = await manager.load(None, "classify")
        await until(lambda: bool(steps))
    assert model.runtime.name == "torch-cpu-float32"


@async_test
async def test_outputs_are_those_of_the_network(settings: Settings) -> None:
    images = torch.randn(30, 1, 16, 16)
    module, _ = checkpoint.load(settings.weights / "tiny")
    with torch.inference_mode():
        expected = module(images)
    async with model_manager(settings) as manager:
        model = await manager.load("tiny", "classify")
        results = await asyncio.gather(*(model.infer(image, 10) for image in images))
        assert torch.allclose(torch.stack([result.output for result in results]), expected, atol=1e-5)
        assert max(result.size for result in results) > 1
    with pytest.raises(NotReady):
        await model.infer(images[0], 10)


@async_test
async def test_models_alternate_on_the_compute_thread(settings: Settings) -> None:
    tiny_model(settings.weights, "other")
    runtimes = {name: GatedRuntime(name) for name in ("tiny", "other")}
    batches, gate = runtimes["tiny"].batches, runtimes["tiny"].gate
    runtimes["other"].batches, runtimes["other"].gate = batches, gate
    async with model_manager(settings.model_copy(update={"max_batch": 4})) as manager:
        models = {name: await manager.load(name, "classify") for name in runtimes}
        for name, model in models.items():
            model.runtime = runtimes[name]
        many = [asyncio.create_task(models["tiny"].infer(IMAGE, 10)) for _ in range(400)]
        await until(lambda: len(batches) == 1)
        few = [asyncio.create_task(models["other"].infer(IMAGE, 10)) for _ in range(12)]
        await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(*few)
        assert not all(task.done() for task in many)
        await asyncio.gather(*many)
    assert batches[:6] == ["tiny", "other"] * 3
    assert "other" not in batches[6:]


@async_test
async def test_full_queue_and_expired_deadline_raise_their_errors(settings: Settings) -> None:
    async with model_manager(settings.model_copy(update={"queue_size": 2, "max_batch": 1})) as manager:
        model = await manager.load("tiny", "classify")
        results = await asyncio.gather(*(model.infer(IMAGE, 10) for _ in range(6)), return_exceptions=True)
        rejected = [result for result in results if isinstance(result, Overloaded)]
        assert rejected[0].headers == {"Retry-After": "1"}
        late = await asyncio.gather(*(model.infer(IMAGE, -1) for _ in range(2)), return_exceptions=True)
        assert all(isinstance(result, DeadlineExceeded) for result in late)


def test_image_over_device_memory_is_a_503_and_degrades_the_service(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager: ModelManager = client.app.state.model_manager  # type: ignore[attr-defined]

    def compute(batch: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    full = manager.cache.submodels("tiny")[0].runtime = GatedRuntime("full", compute)
    full.gate.set()
    response = classify(client)
    assert problem(response) == (503, "out-of-memory")
    assert response.headers["retry-after"] == "60"
    health = client.get("/health/ready")
    assert (health.status_code, health.json()["status"]) == (200, "degraded")
    (reason,) = health.json()["reasons"]
    assert "tiny" in reason
    assert 'vestibule_shed_total{model="tiny",where="memory"} 1.0' in client.get("/metrics").text
    monkeypatch.setattr(loaded_model, "DEGRADED_S", 0.0)
    assert client.get("/health/ready").json()["status"] == "ready"


@async_test
async def test_failed_load_for_lack_of_memory_is_retried_and_loaded_models_serve(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raise_out_of_memory(*_: object) -> Runtime:
        raise torch.OutOfMemoryError("CUDA out of memory")

    tiny_model(settings.weights, "other")
    async with model_manager(settings) as manager:
        await manager.start()
        with monkeypatch.context() as patched:
            patched.setattr(runtime, "prepare", raise_out_of_memory)
            for attempt in (lambda: manager.load("other", "classify"), lambda: manager.reload("tiny")):
                with pytest.raises(OutOfMemory, match="does not fit"):
                    await attempt()
        for name in ("tiny", "other"):
            assert (await manager.load(name, "classify")).card.name == name


def test_misnamed_and_damaged_folders_are_not_served(settings: Settings) -> None:
    tiny_model(settings.weights, "other")
    (settings.weights / "other").rename(settings.weights / "misnamed")
    (settings.weights / "broken").mkdir()
    (settings.weights / "broken" / "card.json").write_text("{}")
    assert list(ModelManager(settings, Metrics()).cards) == ["tiny"]


def test_weights_that_do_not_match_their_card_are_refused_until_restored(settings: Settings) -> None:
    tiny_model(settings.weights, "other")
    path = settings.weights / "other" / "model.safetensors"
    original = path.read_bytes()
    path.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
    with TestClient(create_app(settings), base_url=BASE_URL) as client:
        response = classify(client, "?model=other")
        assert problem(response) == (503, "not-ready")
        assert str(settings.weights) not in response.text
        path.write_bytes(original)
        assert classify(client, "?model=other").status_code == 200


@pytest.mark.parametrize("count", [1, 2])
def test_exceeded_deadline_is_a_504(settings: Settings, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    async def sleep(*_: object, **__: object) -> None:
        await asyncio.sleep(60)

    app = create_app(settings.model_copy(update={"deadline_s": 0.05}))
    with TestClient(app, base_url=BASE_URL) as client:
        monkeypatch.setattr(app.state.model_manager.executors, "run_cpu", sleep)
        response = client.post("/classify", files=[("file", ("a.png", encode(photo("coffee"))))] * count)
    if count > 1:
        assert [item["problem"]["status"] for item in response.json()["data"]] == [504, 504]
    else:
        assert response.status_code == 504


def test_unexpected_error_is_a_500_without_internals(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr(client.app.state.classification, "classify", fail)  # type: ignore[attr-defined]
    response = classify(client)
    assert response.status_code == 500
    assert response.json() == {
        "type": "urn:vestibule:problem:internal",
        "title": "Something went wrong on our side",
        "status": 500,
    }
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["x-request-id"]


@pytest.mark.parametrize("kind", ["flip", "ten-crop"])
def test_test_time_augmentation_is_the_mean_over_the_views(settings: Settings, kind: str) -> None:
    folder = settings.weights / "tiny"
    card = checkpoint.read_card(folder).model_copy(update={"tta": kind, "temperature": 2.0})
    checkpoint.write_card(folder, card)
    module, _ = checkpoint.load(folder)
    image = card.preprocess(photo("coffee"))
    padded = np.pad(card.preprocess.pixels(photo("coffee")), ((2, 2), (2, 2), (0, 0)))  # by an eighth of 16
    crops = ten_crop(card.preprocess.normalise(torch.from_numpy(padded)), [16, 16])
    with torch.inference_mode():
        views = torch.stack([image, image.flip(-1)] if kind == "flip" else list(crops))
        expected = (module(views) / 2.0).softmax(1).mean(0)
    with TestClient(create_app(settings), base_url=BASE_URL) as client:
        predictions = classify(client, "?tta=true&top_k=10").json()["data"][0]["predictions"]
    for prediction in predictions:
        assert prediction["confidence"] == pytest.approx(float(expected[prediction["class_id"]]), abs=1e-5)


@pytest.mark.parametrize(("queue_size", "max_batch"), [(3, 1), (3, 4), (1, 32), (64, 32)])
def test_request_of_many_views_does_not_overflow_the_queue(settings: Settings, queue_size: int, max_batch: int) -> None:
    folder = settings.weights / "tiny"
    checkpoint.write_card(folder, checkpoint.read_card(folder).model_copy(update={"tta": "ten-crop"}))
    small = settings.model_copy(update={"queue_size": queue_size, "max_batch": max_batch})
    files = [("file", ("a.png", encode(photo("coffee").resize((16, 16)))))] * 20
    with TestClient(create_app(small), base_url=BASE_URL) as client:
        data = client.post("/classify?tta=true", files=files).json()["data"]
    assert [len(item["predictions"]) for item in data] == [5] * 20
