"""An engine's process as its parent sees it: asked by lines of JSON, watched, and ended where it takes too much."""

from __future__ import annotations

import json
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.gallery.clustered import Clustered

Answer = dict[str, Any]
EVERY_S = 0.25


class EngineError(Exception):
    """What the engine did not do, and why, in a line."""


@dataclass
class Memory:
    """The most there was at a time, in MB, of a process and its descendants.

    `anonymous` is what the kernel cannot take back; all else is mapped files, and memory that processes share.
    """

    anonymous: float = 0.0
    all: float = 0.0

    def see(self, processes: Sequence[psutil.Process]) -> None:
        """Look once. What several share is counted once."""
        anonymous, shared = 0, 0
        for process in processes:
            try:
                info = process.memory_info()
            except psutil.NoSuchProcess:
                continue
            anonymous += info.rss - info.shared
            shared = max(shared, info.shared)
        self.anonymous = max(self.anonymous, anonymous / 1e6)
        self.all = max(self.all, (anonymous + shared) / 1e6)


@dataclass(frozen=True)
class Bounds:
    """What one order may take, and the engine's process at any time of what cannot be taken back."""

    seconds: float
    megabytes: float


class Worker:
    """The process; `python` is that of the environment where the engine is installed."""

    def __init__(self, python: str, engine: str, folder: Path, questions: Path, data: Clustered, bounds: Bounds):
        self.memory = Memory()
        self._bounds, self._deadline, self._ended = bounds, float("inf"), ""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  lives as long as the process
        given = (engine, str(folder), str(questions), json.dumps(asdict(data)))
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.gallery.child", *given],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            start_new_session=True,  # a signal to this process's group is for this process to pass on
        )
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def ask(self, do: str, **more: Any) -> Answer:
        """The answer to an order.

        Raises:
            EngineError: it failed, died, or took too long or too much memory.
        """
        assert self._process.stdin
        assert self._process.stdout
        self._deadline = time.monotonic() + self._bounds.seconds
        try:
            print(json.dumps({"do": do, **more}), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        self._deadline = float("inf")
        if not line:
            raise EngineError(f"{do}: {self._ended or f'the process died with {self._process.wait()}: {self._said()}'}")
        answer: Answer = json.loads(line)
        if "error" in answer:
            raise EngineError(f"{do}: {answer['error']}")
        return answer

    def end(self) -> None:
        """End it, and all that it started."""
        self._kill()
        self._process.wait()
        self._watcher.join()
        for file in (self._process.stdin, self._process.stdout, self._errors):
            with suppress(BrokenPipeError):  # what was not sent will not be
                file.close()  # type: ignore[union-attr]

    def leave(self) -> None:
        """Let it close its files and go; what does not go is ended."""
        try:
            peak = self.ask("close")["peak_mb"]
            self.memory.all = max(self.memory.all, peak)
            assert self._process.stdin
            self._process.stdin.close()
            self._process.wait(30)
        except (EngineError, subprocess.TimeoutExpired):
            pass
        finally:
            self.end()

    def _kill(self) -> None:
        for process in self._processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def _said(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1][-300:] if lines else "nothing was said"

    def _processes(self) -> list[psutil.Process]:
        try:
            root = psutil.Process(self._process.pid)
            return [*root.children(recursive=True), root]
        except psutil.NoSuchProcess:
            return []

    def _watch(self) -> None:
        while self._process.poll() is None:
            self.memory.see(self._processes())
            if self.memory.anonymous > self._bounds.megabytes:
                self._ended = f"more than {self._bounds.megabytes / 1000:g} GB of memory"
            elif time.monotonic() > self._deadline:
                self._ended = f"not done in {self._bounds.seconds:g} s"
            if self._ended:
                self._kill()
                return
            time.sleep(EVERY_S)
