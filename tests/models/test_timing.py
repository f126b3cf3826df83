"""Durations by a simulated clock that only advances within the calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import pytest

from models import timing

T = TypeVar("T")


def test_durations_are_medians_of_interleaved_calls_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    now, calls = 0.0, []

    def call(name: str, seconds: Callable[[], float]) -> Callable[[], None]:
        def run() -> None:
            nonlocal now
            calls.append(name)
            now += seconds()

        return run

    def wait_and_run(work: Callable[[], T]) -> T:
        nonlocal now
        now += 60
        return work()

    monkeypatch.setattr(timing, "perf_counter", lambda: now)
    # One call in five, and all of the warm-up, are slow.
    slow = {"a": call("a", lambda: 9.0 if len(calls) < 7 or len(calls) % 10 == 9 else 1.0), "b": call("b", lambda: 2.0)}
    assert timing.interleaved_medians(slow, 5, wait_and_run) == {"a": 1.0, "b": 2.0}
    assert calls == ["a", "b"] * 8
