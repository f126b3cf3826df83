"""Models exchanged while the service runs: nobody is lost, nothing bad gets in, and nothing is left of the old one."""

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
from fastapi import FastAPI
from fastapi.testclient import TestClient
from torch import Tensor, nn

from app.auth.keys import FOLDER, ApiKeys
from app.dependencies import Timings
from app.errors import Conflict, ModelRefused, NotFound, NotReady, UnknownModel
from app.gallery.embedding_pipeline import Pipeline
from app.inference import reload_sync
from app.inference.batcher import Batcher
from app.inference.loaded_model import LoadedModel
from app.inference.model_manager import Engine, Reloaded
from app.inference.predictor import Inference
from app.inference.reload_sync import Reloads
from app.inference.submodels import WHOLE
from app.main import create_app
from app.models_api.service import Models
from app.observability.metrics import Metrics
from app.settings import Settings
from models import checkpoint
from models.lenet import LeNet1989
from models.runtime import Runtime, TorchRuntime
from models.runtime_selection import RuntimeComparison, RuntimeSelector
from models.timing import RunWork
from tests.app.conftest import BASE_URL
from tests.app.embedder import random_embedder
from tests.app.face_pictures import grace_hopper
from tests.app.generators import random_generators
from tests.app.inference.test_model_manager import tiny_model, until
from tests.conftest import encode, photo

PNG = {"content-type": "image/png"}
PICTURE = torch.zeros(1, 16, 16)
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


def expected(settings: Settings, name: str = "tiny") -> Tensor:
    """What the files that lie there answer."""
    module, _ = checkpoint.load(settings.weights / name)
    with torch.inference_mode():
        return module(PICTURE[None])[0]  # type: ignore[no-any-return]


def answered(client: TestClient, model: str = "tiny") -> dict[str, Any]:
    response = client.post(f"/classify?model={model}", content=SMALL, headers=PNG)
    assert response.status_code == 200, response.text
    return dict(response.json())


class Waits:
    """Another runtime's answers, when it is let."""

    name = "waits"

    def __init__(self, runtime: Runtime, size: int = 0):
        self.size, self._runtime = size, runtime
        self.entered, self.gate = threading.Event(), threading.Event()

    def __call__(self, batch: Tensor) -> Tensor:
        self.entered.set()
        assert self.gate.wait(10)
        return self._runtime(batch)


def test_who_asked_before_gets_the_old_weights_and_who_asks_after_the_new(settings: Settings) -> None:
    async def scenario() -> None:
        engine = Engine(settings, Metrics())
        old = await engine.model("tiny", "classify")
        before = expected(settings)
        runtime = Waits(TorchRuntime(checkpoint.load(settings.weights / "tiny")[0], torch.device("cpu")))
        old.switch(runtime)
        early = [asyncio.create_task(old.infer(PICTURE, 20)) for _ in range(100)]
        await asyncio.to_thread(runtime.entered.wait, 10)
        tiny_model(settings.weights, seed=5)
        reloading = asyncio.create_task(engine.reload("tiny"))
        # The new one runs once before it takes over, and for that waits like anybody for the compute thread.
        await asyncio.sleep(0.1)
        assert await engine.model("tiny", "classify") is old
        runtime.gate.set()
        done = await reloading
        assert (done.change, done.before, done.now) == (
            "reloaded",
            old.card,
            checkpoint.read_card(settings.weights / "tiny"),
        )
        new = await engine.model("tiny", "classify")
        assert (new.card.version, new.card) == (version(settings), engine.cards["tiny"])
        assert old.retired
        late = await old.infer(PICTURE, 20)  # who holds it may go on
        for result in [*await asyncio.gather(*early), late]:
            torch.testing.assert_close(result.output, before, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close((await new.infer(PICTURE, 20)).output, expected(settings), rtol=1e-4, atol=1e-5)
        await engine.stop()

    asyncio.run(scenario())


def test_a_tensor_is_answered_by_the_version_that_is_named(
    client: TestClient, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = client.app
    assert isinstance(app, FastAPI)
    engine: Engine = app.state.engine
    part = engine.part

    async def exchanged_meanwhile(*asked: Any) -> LoadedModel:
        await engine.reload("tiny")
        return await part(*asked)

    pixels = {"name": "pictures", "shape": [1, 1, 16, 16], "datatype": "FP32", "data": PICTURE.flatten().tolist()}
    body = {"inputs": [pixels], "outputs": [{"name": "logits"}]}
    before = version(settings)
    tiny_model(settings.weights, seed=5)
    monkeypatch.setattr(engine, "part", exchanged_meanwhile)
    answer = client.post("/v2/models/tiny/infer", json=body).json()
    assert before != answer["model_version"] == version(settings)
    (logits,) = answer["outputs"]
    torch.testing.assert_close(torch.tensor(logits["data"]), expected(settings), rtol=1e-4, atol=1e-5)
    tiny_model(settings.weights, seed=6)
    gone = client.post(f"/v2/models/tiny/versions/{answer['model_version']}/infer", json=body)
    assert (gone.status_code, version(settings) in gone.json()["error"]) == (404, True)


def test_no_request_is_lost_while_models_are_exchanged(client: TestClient, settings: Settings) -> None:
    stop = threading.Event()
    seen: list[tuple[str, float]] = []

    def asks() -> None:
        while not stop.is_set():
            answer = answered(client)
            seen.append((answer["version"], round(answer["data"][0]["predictions"][0]["confidence"], 4)))

    askers = [threading.Thread(target=asks) for _ in range(3)]
    versions = [version(settings)]
    for asker in askers:
        asker.start()
    for seed in range(5, 10):
        tiny_model(settings.weights, seed=seed)
        told = client.post("/models/tiny/reload").json()
        versions.append(version(settings))
        assert told == {"model": "tiny", "change": "reloaded", "version": versions[-1], "previous": versions[-2]}
        assert answered(client)["version"] == versions[-1]
    stop.set()
    for asker in askers:
        asker.join()
    assert {one for one, _ in seen} <= set(versions)
    # What answered is what is said to have answered: one version, one answer.
    assert len(set(seen)) == len({one for one, _ in seen})


def _cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def _another_name(folder: Path) -> None:
    tiny_model(folder.parent, "elsewhere")
    shutil.copytree(folder.parent / "elsewhere", folder, dirs_exist_ok=True)
    shutil.rmtree(folder.parent / "elsewhere")


def _another_size(folder: Path) -> None:
    card = checkpoint.read_card(folder)
    wrong = card.preprocess.model_copy(update={"size": (28, 28)})
    checkpoint.write_card(folder, card.model_copy(update={"preprocess": wrong}))


def _no_card(folder: Path) -> None:
    (folder / "card.json").write_text('{"name": "tiny"}')


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_cut, "model.safetensors: sha256 is"),
        (_another_name, "its card is that of elsewhere"),
        (_another_size, "16"),
        (_no_card, "card.json: "),
    ],
)
def test_what_is_no_good_is_refused_and_the_old_one_serves(
    client: TestClient, settings: Settings, spoil: Callable[[Path], None], says: str
) -> None:
    before = answered(client)
    spoil(settings.weights / "tiny")
    refused = client.post("/models/tiny/reload")
    assert (refused.status_code, refused.json()["type"]) == (422, "urn:vestibule:problem:model-refused")
    assert says in refused.json()["detail"]
    assert str(settings.weights) not in refused.text
    assert answered(client) == before
    tiny_model(settings.weights, seed=3)
    assert client.post("/models/tiny/reload").json()["change"] == "reloaded"
    figures = client.get("/metrics").text
    assert 'vestibule_reloads_total{model="tiny",outcome="refused"} 1.0' in figures
    assert 'vestibule_reloads_total{model="tiny",outcome="reloaded"} 1.0' in figures
    assert figures.count("vestibule_model_loaded{") == 1
    assert f'vestibule_model_loaded{{model="tiny",version="{version(settings)}"}} 1.0' in figures


def test_models_come_and_go_only_when_it_is_asked_for(client: TestClient, settings: Settings) -> None:
    tiny_model(settings.weights, "new", seed=2)
    assert "new" not in {model["name"] for model in client.get("/models").json()["data"]}
    told = client.post("/models/new/reload").json()
    assert told == {"model": "new", "change": "added", "version": version(settings, "new"), "previous": None}
    assert [model["name"] for model in client.get("/models").json()["data"]] == ["new", "other", "tiny"]
    assert answered(client, "new")["version"] == version(settings, "new")
    assert client.post("/models/new/reload").json()["change"] == "unchanged"
    shutil.rmtree(settings.weights / "new")
    assert answered(client, "new")
    told = client.post("/models/new/reload").json()
    assert (told["change"], told["version"]) == ("removed", None)
    picture = {"content": SMALL, "headers": PNG}
    assert client.post("/classify?model=new", **picture).status_code == 422  # type: ignore[arg-type]
    assert client.post("/models/new/reload").status_code == 404
    for name in ("..", "%2e%2e", ".hidden", "A"):
        assert client.post(f"/models/{name}/reload").status_code in (404, 405, 422)


def test_there_is_always_a_default_classifier(client: TestClient, settings: Settings, tmp_path: Path) -> None:
    (settings.weights / "tiny").rename(tmp_path / "away")
    refused = client.post("/models/tiny/reload")
    assert (refused.status_code, refused.json()["type"]) == (409, "urn:vestibule:problem:conflict")
    assert answered(client)
    random_generators(tmp_path)
    shutil.copytree(tmp_path / "cvae-mnist", settings.weights / "tiny")
    card = json.loads((settings.weights / "tiny" / "card.json").read_text())
    (settings.weights / "tiny" / "card.json").write_text(json.dumps(card | {"name": "tiny"}))
    assert client.post("/models/tiny/reload").status_code == 409
    assert answered(client)


def test_files_that_were_exchanged_unasked_do_not_serve(settings: Settings) -> None:
    async def scenario() -> None:
        engine = Engine(settings, Metrics())
        tiny_model(settings.weights, "other", seed=8)
        with pytest.raises(NotReady, match="POST /models/other/reload"):
            await engine.model("other", "classify")
        await engine.reload("other")
        assert (await engine.model("other", "classify")).card.version == version(settings, "other")
        await engine.stop()

    asyncio.run(scenario())


def test_a_reload_is_wholly_done_though_nobody_waits_for_it(settings: Settings) -> None:
    async def scenario() -> None:
        engine = Engine(settings, Metrics())
        await engine.start()
        tiny_model(settings.weights, seed=8)
        leaves = asyncio.create_task(engine.reload("tiny"))
        await asyncio.sleep(0)
        leaves.cancel()
        await until(lambda: engine.cards["tiny"].version == version(settings))
        assert (await engine.model(None, "classify")).card.version == version(settings)
        # Several at once are one after the other.
        done = await asyncio.gather(*(engine.reload("tiny") for _ in range(3)))
        assert [one.change for one in done] == ["unchanged"] * 3
        await engine.stop()

    asyncio.run(scenario())


def test_a_reload_is_told_and_noted_though_its_client_left(settings: Settings) -> None:
    async def scenario() -> None:
        engine = Engine(settings, Metrics())
        await engine.start()
        folder = settings.state / "reloads"
        keys, other_worker = ApiKeys(settings.state / FOLDER), Reloads(folder)
        services = Models(engine, keys, Reloads(folder))
        tiny_model(settings.weights, seed=8)
        leaves = asyncio.create_task(services.reload("tiny", "somebody"))
        await asyncio.sleep(0)
        leaves.cancel()
        await until(lambda: [entry.event.actor for entry in keys.audit.read()[0]] == ["somebody"])
        assert other_worker.news() == ["tiny"]
        await engine.stop()
        keys.close()

    asyncio.run(scenario())


def test_a_reload_that_failed_in_another_worker_is_tried_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reload_sync, "EVERY_S", 0.02)
    monkeypatch.setattr(reload_sync, "RETRY_S", 0.05)
    attempts: list[float] = []

    async def scenario() -> None:
        engine = Engine(settings, Metrics())
        await engine.start()
        reload = engine.reload

        async def recorded(name: str) -> Reloaded:
            attempts.append(time.monotonic())
            return await reload(name)

        monkeypatch.setattr(engine, "reload", recorded)
        folder = settings.state / "reloads"
        this_worker, other_worker = Reloads(folder), Reloads(folder)
        following = asyncio.create_task(this_worker.follow(engine))
        before = version(settings)
        tiny_model(settings.weights, seed=8)
        weights = next((settings.weights / "tiny").glob("*.safetensors"))
        whole = weights.read_bytes()
        weights.write_bytes(whole[:100])
        other_worker.tell("tiny")
        await until(lambda: len(attempts) >= 3)
        assert engine.cards["tiny"].version == before
        weights.write_bytes(whole)
        await until(lambda: engine.cards["tiny"].version == version(settings) != before)
        tried = len(attempts)
        await asyncio.sleep(0.5)
        assert len(attempts) == tried  # it succeeded: that is all
        following.cancel()
        await asyncio.wait([following])
        await engine.stop()

    asyncio.run(scenario())
    first, second = np.diff(attempts[:3])
    assert first >= 0.05
    assert second >= 0.1


def test_a_load_under_way_ends_with_what_it_began_with(settings: Settings) -> None:
    async def scenario() -> None:
        engine = Engine(settings, Metrics())
        first = asyncio.create_task(engine.model("other", "classify"))
        await asyncio.sleep(0)
        reloading = asyncio.create_task(engine.reload("other"))
        old = await first
        assert (await reloading).change == "unchanged"
        assert await engine.model("other", "classify") is old
        await engine.stop()

    asyncio.run(scenario())


def test_a_model_that_is_removed_before_it_is_loaded_is_unknown(settings: Settings) -> None:
    async def scenario() -> None:
        engine = Engine(settings, Metrics())
        card = engine.card("other", "classify")
        shutil.rmtree(settings.weights / "other")
        assert (await engine.reload("other")).change == "removed"
        with pytest.raises(UnknownModel, match="removed"):
            await engine.part(card, WHOLE)
        await engine.stop()

    asyncio.run(scenario())


def test_problems_of_the_engine_have_their_classes(settings: Settings) -> None:
    async def scenario() -> None:
        engine = Engine(settings, Metrics())
        with pytest.raises(NotFound):
            await engine.reload("nothing")
        shutil.rmtree(settings.weights / "tiny")
        with pytest.raises(Conflict):
            await engine.reload("tiny")
        (settings.weights / "other" / "model.safetensors").unlink()
        with pytest.raises(ModelRefused):
            await engine.reload("other")
        await engine.stop()

    asyncio.run(scenario())


def test_a_generators_tag_follows_its_weights(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    random_generators(weights)
    settings = Settings(weights=weights, default_classifier="lenet5-mnist", state=tmp_path / "state")
    url = "/generate?model=cvae-mnist&seed=1&n=2"
    with TestClient(create_app(settings), base_url=BASE_URL) as client:
        before = client.get(url)
        assert client.get(url, headers={"if-none-match": before.headers["etag"]}).status_code == 304
        module, card = checkpoint.load(weights / "cvae-mnist")
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.mul_(1.1)
        about = card.model_dump(exclude={"sha256", "parameters", "schema_version"})
        checkpoint.save(weights / "cvae-mnist", module, **about)
        assert client.get(url).headers["etag"] == before.headers["etag"]  # nobody asked for the new one
        assert client.post("/models/cvae-mnist/reload").json()["change"] == "reloaded"
        after = client.get(url, headers={"if-none-match": before.headers["etag"]})
        assert after.status_code == 200
        assert after.headers["etag"] != before.headers["etag"]
        assert after.content != before.content
        told = client.get(url + "&format=json").json()["version"]
        assert told == version(settings, "cvae-mnist") == client.get("/models/cvae-mnist").json()["version"]


@pytest.mark.parametrize("name", ["mobilefacenet-triplet", "centerface"])
def test_a_collection_meets_no_vectors_of_a_reloaded_pipeline(tmp_path: Path, name: str) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    random_embedder(weights)
    finder = (weights / "centerface").resolve()
    (weights / "centerface").unlink()
    shutil.copytree(finder, weights / "centerface")
    settings = Settings(weights=weights, default_classifier="lenet5-mnist", state=tmp_path / "state")
    picture = {"content": encode(grace_hopper()), "headers": PNG}
    with TestClient(create_app(settings), base_url=BASE_URL) as client:
        made = client.put("/collections/doors", json={"keep_crops": True}).json()["fingerprint"]
        client.post("/collections/doors/subjects/grace/faces", **picture)  # type: ignore[arg-type]
        module, card = checkpoint.load(weights / name)
        with torch.no_grad():
            next(module.parameters()).mul_(1.01)
        about = card.model_dump(exclude={"sha256", "parameters", "schema_version", "matching"})
        checkpoint.save(weights / name, module, **about, matching=card.matching)
        assert client.post("/search?collection=doors", **picture).status_code == 200  # type: ignore[arg-type]
        assert client.post(f"/models/{name}/reload").json()["change"] == "reloaded"
        for url in ("/search?collection=doors", "/collections/doors/subjects/grace/faces"):
            refused = client.post(url, **picture)  # type: ignore[arg-type]
            assert refused.status_code == 409
            assert "reembed" in refused.json()["detail"]
        assert client.put("/collections/others", json={}).json()["fingerprint"] != made


def test_who_has_an_embedder_and_a_detector_goes_on_with_the_two(tmp_path: Path) -> None:
    random_embedder(tmp_path)
    finder = (tmp_path / "centerface").resolve()
    (tmp_path / "centerface").unlink()
    shutil.copytree(finder, tmp_path / "centerface")
    settings = Settings(weights=tmp_path, default_classifier="lenet5-mnist")

    async def scenario() -> None:
        engine = Engine(settings, Metrics())
        pipeline = Pipeline(Inference(settings, engine))
        sight = await pipeline.sight(None)
        fingerprint, picture = sight.fingerprint, encode(grace_hopper())
        (before,) = await pipeline.seen(sight, picture, Timings())
        module, card = checkpoint.load(tmp_path / "centerface")
        with torch.no_grad():  # one that finds nothing
            for parameter in module.parameters():
                parameter.zero_()
        about = card.model_dump(exclude={"sha256", "parameters", "schema_version"})
        checkpoint.save(tmp_path / "centerface", module, **about)
        assert (await engine.reload("centerface")).change == "reloaded"
        (after,) = await pipeline.seen(sight, picture, Timings())
        assert torch.equal(before.vector, after.vector)
        assert sight.fingerprint == fingerprint != (await pipeline.sight(None)).fingerprint
        assert await pipeline.seen(await pipeline.sight(None), picture, Timings()) == []
        await engine.stop()

    asyncio.run(scenario())


def test_nothing_is_left_of_fifty_models_that_were_reloaded(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(
        choice: RuntimeSelector, reference: Runtime, pictures: Path, turn: RunWork
    ) -> tuple[Runtime, RuntimeComparison | None]:
        turn(lambda: None)
        return reference, None

    monkeypatch.setattr(RuntimeSelector, "select", made)

    def counts() -> dict[str, int]:
        kinds: tuple[type, ...] = (LoadedModel, Batcher, LeNet1989, RuntimeSelector, asyncio.Task, TorchRuntime)
        found = Counter(map(type, gc.get_objects()))
        about = {"threads": threading.active_count(), "tasks": len(asyncio.all_tasks())}
        return about | {kind.__name__: found[kind] for kind in kinds}

    async def once(engine: Engine, seed: int) -> None:
        tiny_model(settings.weights, seed=seed)
        assert (await engine.reload("tiny")).change == "reloaded"
        model = await engine.model(None, "classify")
        await model.infer(PICTURE, 10)
        await until(lambda: not model.choosing)

    async def scenario() -> None:
        engine = Engine(settings.model_copy(update={"runtime": "auto"}), Metrics())
        await engine.start()
        for seed in range(1, 4):  # what is made once only is made
            await once(engine, seed)
        await asyncio.sleep(0.05)
        gc.collect()
        before = counts()
        gc.disable()
        try:
            for seed in range(4, 54):
                await once(engine, seed)
            # Their users were the last to hold them: no collector of cycles has to find them.
            await until(lambda: len(engine.shelf.alive()) == 1)
        finally:
            gc.enable()
        gc.collect()
        await until(lambda: all(count <= before[name] for name, count in counts().items()))
        assert engine.shelf.leaving == 0
        await engine.stop()

    asyncio.run(scenario())


def _size(settings: Settings) -> int:
    module, _ = checkpoint.load(settings.weights / "tiny")
    return sum(value.nbytes for value in module.state_dict().values())


def test_the_least_recently_used_go_when_memory_is_short_and_end_what_they_began(settings: Settings) -> None:
    tiny_model(settings.weights, "third", seed=2)
    metrics = Metrics()

    def evicted(name: str) -> float:
        return metrics.registry.get_sample_value("vestibule_evictions_total", {"model": name}) or 0

    async def scenario() -> None:
        engine = Engine(settings, metrics)
        assert engine.shelf.budget is None
        size = _size(settings)
        engine.shelf.budget = 2 * size
        await engine.start()
        other = await engine.model("other", "classify")
        assert (engine.shelf.used, other.size) == (2 * size, size)
        runtime = Waits(TorchRuntime(nn.Flatten(), torch.device("cpu")), size)
        loading = asyncio.create_task(engine.model("third", "classify"))
        other.switch(runtime)
        early = asyncio.create_task(other.infer(PICTURE, 10))
        await asyncio.to_thread(runtime.entered.wait, 10)
        await asyncio.sleep(0.01)
        runtime.gate.set()
        await loading
        # The default was used before the other, and is kept nevertheless.
        assert [engine.loaded(name) is not None for name in ("tiny", "other", "third")] == [True, False, True]
        assert (evicted("other"), evicted("tiny"), evicted("third")) == (1, 0, 0)
        assert other.retired
        assert (await early).output.shape == (256,)
        assert engine.shelf.used == 2 * size
        again = await engine.model("other", "classify")
        assert again is not other
        assert engine.loaded("third") is None
        await engine.stop()

    asyncio.run(scenario())


def test_models_say_what_they_take(client: TestClient, settings: Settings) -> None:
    size = _size(settings)
    answered(client, "other")
    told = client.get("/models").json()
    assert told["memory"] == {"used": 2 * size, "leaving": 0, "budget": None}
    assert [model["memory_bytes"] for model in told["data"]] == [size, size]
    assert client.get("/models/other").json()["memory_bytes"] == size
    assert f'vestibule_model_bytes{{model="other"}} {float(size)}' in client.get("/metrics").text


def test_the_budget_is_a_setting(settings: Settings) -> None:
    small = settings.model_copy(update={"model_memory_mb": 64})
    with TestClient(create_app(small), base_url=BASE_URL) as client:
        assert client.get("/models").json()["memory"]["budget"] == 64 * 2**20


@pytest.mark.parametrize("value", [float("nan"), 3e38])
def test_a_model_whose_outputs_are_no_numbers_is_refused(settings: Settings, value: float) -> None:
    """`value` for every weight: NaN as it is, or so large that the layers overflow."""
    with TestClient(create_app(settings), base_url=BASE_URL) as client:
        before = answered(client)["version"]
        for name in ("tiny", "other"):
            folder = settings.weights / name
            network, card = checkpoint.load(folder)
            with torch.no_grad():
                for weights in network.parameters():
                    weights.fill_(value)
            fields = card.model_dump(exclude={"sha256", "parameters"}, exclude_unset=True)
            checkpoint.save(folder, network, **fields)
        refused = client.post("/models/tiny/reload")
        assert (refused.status_code, refused.json()["type"]) == (422, "urn:vestibule:problem:model-refused")
        assert "NaN" in refused.json()["detail"]
        assert answered(client)["version"] == before
        assert client.post("/models/other/reload").status_code == 422
    with pytest.raises(NotReady, match="tiny are not whole"), TestClient(create_app(settings)):
        pass
