"""The thread that runs the gallery's maintenance while the service runs."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime

import structlog

from app.observability.metrics import Metrics
from index.embedded.gallery import EmbeddedGallery
from index.embedded.tasks.maintenance import Maintenance, MaintenanceError

log = structlog.get_logger()

FULL_DISK_S = 60.0  # how long the disk counts as full after a write failed
MIN_FREE_BYTES = 2**20  # with less free space the disk counts as full even if no write failed


class MaintenanceThread:
    """A thread that runs a round of maintenance every `interval_s` seconds; one of several processes does so."""

    def __init__(self, gallery: EmbeddedGallery, interval_s: float, metrics: Metrics):
        self._gallery = gallery
        self._maintenance = Maintenance(gallery)
        self._interval_s = interval_s
        self._metrics = metrics
        self._stop_requested = threading.Event()
        self._failures: Mapping[str, Exception] = {}
        self._free = MIN_FREE_BYTES
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
        full_at = self._gallery.ledger.full_at
        if self._free < MIN_FREE_BYTES or (full_at is not None and time.monotonic() - full_at < FULL_DISK_S):
            problems.append("the disk is full: enrolling and erasing fail (507); free some space for the state folder")
        return problems

    def start(self) -> None:
        """Start the thread, which runs the first round at once."""
        self._thread.start()

    def stop(self) -> None:
        """Wait for the current round, then let another process run maintenance."""
        self._stop_requested.set()
        self._thread.join()
        self._maintenance.release()

    def _run(self) -> None:
        while not self._stop_requested.is_set():
            self._round()
            self._stop_requested.wait(self._interval_s)

    def _round(self) -> None:
        """Run one round and record its failures."""
        failures: Mapping[str, Exception] = {}
        try:
            self._free = shutil.disk_usage(self._gallery.files).free
            self._maintenance.run()
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
