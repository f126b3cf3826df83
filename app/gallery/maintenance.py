"""The thread that runs the gallery's maintenance while the service runs."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from datetime import UTC, datetime

import structlog

from app.observability.metrics import Metrics
from index.errors import MaintenanceError
from index.protocol import Storage

log = structlog.get_logger()


class MaintenanceThread:
    """A thread that runs a round of maintenance every `interval_s` seconds; one of several processes does so."""

    def __init__(self, storage: Storage, interval_s: float, metrics: Metrics):
        self._storage = storage
        self._interval_s = interval_s
        self._metrics = metrics
        self._stop_requested = threading.Event()
        self._failures: Mapping[str, Exception] = {}
        self.completed_at: datetime | None = None  # end of the last round without a failure
        self._thread = threading.Thread(target=self._run, name="maintenance", daemon=True)

    @property
    def problems(self) -> list[str]:
        """Return why the gallery is degraded. Readiness is public: no contents of the gallery are named."""
        problems = []
        if not self._thread.is_alive():
            problems.append("maintenance does not run: no file is erased and nothing expires; restart the service")
        if self._failures:
            problems.append(f"maintenance failed in {', '.join(sorted(self._failures))}; the log says why")
        problems += self._storage.problems()
        return problems

    def start(self) -> None:
        """Start the thread, which runs the first round at once."""
        self._thread.start()

    def stop(self) -> None:
        """Wait for the current round, then let another process run maintenance."""
        self._stop_requested.set()
        self._thread.join()
        self._storage.maintenance.release()

    def _run(self) -> None:
        while not self._stop_requested.is_set():
            self._round()
            self._stop_requested.wait(self._interval_s)

    def _round(self) -> None:
        """Run one round and record its failures."""
        failures: Mapping[str, Exception] = {}
        try:
            self._storage.maintenance.run()
        except MaintenanceError as error:
            failures = error.failures
        except Exception as error:  # noqa: BLE001  logged below; a thread that ends would stop erasure and expiry
            failures = {"round": error}
        else:
            self.completed_at = datetime.now(UTC)
            self._metrics.maintenance_completed.set(self.completed_at.timestamp())
        for step, failure in failures.items():
            self._metrics.maintenance_failures.labels(step.split()[0]).inc()
            if repr(failure) != repr(self._failures.get(step)):  # log a lasting failure once
                log.error("maintenance_failed", step=step, error=str(failure), exc_info=failure)
        self._failures = failures
