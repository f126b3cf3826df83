"""Durations by a simulated clock that only advances within the calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import pytest

from models import timing

T = TypeVar("T")


def test_durations_are_medians_of_interleaved_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    now, calls = 0.0, []

    def call(name: str, seconds: Callable[[], float]) -> Callable[[], None]:
        def run() -> None:
            nonlocal now
            calls.append(name)
            now += seconds()

        return run

    monkeypatch.setattr(timing, "perf_counter", lambda: now)
    # One call in five, and all of the warm-up, are slow.
    slow = {"a": call("a", lambda: 9.0 if len(calls) < 7 or len(calls) % 10 == 9 else 1.0), "b": call("b", lambda: 2.0)}
    assert timing.interleaved_medians(slow, rounds=5) == {"a": 1.0, "b": 2.0}
    assert calls == ["a", "b"] * 8


def test_waiting_before_a_call_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def call() -> None:
        nonlocal now
        now += 1

    def queued(work: Callable[[], T]) -> T:
        nonlocal now
        now += 60
        return work()

    monkeypatch.setattr(timing, "perf_counter", lambda: now)
    assert timing.interleaved_medians({"a": call}, 2, queued) == {"a": 1.0}
    assert now == 5 * 61
