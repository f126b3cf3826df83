"""Several processes behind one port, one for each GPU: a parent that serves nothing, and starts again what dies.

uvicorn has a parent of its own. It gives every worker the same environment, and so the same GPU; it starts what dies
again at once, for ever; and it kills a worker that is silent for five seconds, as one is that compiles a network.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import structlog
from prometheus_client.multiprocess import mark_process_dead

from app.observability.metrics import SHARED
from app.settings import ConfigurationError, Settings, variable

log = structlog.get_logger()

DEVICES = "CUDA_VISIBLE_DEVICES"
BACKLOG = 2048
LOOK_S = 0.1
# Before a worker that died is started again: the first time, and at most. One that lived so long begins at the first.
FIRST_DELAY_S, MOST_DELAY_S, STEADY_S = 0.5, 30.0, 60.0
# For what comes after the requests under way are answered, before a worker is killed.
FAREWELL_S = 10.0


@dataclass
class _Worker:
    """`line` ends when either side does, and says when the worker serves. `due`: when to start it again."""

    number: int
    process: subprocess.Popen[bytes]
    line: socket.socket
    started: float
    ready: bool = False
    due: float | None = None
    delay: float = FIRST_DELAY_S


def listen(settings: Settings) -> socket.socket:
    """A socket that listens where the settings say.

    Raises:
        ConfigurationError: the address is in use, or is none of this machine.
    """
    host, port = settings.host.strip("[]"), settings.port
    try:
        families = {found[0] for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
        family = socket.AF_INET if socket.AF_INET in families else socket.AF_INET6
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, UnicodeError) as error:  # UnicodeError: a name that cannot be one, as "a..b"
        number = error.errno if isinstance(error, OSError) else None
        cause = "port" if number in (errno.EADDRINUSE, errno.EACCES) else "host"
        reason = os.strerror(number) if number is not None and number > 0 else getattr(error, "strerror", error)
        raise ConfigurationError(
            f"{variable(cause)} (or --{cause}): cannot listen on {host} port {port}: {reason}"
        ) from error


class Workers:
    """`settings.workers` processes on one listening socket, which is open as long as the parent is.

    So nobody is refused while a worker is started again. `welcome` is called with the port when all serve.
    """

    def __init__(self, settings: Settings, welcome: Callable[[int], None]):
        self._settings = settings
        self._welcome = welcome
        self._stopping = threading.Event()
        self._workers: list[_Worker] = []
        self._figures = settings.state / "metrics"
        self._welcomed = False

    def run(self) -> int:
        """Until SIGTERM or SIGINT; 0, or the status of a worker that could not be started at all."""
        for told in (signal.SIGTERM, signal.SIGINT):
            signal.signal(told, lambda *_: self._stopping.set())
        shutil.rmtree(self._figures, ignore_errors=True)  # of another run
        self._figures.mkdir(parents=True)
        status: int | None = None
        with listen(self._settings) as listening:
            for number in range(self._settings.workers):
                self._workers.append(self._start(number, listening))
            while status is None and not self._stopping.wait(LOOK_S):
                status = self._look_after(listening)
        self._stop()
        return status or 0

    def _start(self, number: int, listening: socket.socket) -> _Worker:
        ours, theirs = socket.socketpair()
        settings = self._settings
        environment = os.environ | {
            "VESTIBULE_HOST": settings.host,
            "VESTIBULE_PORT": str(settings.port),
            "VESTIBULE_WORKERS": str(settings.workers),
            SHARED: str(self._figures),
            DEVICES: device(number, os.environ.get(DEVICES)),
        }
        descriptors = listening.fileno(), theirs.fileno()
        command = [sys.executable, "-m", "app.cli.main", "worker", *map(str, descriptors)]
        with theirs:
            process = subprocess.Popen(command, env=environment, pass_fds=descriptors)  # noqa: S603  our own
        ours.setblocking(False)
        log.info("worker_started", worker=number, pid=process.pid)
        return _Worker(number, process, ours, time.monotonic())

    def _look_after(self, listening: socket.socket) -> int | None:
        """Welcome and start again; the status to end with, where a worker cannot be started."""
        for index, worker in enumerate(self._workers):
            if not worker.ready:
                with suppress(BlockingIOError, ConnectionError):
                    worker.ready = bool(worker.line.recv(1))
            if worker.due is not None:
                if time.monotonic() >= worker.due:
                    fresh = self._start(worker.number, listening)
                    fresh.delay = worker.delay
                    self._workers[index] = fresh
            elif (status := worker.process.poll()) is not None:
                if not self._welcomed and not worker.ready and status > 0:
                    return status  # it would fail the same way again
                self._mourn(worker, status)
        if not self._welcomed and all(worker.ready for worker in self._workers):
            self._welcomed = True
            self._welcome(listening.getsockname()[1])
        return None

    def _mourn(self, worker: _Worker, status: int) -> None:
        mark_process_dead(worker.process.pid, str(self._figures))  # type: ignore[no-untyped-call]
        worker.line.close()
        now = time.monotonic()
        delay = FIRST_DELAY_S if now - worker.started > STEADY_S else worker.delay
        worker.due, worker.delay = now + delay, min(2 * delay, MOST_DELAY_S)
        log.error("worker_died", worker=worker.number, pid=worker.process.pid, status=status, again_in_s=delay)

    def _stop(self) -> None:
        """Let all finish what is under way."""
        for worker in self._workers:
            worker.process.terminate()
        deadline = time.monotonic() + self._settings.drain_s + FAREWELL_S
        for worker in self._workers:
            try:
                worker.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
            worker.line.close()


def device(number: int, visible: str | None) -> str:
    """The GPU that a worker sees: one of those the parent may see, in turn; without a GPU it means nothing."""
    devices = [name for name in (visible or "").split(",") if name]
    if visible is None:
        return str(number)
    return devices[number % len(devices)] if devices else ""


def tie(descriptor: int) -> Callable[[], None]:
    """In a worker: end as by SIGTERM when the parent does. What comes back tells the parent that this worker serves."""
    line = socket.socket(fileno=descriptor)

    def wait() -> None:
        with suppress(OSError):
            line.recv(1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="parent", daemon=True).start()
    return lambda: line.sendall(b".")
