"""Loading: once, warm, on first use; what is refused; what happens when it is too much."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from torch import Tensor, nn
from torchvision.transforms.v2.functional import ten_crop

from app.errors import DeadlineExceeded, NotReady, OutOfMemory, Overloaded, UnknownModel
from app.inference import loaded_model
from app.inference.loaded_model import LoadedModel
from app.inference.model_manager import Engine
from app.main import create_app
from app.observability.metrics import Metrics
from app.settings import PROJECT, Settings
from models import checkpoint, runtime
from models.card import ModelCard
from models.preprocess import Preprocess
from models.registry import build
from models.runtime import Runtime
from models.runtime_selection import RuntimeComparison, RuntimeSelector
from models.timing import RunWork
from tests.app.conftest import BASE_URL
from tests.conftest import encode, photo


def tiny_model(folder: Path, name: str = "tiny", seed: int = 0) -> None:
    """An untrained LeNet-1989 as a served model."""
    torch.manual_seed(seed)
    checkpoint.save(
        folder / name,
        build("lenet1989"),
        name=name,
        description="untrained, for tests",
        task="classify",
        architecture="lenet1989",
        config={},
        preprocess=Preprocess(mode="L", size=(16, 16), mean=(127.5,), std=(127.5,)),
        classes=tuple("abcdefghij"),
        data="none",
        source="this test",
        license="Apache-2.0",
    )


async def until(condition: Callable[[], bool]) -> None:
    """Wait, for ten seconds at most."""
    for _ in range(10_000):
        if condition():
            return
        await asyncio.sleep(0.001)
    pytest.fail("it never came to be")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    tiny_model(tmp_path)
    return Settings(weights=tmp_path, default_classifier="tiny")


def test_a_model_loads_once_for_many_callers(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[Path] = []
    original = checkpoint.load

    def counted(folder: Path) -> tuple[nn.Module, ModelCard]:
        loads.append(folder)
        return original(folder)

    monkeypatch.setattr(checkpoint, "load", counted)

    async def scenario() -> None:
        engine = Engine(settings, Metrics())
        assert engine.loaded("tiny") is None
        models = await asyncio.gather(*(engine.model(None, "classify") for _ in range(20)))
        assert len({id(model) for model in models}) == 1
        assert engine.loaded("tiny") is models[0]
        await engine.stop()

    asyncio.run(scenario())
    assert len(loads) == 1


def test_a_caller_that_leaves_does_not_stop_the_load(settings: Settings) -> None:
    async def scenario() -> None:
        engine = Engine(settings, Metrics())
        first = asyncio.create_task(engine.model("tiny", "classify"))
        await asyncio.sleep(0)
        first.cancel()
        assert (await engine.model("tiny", "classify")).card.name == "tiny"
        await engine.stop()

    asyncio.run(scenario())


class Chosen:
    """A runtime that takes over; it answers its number."""

    name, size = "chosen", 0

    def __call__(self, batch: Tensor) -> Tensor:
        return torch.full((len(batch), 10), 7.0)


def test_torch_serves_until_another_runtime_is_chosen_and_the_switch_loses_nobody(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, go = threading.Event(), threading.Event()

    def made(
        choice: RuntimeSelector, reference: Runtime, pictures: Path, turn: RunWork
    ) -> tuple[Runtime, RuntimeComparison | None]:
        asked.set()
        assert go.wait(10)
        assert turn(lambda: threading.current_thread().name).startswith("compute")
        return Chosen(), None

    monkeypatch.setattr(RuntimeSelector, "select", made)
    fast = settings.model_copy(update={"runtime": "auto"})
    picture = torch.zeros(1, 16, 16)

    async def asks(model: LoadedModel, answers: list[float]) -> None:
        while not answers or (answers[-1] != 7 and len(answers) < 10_000):
            answers.append(float((await model.infer(picture, 10)).output[0]))

    async def scenario() -> None:
        engine = Engine(fast, Metrics())
        model = await engine.model(None, "classify")
        assert (model.runtime, model.choosing) == ("torch-cpu-float32", True)
        first = float((await model.infer(picture, 10)).output[0])
        await asyncio.to_thread(asked.wait, 10)
        answers: list[list[float]] = [[] for _ in range(20)]
        asking = asyncio.gather(*(asks(model, seen) for seen in answers))
        await asyncio.sleep(0.02)
        go.set()
        await asking
        assert (model.runtime, model.choosing) == ("chosen", False)
        for seen in answers:
            assert seen[:-1] == [pytest.approx(first, abs=1e-5)] * (len(seen) - 1)
            assert seen[-1] == 7
        await engine.stop()

    asyncio.run(scenario())


def test_a_choice_that_fails_leaves_torch_serving(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def made(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(RuntimeSelector, "select", made)

    async def scenario() -> None:
        engine = Engine(settings.model_copy(update={"runtime": "auto"}), Metrics())
        model = await engine.model(None, "classify")
        await until(lambda: not model.choosing)
        assert model.runtime == "torch-cpu-float32"
        assert (await model.infer(torch.zeros(1, 16, 16), 10)).output.shape == (10,)
        await engine.stop()

    asyncio.run(scenario())


def test_a_service_that_stops_chooses_no_more(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[int] = []

    def made(choice: RuntimeSelector, reference: Runtime, pictures: Path, turn: RunWork) -> None:
        for number in range(10_000):
            turn(lambda number=number: turns.append(number))  # type: ignore[misc]
            time.sleep(0.001)
        pytest.fail("it went on to its end")

    monkeypatch.setattr(RuntimeSelector, "select", made)

    async def scenario() -> None:
        engine = Engine(settings.model_copy(update={"runtime": "auto"}), Metrics())
        model = await engine.model(None, "classify")
        await until(lambda: bool(turns))
        await engine.stop()
        assert model.runtime == "torch-cpu-float32"

    asyncio.run(scenario())


def test_outputs_are_the_networks_own(settings: Settings) -> None:
    async def scenario() -> None:
        engine = Engine(settings, Metrics())
        model = await engine.model("tiny", "classify")
        pictures = torch.randn(30, 1, 16, 16)
        results = await asyncio.gather(*(model.infer(picture, 10) for picture in pictures))
        module, _ = checkpoint.load(settings.weights / "tiny")
        with torch.inference_mode():
            expected = module(pictures)
        assert torch.allclose(torch.stack([result.output for result in results]), expected, atol=1e-5)
        assert max(result.size for result in results) > 1
        await engine.stop()
        with pytest.raises(NotReady):
            await model.infer(pictures[0], 10)

    asyncio.run(scenario())


class Noting:
    """A runtime that notes whose batch it ran, and how large it was."""

    size = 0

    def __init__(self, name: str, batches: list[tuple[str, int]], gate: threading.Event):
        self.name, self._batches, self._gate = name, batches, gate

    def __call__(self, batch: Tensor) -> Tensor:
        self._batches.append((self.name, len(batch)))
        assert self._gate.wait(10)
        return torch.zeros(len(batch), 10)


def test_a_flooded_model_does_not_starve_another(settings: Settings) -> None:
    tiny_model(settings.weights, "other")
    batches: list[tuple[str, int]] = []

    async def scenario() -> None:
        engine = Engine(settings.model_copy(update={"max_batch": 4}), Metrics())
        picture, gate = torch.zeros(1, 16, 16), threading.Event()
        models = {name: await engine.model(name, "classify") for name in ("tiny", "other")}
        for name, model in models.items():
            model.switch(Noting(name, batches, gate))
        flood = [asyncio.create_task(models["tiny"].infer(picture, 10)) for _ in range(400)]
        await until(lambda: len(batches) == 1)
        few = [asyncio.create_task(models["other"].infer(picture, 10)) for _ in range(12)]
        await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(*few)
        assert not all(task.done() for task in flood)
        await asyncio.gather(*flood)
        await engine.stop()

    asyncio.run(scenario())
    # The flood's first was alone with the compute thread; from then on they take turns, batch by batch.
    turns = [name for name, _ in batches]
    last = max(index for index, name in enumerate(turns) if name == "other")
    assert turns[: last + 1] == ["tiny", "other", "tiny", "other", "tiny", "other"]


def test_a_full_queue_and_a_passed_deadline_have_their_errors(settings: Settings) -> None:
    async def scenario() -> None:
        engine = Engine(settings.model_copy(update={"queue_size": 2, "max_batch": 1}), Metrics())
        model = await engine.model("tiny", "classify")
        picture = torch.zeros(1, 16, 16)
        results = await asyncio.gather(*(model.infer(picture, 10) for _ in range(6)), return_exceptions=True)
        refused = [result for result in results if isinstance(result, Overloaded)]
        assert refused
        assert refused[0].headers == {"Retry-After": "1"}
        late = await asyncio.gather(*(model.infer(picture, -1) for _ in range(2)), return_exceptions=True)
        assert all(isinstance(result, DeadlineExceeded) for result in late)
        await engine.stop()

    asyncio.run(scenario())


class Small:
    """A runtime on a device that has room for so many pictures at once."""

    name, size = "small", 0

    def __init__(self, room: int):
        self.room = room
        self.batches: list[int] = []

    def __call__(self, batch: Tensor) -> Tensor:
        self.batches.append(len(batch))
        if len(batch) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return batch.flatten(1).sum(dim=1, keepdim=True)


def test_what_does_not_fit_into_memory_is_run_in_halves(settings: Settings) -> None:
    async def scenario() -> None:
        engine = Engine(settings, Metrics())
        model = await engine.model("tiny", "classify")
        runtime = Small(room=5)
        model.switch(runtime)
        pictures = torch.randn(40, 1, 16, 16)
        results = await asyncio.gather(*(model.infer(picture, 10) for picture in pictures))
        for picture, result in zip(pictures, results, strict=True):
            assert float(result.output) == pytest.approx(float(picture.sum()), abs=1e-3)
        assert runtime.batches[:4] == [32, 16, 8, 4]
        assert runtime.batches[-2:] == [4, 4]  # those that came after: they stay small
        assert engine.troubles == []
        await engine.stop()

    asyncio.run(scenario())


def test_a_picture_that_alone_does_not_fit_is_a_503_and_the_service_degraded(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = create_app(settings)
    with TestClient(app, base_url=BASE_URL) as client:
        app.state.engine.loaded("tiny").switch(Small(room=0))
        picture = {"content": encode(photo("coffee")), "headers": {"content-type": "image/png"}}
        refused = client.post("/classify", **picture)  # type: ignore[arg-type]
        assert (refused.status_code, refused.json()["type"]) == (503, "urn:vestibule:problem:out-of-memory")
        assert refused.headers["retry-after"] == "60"
        health = client.get("/health/ready")
        assert (health.status_code, health.json()["status"]) == (200, "degraded")
        (reason,) = health.json()["reasons"]
        assert "tiny" in reason
        assert 'vestibule_shed_total{model="tiny",where="memory"} 1.0' in client.get("/metrics").text
        monkeypatch.setattr(loaded_model, "TROUBLE_S", 0.0)
        assert client.get("/health/ready").json()["status"] == "ready"


def test_a_model_that_does_not_fit_beside_the_others_is_a_503_until_it_does(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> Runtime:
        raise torch.OutOfMemoryError("CUDA out of memory")

    tiny_model(settings.weights, "other")

    async def scenario() -> None:
        engine = Engine(settings, Metrics())
        await engine.start()
        with monkeypatch.context() as patched:
            patched.setattr(runtime, "prepare", full)
            for attempt in (lambda: engine.model("other", "classify"), lambda: engine.reload("tiny")):
                with pytest.raises(OutOfMemory, match="does not fit"):
                    await attempt()
        assert (await engine.model("tiny", "classify")).card.name == "tiny"
        assert (await engine.model("other", "classify")).card.name == "other"
        await engine.stop()

    asyncio.run(scenario())


def test_folders_that_are_not_whole_are_not_served(tmp_path: Path) -> None:
    tiny_model(tmp_path)
    tiny_model(tmp_path, "other")
    (tmp_path / "other").rename(tmp_path / "misnamed")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "card.json").write_text("{}")
    engine = Engine(Settings(weights=tmp_path, default_classifier="tiny"), Metrics())
    assert list(engine.cards) == ["tiny"]


def test_no_default_model_is_an_error_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(UnknownModel, match="efficientnet-lite0"):
        create_app(Settings(weights=tmp_path))


def test_weights_that_changed_under_their_card_are_refused_and_recover(tmp_path: Path) -> None:
    tiny_model(tmp_path)
    tiny_model(tmp_path, "other")
    path = tmp_path / "other" / "model.safetensors"
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    app = create_app(Settings(weights=tmp_path, default_classifier="tiny"))
    with TestClient(app, base_url=BASE_URL) as client:
        picture = {"content": encode(photo("coffee")), "headers": {"content-type": "image/png"}}
        response = client.post("/classify?model=other", **picture)  # type: ignore[arg-type]
        assert (response.status_code, response.json()["type"]) == (503, "urn:vestibule:problem:not-ready")
        assert str(tmp_path) not in response.text
        path.write_bytes(good)
        assert client.post("/classify?model=other", **picture).status_code == 200  # type: ignore[arg-type]


def test_requests_beyond_the_admitted_number_get_429(settings: Settings) -> None:
    app = create_app(settings.model_copy(update={"max_requests": 1}))
    with TestClient(app, base_url=BASE_URL) as client:
        app.state.capacity.acquire()
        refused = client.post("/classify", content=b"x", headers={"content-type": "image/png"})
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1"
        app.state.capacity.release()
        admitted = client.post("/classify", content=encode(photo("coffee")), headers={"content-type": "image/png"})
        assert admitted.status_code == 200


@pytest.mark.parametrize("many", [False, True])
def test_an_answer_that_takes_too_long_is_a_504(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, many: bool
) -> None:
    app = create_app(settings.model_copy(update={"deadline_s": 0.05}))

    async def never(*_: object, **__: object) -> None:
        await asyncio.sleep(60)

    with TestClient(app, base_url=BASE_URL) as client:
        monkeypatch.setattr(app.state.engine, "decoded", never)
        files = [("file", (f"{i}.png", encode(photo("coffee")))) for i in range(2 if many else 1)]
        response = client.post("/classify", files=files)
    if many:
        assert [item["problem"]["status"] for item in response.json()["data"]] == [504, 504]
    else:
        assert response.status_code == 504


def test_the_unexpected_is_a_500_that_tells_nothing(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    app = create_app(settings)

    async def broken(*_: object) -> None:
        raise RuntimeError("a secret of the inside")

    with TestClient(app, base_url=BASE_URL) as client:
        monkeypatch.setattr(app.state.classification, "classify", broken)
        response = client.post("/classify", content=encode(photo("coffee")), headers={"content-type": "image/png"})
    assert response.status_code == 500
    assert response.json() == {
        "type": "urn:vestibule:problem:internal",
        "title": "Something went wrong on our side",
        "status": 500,
    }
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["x-request-id"]


@pytest.mark.parametrize("kind", ["flip", "ten-crop"])
def test_tta_is_the_mean_over_the_views(settings: Settings, kind: str) -> None:
    folder = settings.weights / "tiny"
    card = checkpoint.read_card(folder).model_copy(update={"tta": kind, "temperature": 2.0})
    checkpoint.write_card(folder, card)
    module, _ = checkpoint.load(folder)
    picture = card.preprocess(photo("coffee"))
    framed = np.pad(card.preprocess.pixels(photo("coffee")), ((2, 2), (2, 2), (0, 0)))  # an eighth of 16
    crops = ten_crop(card.preprocess.normalise(torch.from_numpy(framed)), [16, 16])
    with torch.inference_mode():
        views = torch.stack([picture, picture.flip(-1)] if kind == "flip" else list(crops))
        expected = (module(views) / 2.0).softmax(1).mean(0)
    with TestClient(create_app(settings), base_url=BASE_URL) as client:
        response = client.post(
            "/classify?tta=true&top_k=10", content=encode(photo("coffee")), headers={"content-type": "image/png"}
        )
    for prediction in response.json()["data"][0]["predictions"]:
        assert prediction["confidence"] == pytest.approx(float(expected[prediction["class_id"]]), abs=1e-5)


@pytest.mark.parametrize(("queue_size", "max_batch"), [(3, 1), (3, 4), (1, 32), (64, 32)])
def test_a_request_of_many_views_does_not_fill_the_queue_against_itself(
    settings: Settings, queue_size: int, max_batch: int
) -> None:
    folder = settings.weights / "tiny"
    checkpoint.write_card(folder, checkpoint.read_card(folder).model_copy(update={"tta": "ten-crop"}))
    small = settings.model_copy(update={"queue_size": queue_size, "max_batch": max_batch})
    files = [("file", (f"{i}.png", encode(photo("coffee").resize((16, 16))))) for i in range(20)]
    with TestClient(create_app(small), base_url=BASE_URL) as client:
        data = client.post("/classify?tta=true", files=files).json()["data"]
    assert [len(answer["predictions"]) for answer in data] == [5] * 20


def test_the_shipped_default_is_installed() -> None:
    assert checkpoint.read_card(PROJECT / "weights" / Settings().default_classifier).task == "classify"


def test_a_card_whose_preprocessing_does_not_fit_the_network_is_not_ready(settings: Settings) -> None:
    folder = settings.weights / "tiny"
    card = checkpoint.read_card(folder)
    wrong = card.preprocess.model_copy(update={"size": (28, 28)})
    checkpoint.write_card(folder, card.model_copy(update={"preprocess": wrong}))

    async def scenario() -> None:
        engine = Engine(settings, Metrics())
        with pytest.raises(NotReady, match="not whole"):
            await engine.model("tiny", "classify")
        assert engine.loaded("tiny") is None
        await engine.stop()

    asyncio.run(scenario())
