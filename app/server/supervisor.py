"""Worker processes behind one port, one per GPU, and the supervisor that starts and restarts them.

uvicorn's own supervisor gives every worker the same environment, and so the same GPU; it restarts a dead worker without
backoff; and it kills a worker that does not respond for five seconds, which compiling a network can take.
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
POLL_S = 0.1
# Backoff before a dead worker is restarted: first and longest delay, and the run time that resets it to the first.
FIRST_DELAY_S, MOST_DELAY_S, STEADY_S = 0.5, 30.0, 60.0
# Seconds after `stop_delay_s` and `drain_s` until a worker that has not exited is killed.
SHUTDOWN_GRACE_S = 10.0


@dataclass
class _WorkerProcess:
    """A worker. `line`: a socket to it, closed when either process ends, on which it reports that it serves.

    `restart_at`: when to restart it if it is dead, else None. `delay`: the backoff of the next restart, in seconds.
    """

    number: int
    process: subprocess.Popen[bytes]
    line: socket.socket
    started: float
    ready: bool = False
    restart_at: float | None = None
    delay: float = FIRST_DELAY_S


def listen(settings: Settings) -> socket.socket:
    """Return a socket that listens on the host and port of the settings.

    Raises:
        ConfigurationError: the address is in use, or not one of this machine.
    """
    host, port = settings.host.strip("[]"), settings.port
    try:
        families = {address[0] for address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
        family = socket.AF_INET if socket.AF_INET in families else socket.AF_INET6
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, UnicodeError) as error:  # UnicodeError: an invalid host name, such as "a..b"
        number = error.errno if isinstance(error, OSError) else None
        cause = "port" if number in (errno.EADDRINUSE, errno.EACCES) else "host"
        reason = os.strerror(number) if number is not None and number > 0 else getattr(error, "strerror", error)
        raise ConfigurationError(
            f"{variable(cause)} (or --{cause}): cannot listen on {host} port {port}: {reason}"
        ) from error


class Supervisor:
    """Runs `settings.workers` processes on one listening socket, which stays open in this process.

    So no connection is refused while a worker restarts. `on_ready` is called with the port once all workers serve.
    """

    def __init__(self, settings: Settings, on_ready: Callable[[int], None]):
        self._settings = settings
        self._on_ready = on_ready
        self._stopping = threading.Event()
        self._workers: list[_WorkerProcess] = []
        self._metrics = settings.state / "metrics"
        self._is_ready = False

    def run(self) -> int:
        """Run until SIGTERM or SIGINT; return 0, or the status of a worker that could not start."""
        for stop_signal in (signal.SIGTERM, signal.SIGINT):
            signal.signal(stop_signal, lambda *_: self._stopping.set())
        shutil.rmtree(self._metrics, ignore_errors=True)  # of an earlier run
        self._metrics.mkdir(parents=True)
        status: int | None = None
        with listen(self._settings) as listening:
            for number in range(self._settings.workers):
                self._workers.append(self._start(number, listening))
            while status is None and not self._stopping.wait(POLL_S):
                status = self._check(listening)
        self._stop()
        return status or 0

    def _start(self, number: int, listening: socket.socket) -> _WorkerProcess:
        ours, theirs = socket.socketpair()
        settings = self._settings
        environment = os.environ | {
            "VESTIBULE_HOST": settings.host,
            "VESTIBULE_PORT": str(settings.port),
            "VESTIBULE_WORKERS": str(settings.workers),
            SHARED: str(self._metrics),
            DEVICES: device(number, os.environ.get(DEVICES)),
        }
        descriptors = listening.fileno(), theirs.fileno()
        command = [sys.executable, "-m", "app.cli.main", "worker", *map(str, descriptors)]
        with theirs:
            process = subprocess.Popen(command, env=environment, pass_fds=descriptors)  # noqa: S603  our own
        ours.setblocking(False)
        log.info("worker_started", worker=number, pid=process.pid)
        return _WorkerProcess(number, process, ours, time.monotonic())

    def _check(self, listening: socket.socket) -> int | None:
        """Restart dead workers, report readiness; return the exit status if a worker cannot start."""
        for index, worker in enumerate(self._workers):
            if worker.restart_at is not None:
                if time.monotonic() >= worker.restart_at:
                    self._workers[index] = self._start(worker.number, listening)
                    self._workers[index].delay = worker.delay
                continue
            if not worker.ready:
                with suppress(BlockingIOError, ConnectionError):
                    worker.ready = bool(worker.line.recv(1))
            if (status := worker.process.poll()) is not None:
                if not self._is_ready and not worker.ready and status > 0:
                    return status  # a restarted worker would fail in the same way
                self._schedule_restart(worker, status)
        if not self._is_ready and all(worker.ready for worker in self._workers):
            self._is_ready = True
            self._on_ready(listening.getsockname()[1])
        return None

    def _schedule_restart(self, worker: _WorkerProcess, status: int) -> None:
        mark_process_dead(worker.process.pid, str(self._metrics))  # type: ignore[no-untyped-call]
        worker.line.close()
        now = time.monotonic()
        delay = FIRST_DELAY_S if now - worker.started > STEADY_S else worker.delay
        worker.restart_at, worker.delay = now + delay, min(2 * delay, MOST_DELAY_S)
        log.error("worker_died", worker=worker.number, pid=worker.process.pid, status=status, again_in_s=delay)

    def _stop(self) -> None:
        """Let all workers finish their requests; kill those that take too long."""
        for worker in self._workers:
            worker.process.terminate()
        deadline = time.monotonic() + self._settings.stop_delay_s + self._settings.drain_s + SHUTDOWN_GRACE_S
        for worker in self._workers:
            try:
                worker.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
            worker.line.close()


def device(number: int, visible: str | None) -> str:
    """Return the GPU of a worker as CUDA_VISIBLE_DEVICES: one of the parent's, round robin. Unused without a GPU."""
    devices = [name for name in (visible or "").split(",") if name]
    if visible is None:
        return str(number)
    return devices[number % len(devices)] if devices else ""


def watch_parent(descriptor: int) -> Callable[[], None]:
    """In a worker: send SIGTERM to itself when the parent ends. Return a function that reports this worker as ready."""
    line = socket.socket(fileno=descriptor)

    def wait() -> None:
        with suppress(OSError):
            line.recv(1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="parent", daemon=True).start()
    return lambda: line.sendall(b".")
