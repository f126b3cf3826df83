"""Photos with many faces: what they cost, where that is computed, and that other requests get their turn."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from fastapi.testclient import TestClient

from app import pipeline
from app.engine import Engine
from app.inference import ITEMS_AT_ONCE, Inference
from app.pool import Pool
from app.settings import Settings
from models import align
from tests.app.face_pictures import side_by_side
from tests.conftest import encode


@pytest.fixture
def pool() -> Iterator[Pool]:
    made = Pool(2, "decode")
    yield made
    made.stop()


@pytest.fixture
def inference(pool: Pool) -> Inference:
    engine = cast("Engine", SimpleNamespace(decoded=pool.run))
    return Inference(Settings(), engine)


def test_items_are_mapped_in_order(inference: Inference) -> None:
    numbers = list(range(3 * ITEMS_AT_ONCE + 1))
    assert asyncio.run(inference.mapped(lambda number: 2 * number, numbers)) == [2 * number for number in numbers]
    assert asyncio.run(inference.mapped(str, [])) == []


def test_one_call_never_holds_two_threads_and_lets_others_in_between(inference: Inference, pool: Pool) -> None:
    """With one of the two threads busy, a short task waits for at most one piece of a long list."""
    running, done, waited = [], [], []
    free = threading.Event()

    def slow(number: int) -> None:
        running.append(threading.get_ident())
        done.append(number)

    async def scenario() -> None:
        busy = asyncio.ensure_future(pool.run(free.wait))
        await asyncio.sleep(0.05)
        many = asyncio.ensure_future(inference.mapped(slow, range(50 * ITEMS_AT_ONCE)))
        await asyncio.sleep(0)
        try:
            await pool.run(lambda: waited.append(len(done)))
        finally:
            free.set()
        await asyncio.gather(busy, many)

    asyncio.run(scenario())
    assert waited[0] <= ITEMS_AT_ONCE
    assert len(done) == 50 * ITEMS_AT_ONCE


def test_a_cancelled_call_begins_no_further_items(inference: Inference) -> None:
    begun: list[int] = []
    started, go_on = threading.Event(), threading.Event()

    def work(number: int) -> None:
        begun.append(number)
        started.set()
        go_on.wait(20)

    async def scenario() -> None:
        many = asyncio.ensure_future(inference.mapped(work, range(10 * ITEMS_AT_ONCE)))
        await asyncio.get_running_loop().run_in_executor(None, started.wait)
        many.cancel()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await many
        await asyncio.sleep(0.1)

    asyncio.run(scenario())
    assert len(begun) <= ITEMS_AT_ONCE


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
    monkeypatch.setattr(pipeline, "crop_of", noting("crop", pipeline.crop_of))
    crowd = encode(side_by_side())
    png = {"content": crowd, "headers": {"content-type": "image/png"}}
    assert running.put("/collections/crowd", json={"keep_crops": True}).status_code == 201
    for path in ("/faces/detect", "/embed", "/collections/crowd/subjects/both/faces?max_faces=2"):
        assert running.post(path, **png).is_success, path
    assert running.post("/search", params={"collection": "crowd"}, **png).is_success
    assert running.post("/collections/crowd/subjects/both/feedback", **png).is_success
    files = dict.fromkeys(("source", "target"), ("a.png", crowd))
    assert running.post("/verify", files=files).is_success
    assert threads == {"measure": {"decode"}, "align": {"decode"}, "crop": {"decode"}}
