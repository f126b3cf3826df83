"""What background tasks do after a failure that passes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from app.background_tasks import kept, running
from app.inference import reload_sync
from app.inference.reload_sync import ReloadSync

if TYPE_CHECKING:
    from app.inference.model_manager import ModelManager


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  what it waits for has no event
            await asyncio.sleep(0.001)


def test_a_lease_is_renewed_after_an_attempt_that_failed() -> None:
    attempts: list[int] = []

    async def keep() -> bool:
        attempts.append(0)
        if len(attempts) == 1:
            raise OSError("the disk is full")
        return True

    async def scenario() -> None:
        async with kept(keep, 0.001):
            await until(lambda: len(attempts) > 2)

    asyncio.run(scenario())


def test_reloads_are_followed_after_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reload_sync, "POLL_S", 0.001)
    ours, theirs = ReloadSync(tmp_path), ReloadSync(tmp_path)
    asked: list[str] = []
    rounds: list[int] = []

    async def stored(function: Callable[[], Any]) -> Any:
        rounds.append(0)
        if len(rounds) == 1:
            raise OSError("too many open files")
        return function()

    async def reload(name: str) -> None:
        asked.append(name)
        if name == "first":
            raise ValueError("a damaged folder")

    async def scenario() -> None:
        manager = SimpleNamespace(executors=SimpleNamespace(run_io=stored), reload=reload)
        async with running(ours.follow(cast("ModelManager", manager))):
            for name in ("first", "second"):
                theirs.announce(name)
                await until(lambda name=name: name in asked)  # type: ignore[misc]

    asyncio.run(scenario())
    assert asked == ["first", "second"]
