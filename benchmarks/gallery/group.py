"""Engines measured side by side, each in a process of its own; a step of `benchmarks.gallery.peers`.

Those of a group are built one after the other, then all open at once, so that their searches can take turns.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gallery.clustered import Clustered
from benchmarks.gallery.databases import ENGINES
from benchmarks.gallery.worker import Answer, Bounds, EngineError, Worker

OURS = ("vestibule", "faiss")  # installed with this project
ROUNDS = 10
CLIENTS = (1, 8)


@dataclass
class Row:
    """What was measured of an engine, None where it was not; MB are of 10^6 bytes, rates a second."""

    engine: str
    vectors: int
    status: str = "ok"
    versions: str = ""
    settings: str = ""
    breadth: int | None = None
    load_per_s: float | None = None
    build_s: float | None = None
    total_s: float | None = None
    build_anonymous_mb: float | None = None
    build_peak_mb: float | None = None
    disk_mb: float | None = None
    ready_s: float | None = None
    recall_1: float | None = None
    recall_1_enrolled: float | None = None
    recall_10: float | None = None
    answered: int | None = None
    searches: int | None = None
    p50_ms: float | None = None
    p99_ms: float | None = None
    per_s_1: float | None = None
    per_s_8: float | None = None
    anonymous_mb: float | None = None
    peak_mb: float | None = None
    pair_ms: float | None = None
    pair_index_ms: float | None = None
    pair_raw_ms: float | None = None
    over_raw_ms: float | None = None
    over_raw: float | None = None
    machine: str = ""
    date: str = ""

    def take(self, answer: Answer) -> None:
        """What an answer has of it."""
        for name in {field.name for field in fields(self)} & set(answer):
            setattr(self, name, _rounded(answer[name]))


def _rounded(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value


@dataclass(frozen=True)
class Plan:
    """What is asked of every engine."""

    data: Clustered
    queries: int
    questions: Path
    work: Path
    seconds: float
    bounds: Bounds
    python: str

    def worker(self, engine: str) -> Worker:
        """A process for it."""
        python = sys.executable if engine in OURS else self.python
        return Worker(python, engine, self.work / engine, self.questions, self.data, self.bounds)


def build(plan: Plan, row: Row) -> bool:
    """Fill and build an engine; whether it is there."""
    folder = plan.work / row.engine
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    worker = plan.worker(row.engine)
    left = worker.end
    try:
        row.take(worker.ask("start"))
        answer = worker.ask("build")
        left = worker.leave
    except EngineError as error:
        row.status = str(error)
        return False
    finally:
        left()
    load, finish = answer["load_s"], answer["build_s"]
    row.take(answer | {"load_per_s": plan.data.rows / load, "total_s": load + finish})
    size = sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())
    row.take({"disk_mb": size / 1e6})
    row.take({"build_anonymous_mb": worker.memory.anonymous, "build_peak_mb": worker.memory.all})
    return True


class Group:
    """Engines that are built and open at once, each with its row."""

    def __init__(self, plan: Plan, rows: Sequence[Row]):
        self._plan = plan
        self._rows = {row.engine: row for row in rows}
        self._workers: dict[str, Worker] = {}

    def measure(self) -> None:
        """Everything but the building."""
        left = Worker.end
        try:
            for engine in self._rows:
                self._open(engine)
            for engine in list(self._workers):
                self._ask(engine, "recall", seconds=self._plan.seconds)
            self._rounds()
            for engine, worker in self._workers.items():
                row = self._rows[engine]
                row.take({"anonymous_mb": worker.memory.anonymous, "peak_mb": worker.memory.all})
            if "vestibule" in self._workers:
                self._pair()
            left = Worker.leave
        finally:
            for worker in self._workers.values():
                left(worker)

    def _open(self, engine: str) -> None:
        began = time.monotonic()
        self._workers[engine] = self._plan.worker(engine)
        if self._ask(engine, "open") is not None:
            self._rows[engine].take({"ready_s": time.monotonic() - began})

    def _ask(self, engine: str, do: str, **more: Any) -> Answer | None:
        """The answer, of which the row takes what it can; None where there is none, and then no engine any more."""
        try:
            answer = self._workers[engine].ask(do, **more)
        except EngineError as error:
            self._rows[engine].status = str(error)
            self._workers.pop(engine).end()
            return None
        self._rows[engine].take(answer)
        return answer

    def _rounds(self) -> None:
        """Each engine in turn, `ROUNDS` times, by one client and by eight."""
        count = max(1, self._plan.queries // ROUNDS)
        seen: dict[tuple[str, int], list[Answer]] = {}
        for number in range(ROUNDS):
            for engine in list(self._workers):
                for clients in CLIENTS:
                    if engine not in self._workers:
                        continue
                    ask = {"first": number * count, "count": count, "clients": clients}
                    answer = self._ask(engine, "searches", **ask, seconds=self._plan.seconds / ROUNDS)
                    if answer is not None:
                        seen.setdefault((engine, clients), []).append(answer)
        for (engine, clients), answers in seen.items():
            times = [one for answer in answers for one in answer["ms"]]
            row = self._rows[engine]
            row.take({f"per_s_{clients}": len(times) / sum(answer["wall_s"] for answer in answers)})
            if clients == 1:
                p50, p99 = np.percentile(times, (50, 99)).tolist()
                row.take({"searches": len(times), "p50_ms": p50, "p99_ms": p99})

    def _pair(self) -> None:
        """The gallery against FAISS alone with the same index, in one process."""
        answer = self._ask("vestibule", "pair", seconds=self._plan.seconds)
        if answer is not None:
            ours, index, raw = (float(np.median(answer[f"{name}_ms"])) for name in ("vestibule", "index", "raw"))
            over = {"over_raw_ms": ours - raw, "over_raw": ours / raw - 1}
            self._rows["vestibule"].take({"pair_ms": ours, "pair_index_ms": index, "pair_raw_ms": raw, **over})


def measured(plan: Plan, engines: Sequence[str], machine: str) -> list[Row]:
    """The rows of one group."""
    today = time.strftime("%Y-%m-%d")
    rows = [
        Row(engine, plan.data.rows, versions=ENGINES[engine].versions(), machine=machine, date=today)
        for engine in engines
    ]
    try:
        Group(plan, [row for row in rows if build(plan, row)]).measure()
    finally:
        for engine in engines:
            shutil.rmtree(plan.work / engine, ignore_errors=True)
    return rows
