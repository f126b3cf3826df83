"""Servers as they are measured: started, asked for one picture, paused while another one is measured, ended."""

from __future__ import annotations

import base64
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.serving.models import Case, model_folder
from benchmarks.serving.peer_servers.classifier import FOLDER, PIDS, RUNTIME, STATE

Answer = list[dict[str, Any]]

READY_S = 300.0
MARK = "SERVING_PROCESS"  # in the environment of all that a server starts, whoever their parent is by then
HOST = "127.0.0.1"


class ServerError(Exception):
    """What a server did not do, and why, in a line."""


def raw(picture: bytes) -> tuple[dict[str, str], bytes]:
    """The picture alone."""
    return {"Content-Type": "image/jpeg"}, picture


def in_json(picture: bytes) -> tuple[dict[str, str], bytes]:
    """The picture as base64 in JSON."""
    return {"Content-Type": "application/json"}, json.dumps({"image": base64.b64encode(picture).decode()}).encode()


def a_list(picture: bytes) -> tuple[dict[str, str], bytes]:
    """One of BentoML's batch."""
    sent = {"pictures": [base64.b64encode(picture).decode()]}
    return {"Content-Type": "application/json"}, json.dumps(sent).encode()


def instances(picture: bytes) -> tuple[dict[str, str], bytes]:
    """KServe's V1 protocol."""
    sent = {"instances": [{"image": {"b64": base64.b64encode(picture).decode()}}]}
    return {"Content-Type": "application/json"}, json.dumps(sent).encode()


@dataclass(frozen=True)
class Kind:
    """How a server is asked: what a request for one picture is, and where in the answer its classes are.

    `module` is that of benchmarks.serving.peer_servers; None: it is Vestibule. `packages`: whose versions are reported.
    """

    module: str | None
    path: str
    form: Callable[[bytes], tuple[dict[str, str], bytes]]
    classes: Callable[[Any], Answer]
    packages: tuple[str, ...]
    runtime: str = "torch"
    settings: str = ""
    workers: int = 1  # of ours

    def request(self, picture: bytes) -> Request:
        """For one picture."""
        headers, body = self.form(picture)
        return Request(self.path, headers, body)


@dataclass(frozen=True)
class Request:
    """A POST."""

    path: str
    headers: Mapping[str, str]
    body: bytes

    def encoded(self, port: int) -> bytes:
        """As HTTP/1.1 has it."""
        about = {"Host": f"{HOST}:{port}", **self.headers, "Content-Length": str(len(self.body))}
        lines = [f"POST {self.path} HTTP/1.1", *(f"{name}: {value}" for name, value in about.items())]
        return "\r\n".join([*lines, "", ""]).encode() + self.body


def _itself(answer: Any) -> Answer:
    classes: Answer = answer
    return classes


_BATCHES = "batches of at most 32, 5 ms for one to fill"

KINDS: dict[str, Kind] = {
    "vestibule": Kind(
        None,
        "/classify",
        raw,
        lambda answer: answer["data"][0]["predictions"],
        ("torch", "openvino", "fastapi", "uvicorn"),
        settings="as it comes: batches of at most 32, no timer",
    ),
    "litserve": Kind(
        "litserve_server",
        "/predict",
        in_json,
        lambda answer: answer["classes"],
        ("litserve", "torch"),
        settings=f"{_BATCHES}; decoded by threads before a batch is run",
    ),
    "mosec": Kind(
        "mosec_server",
        "/inference",
        raw,
        _itself,
        ("mosec", "torch"),
        settings=f"{_BATCHES}; a stage of processes that decode, one for each core",
    ),
    "bentoml": Kind(
        "bentoml_server",
        "/classify",
        a_list,
        lambda answer: answer[0],
        ("bentoml", "torch"),
        settings="adaptive batches of at most 32; decoded by threads before a batch is run",
    ),
    "ray": Kind(
        "ray_server",
        "/",
        raw,
        _itself,
        ("ray", "torch"),
        settings=f"{_BATCHES}; one replica, 128 requests in hand, decoded by threads",
    ),
    "kserve": Kind(
        "kserve_server",
        "/v1/models/classifier:predict",
        instances,
        lambda answer: answer["predictions"][0],
        ("kserve", "torch"),
        settings="no batches: its batcher is for Kubernetes",
    ),
    "fastapi": Kind(
        "fastapi_server",
        "/classify",
        raw,
        _itself,
        ("fastapi", "uvicorn", "torch"),
        settings="no batches; the framework's pool of threads",
    ),
}
WORKERS, ANSWERS = 2, 20
KINDS["vestibule-2-workers"] = replace(
    KINDS["vestibule"], settings=f"{KINDS['vestibule'].settings}; --workers {WORKERS}", workers=WORKERS
)
# With the network that Vestibule chose in it.
KINDS |= {f"{name}+openvino": replace(KINDS[name], runtime="openvino") for name in ("litserve", "mosec")}


@dataclass(frozen=True)
class Bench:
    """Where servers are started: a folder for models and logs, the environment that has the peers."""

    work: Path
    python: str = sys.executable

    def versions(self, kind: Kind) -> str:
        """Of the packages that tell, in the environment where they are installed."""
        python = self.python if kind.module else sys.executable
        code = "import importlib.metadata as m, sys; print(', '.join(f'{n} {m.version(n)}' for n in sys.argv[1:]))"
        ran = subprocess.run([python, "-c", code, *kind.packages], capture_output=True, text=True, check=False)
        return ran.stdout.strip() if ran.returncode == 0 else "not installed"

    @property
    def state(self) -> Path:
        """Of Vestibule's servers: compiled networks are made once, as on any machine where it runs a second time."""
        return self.work / "state"

    def model(self, case: Case) -> Path:
        """The folder of the case's model."""
        return model_folder(self.work / "models", case)


@dataclass
class Running:
    """A server that runs, or did."""

    name: str
    bench: Bench
    case: Case
    port: int
    settings: Mapping[str, str] = field(default_factory=dict)  # VESTIBULE_..., for ours
    started_s: float = 0.0

    def __post_init__(self) -> None:
        self.kind = KINDS[self.name]
        self._mark = secrets.token_hex(8)
        self._process: subprocess.Popen[bytes] | None = None
        self._pids = self.bench.work / f"{self.name}-{self._mark}.pids"
        self.log = self.bench.work / f"{self.name}.log"

    @property
    def url(self) -> str:
        """Of the server."""
        return f"http://{HOST}:{self.port}"

    @property
    def is_ours(self) -> bool:
        """Whether it is Vestibule."""
        return self.kind.module is None

    def start(self, picture: bytes) -> None:
        """Return when it answers this picture; `started_s` is how long that took.

        Raises:
            ServerError: it ended, or did not in time.
        """
        began = time.perf_counter()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command(),
                env=os.environ | self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.answers_within(READY_S, picture)
        self.started_s = time.perf_counter() - began

    def answers_within(self, seconds: float, picture: bytes) -> None:
        """Return when it answers this picture.

        Raises:
            ServerError: it ended, or did not in time.
        """
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            if self.ended:
                raise ServerError(f"{self.name} ended by itself: {self.log} says why")
            with suppress(httpx.HTTPError):
                if self.ask(picture, timeout=10).is_success:
                    return
            time.sleep(0.02)
        raise ServerError(f"{self.name} did not answer within {seconds:g} s: {self.log} may say why")

    @property
    def ended(self) -> bool:
        """Whether the process that was started is gone."""
        return self._process is None or self._process.poll() is not None

    def ask(self, picture: bytes, timeout: float = 60) -> httpx.Response:
        """The answer to one picture."""
        request = self.kind.request(picture)
        return httpx.post(
            self.url + request.path, content=request.body, headers=request.headers, timeout=timeout, trust_env=False
        )

    def chosen(self) -> str:
        """What computes; of ours, when it is decided."""
        if not self.is_ours:
            return self.kind.runtime
        decided = 0
        while decided < (ANSWERS if self.kind.workers > 1 else 1):  # each may come from another of them
            model = httpx.get(f"{self.url}/models/{self.case.name}", trust_env=False).json()
            decided = 0 if model["choosing"] else decided + 1
            time.sleep(0.1)
        runtime: str = model["runtime"]
        return runtime

    def pause(self) -> None:
        """Take no processor's time, until `resume`."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Go on."""
        self._signal(signal.SIGCONT)

    def model_process(self) -> psutil.Process:
        """The one that has the model in it; the last of them that is alive."""
        if self.is_ours:
            assert self._process
            return psutil.Process(self._process.pid)
        alive = [int(line) for line in self._pids.read_text().split() if psutil.pid_exists(int(line))]
        return psutil.Process(alive[-1])

    def rss_mb(self) -> float:
        """Resident memory of all its processes added up, in MB."""
        total = 0
        for process in self._processes():
            with suppress(psutil.Error):
                total += process.memory_info().rss
        return total / 1e6

    def end(self) -> None:
        """End it, and all that it started."""
        self._signal(signal.SIGCONT)
        if self._process and self._process.poll() is None:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
        self._signal(signal.SIGKILL)
        if self._process:
            self._process.wait()
        self._pids.unlink(missing_ok=True)

    def _command(self) -> list[str]:
        if self.is_ours:
            return [sys.executable, "-m", "app.cli.main", "serve"]
        about = [str(self.bench.model(self.case)), str(self.port), self.kind.runtime]
        return [self.bench.python, "-m", f"benchmarks.serving.peer_servers.{self.kind.module}", *about]

    def _environment(self) -> dict[str, str]:
        shared = {MARK: self._mark, "PYTHONPATH": str(Path.cwd())}
        if self.is_ours:
            return {
                "VESTIBULE_WEIGHTS": str(self.bench.model(self.case).parent),
                "VESTIBULE_DEFAULT_CLASSIFIER": self.case.name,
                "VESTIBULE_STATE": str(self.bench.state),
                "VESTIBULE_PORT": str(self.port),
                "VESTIBULE_WORKERS": str(self.kind.workers),
                **self.settings,
                **shared,
            }
        folder = str(self.bench.model(self.case))
        return {
            FOLDER: folder,
            RUNTIME: self.kind.runtime,
            STATE: str(self.bench.state),
            PIDS: str(self._pids),
            **shared,
        }

    def _processes(self) -> Iterable[psutil.Process]:
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(MARK) == self._mark:
                    yield process

    def _signal(self, number: int) -> None:
        for process in self._processes():
            with suppress(psutil.Error):
                process.send_signal(number)
