"""One engine in a process of its own, which does what `benchmarks.gallery.peers` asks by lines of JSON.

    python -m benchmarks.gallery.child ENGINE FOLDER QUESTIONS DATA

Each line of its input is an order, {"do": one of `ORDERS`, ...}, each line of its output the answer.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gallery.clustered import Clustered, Ints, Questions, recall
from benchmarks.gallery.databases import ENGINES
from benchmarks.gallery.engines import Engine, Faiss, Vestibule

Answer = dict[str, Any]
K = 10
TUNING, ENOUGH = 200, 0.99  # queries that a breadth is chosen by; the recall@1 that is enough
MOST_CLIENTS = 8
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER


@dataclass
class Job:
    """What this process is about."""

    engine: Engine
    folder: Path
    questions: Questions
    data: Clustered
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(MOST_CLIENTS))

    def start(self) -> Answer:
        """What this is."""
        return {"versions": self.engine.versions(), "settings": self.engine.settings}

    def build(self) -> Answer:
        """Fill and build it; seconds of each without the making of the vectors."""
        self.engine.create(self.folder, self.data)
        load = 0.0
        for first, vectors in self.data.chunks():
            began = time.perf_counter()
            self.engine.add(first, vectors)
            load += time.perf_counter() - began
        began = time.perf_counter()
        self.engine.build()
        return {"load_s": load, "build_s": time.perf_counter() - began}

    def open(self) -> Answer:
        """Open it, and search until a row that is there finds itself.

        Raises:
            RuntimeError: none of those that are known does.
        """
        self.engine.open(self.folder)
        if self.engine.breadths:
            self.engine.widen(self.engine.breadths[0])
        asked = self.questions
        expected = asked.known_subjects if self.engine.by_subject else asked.known
        for tries, (vector, answer) in enumerate(zip(asked.known_vectors, expected.tolist(), strict=True), 1):
            if list(self.engine.search(vector, K))[:1] == [answer]:
                return {"tries": tries}
        raise RuntimeError("no known vector finds itself")

    def recall(self, seconds: float) -> Answer:
        """Choose the breadth by the first questions, then see what all others find; as many as there is time for."""
        truth, subjects = self.questions.truth, self.questions.subjects
        tuning = min(TUNING, len(truth) // 4)
        for breadth in self.engine.breadths:
            self.engine.widen(breadth)
            found = self._found(0, tuning, seconds)
            if recall(found, truth[: len(found)], 1) >= ENOUGH:
                break
        found = self._found(tuning, len(truth), seconds)
        truth, there = truth[tuning:][: len(found)], subjects[tuning:][: len(found)] >= 0
        answer = {f"recall_{k}": recall(found, truth, k) for k in (1, K)}
        if there.any():
            answer["recall_1_enrolled"] = recall(found[there], truth[there], 1)
        return {**answer, "answered": len(found), "breadth": self.engine.breadth or None}

    def _found(self, first: int, last: int, seconds: float) -> Ints:
        """What these questions find, [at most last - first, K], filled up by -1."""
        found = np.full((last - first, K), -1, np.int64)
        until = time.perf_counter() + seconds
        for place, query in enumerate(self.questions.queries[first:last]):
            if place and time.perf_counter() > until:
                return found[:place]
            rows = self.engine.rows(query, K)
            found[place, : len(rows)] = rows
        return found

    def searches(self, first: int, count: int, clients: int, seconds: float) -> Answer:
        """Time the questions from `first` on, by that many threads; each search in ms, all together in seconds.

        What a thread needs of its own, a connection for one, it has got by a search before.
        """
        queries = self.questions.queries
        places = [(first + i) % len(queries) for i in range(count)]
        start = threading.Barrier(clients)

        def client(number: int) -> list[tuple[float, float]]:
            self.engine.search(queries[places[0]], K)
            start.wait()
            times: list[tuple[float, float]] = []
            for place in places[number::clients]:
                began = time.perf_counter()
                if times and began > times[0][0] + seconds:
                    break
                self.engine.search(queries[place], K)
                times.append((began, time.perf_counter()))
            return times

        times = [one for each in self.pool.map(client, range(clients)) for one in each]
        wall = max(ended for _, ended in times) - min(began for began, _ in times)
        return {"ms": [1000 * (ended - began) for began, ended in times], "wall_s": wall}

    def pair(self, seconds: float) -> Answer:
        """Each question by the gallery and by FAISS alone with the same index, in turn, which first by lot; in ms.

        `index_ms` is the gallery's search without ledger and subjects.

        Raises:
            ValueError: this is not the gallery, or it has no inverted file.
        """
        ivf = next(self.folder.glob("files/*.ivf"), None)
        if not isinstance(self.engine, Vestibule) or ivf is None:
            raise ValueError("only a gallery with an inverted file can be compared with FAISS alone")
        raw, folder = Faiss(), self.folder / "raw"
        folder.mkdir()
        raw.borrow(folder, ivf, self.data)
        callers: dict[str, Callable[..., object]] = {
            "vestibule_ms": self.engine.search,
            "raw_ms": raw.search,
            "index_ms": self.engine.rows,
        }
        answer: dict[str, list[float]] = {name: [] for name in callers}
        rng = np.random.default_rng(0)
        for warm in (False, True):
            until = time.perf_counter() + seconds
            for query in self.questions.queries:
                for name in rng.permutation(list(callers)).tolist():
                    began = time.perf_counter()
                    callers[name](query, K)
                    if warm:
                        answer[name].append(1000 * (time.perf_counter() - began))
                if time.perf_counter() > until:
                    break
        return answer

    def close(self) -> Answer:
        """Let go of the files; the most memory that this very process had, in MB."""
        self.pool.shutdown()
        self.engine.close()
        status = Path("/proc/self/status").read_text().splitlines()
        return {"peak_mb": next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) / 1000}


ORDERS = ("start", "build", "open", "recall", "searches", "pair", "close")


def main(engine: str, folder: str, questions: str, data: str) -> None:
    """Answer until the input ends. The engine may print what it likes: that goes to the errors."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)  # a server that goes into the background is still counted
    job: Job | None = None
    for line in sys.stdin:
        order = json.loads(line)
        do = order.pop("do")
        if do not in ORDERS:
            raise ValueError(f"cannot do {do!r}")
        try:
            if job is None:
                made = ENGINES[engine]()
                job = Job(made, Path(folder), Questions.load(Path(questions)), Clustered(**json.loads(data)))
            answer = getattr(job, do)(**order)
        except ModuleNotFoundError as error:
            answer = {"error": f"not installed: {error.name}"}
        except Exception as error:  # noqa: BLE001  whatever it is, it is this engine's outcome
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main(*sys.argv[1:])
