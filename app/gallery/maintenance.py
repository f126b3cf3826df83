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
from index.embedded.tasks.compaction import Maintenance, MaintenanceError

log = structlog.get_logger()

RECENT_S = 60.0  # how long readiness reports a write that found the disk full
MIN_FREE = 2**20  # bytes; with less the disk counts as full, also where nobody has tried to write


class MaintenanceThread:
    """A thread that runs gallery maintenance every `interval_s` seconds; of several processes one does so."""

    def __init__(self, gallery: EmbeddedGallery, interval_s: float, metrics: Metrics):
        self._gallery = gallery
        self._maintenance = Maintenance(gallery)
        self._interval_s = interval_s
        self._metrics = metrics
        self._stopping = threading.Event()
        self._failures: Mapping[str, Exception] = {}
        self._free = MIN_FREE
        self.completed_at: datetime | None = None  # when the last round ended in which no step failed
        self._thread = threading.Thread(target=self._run, name="maintenance", daemon=True)

    @property
    def troubles(self) -> list[str]:
        """Why the gallery does not do all that it should. Anybody may ask, so nothing of its contents is told."""
        troubles = []
        if not self._thread.is_alive():
            troubles.append("maintenance does not run: nothing is erased from files and nothing expires; restart")
        if self._failures:
            troubles.append(f"maintenance failed in {', '.join(sorted(self._failures))}; the log says why")
        full_at = self._gallery.ledger.full_at
        if self._free < MIN_FREE or (full_at is not None and time.monotonic() - full_at < RECENT_S):
            troubles.append("the disk is full: enrolling and erasing answer 507; free some space for the state folder")
        return troubles

    def start(self) -> None:
        """The first round begins at once."""
        self._thread.start()

    def stop(self) -> None:
        """Wait for the round under way, then let another process do it."""
        self._stopping.set()
        self._thread.join()
        self._maintenance.release()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._round()
            self._stopping.wait(self._interval_s)

    def _round(self) -> None:
        """One round; whatever it raises, the next one is tried."""
        failures: Mapping[str, Exception] = {}
        try:
            self._free = shutil.disk_usage(self._gallery.files).free
            self._maintenance.run()
        except MaintenanceError as error:
            failures = error.failures
        except Exception as error:  # noqa: BLE001  told below; a thread that ends would stop erasure and retention
            failures = {"round": error}
        else:
            self.completed_at = datetime.now(UTC)
            self._metrics.maintenance_completed.set(self.completed_at.timestamp())
        for step, failure in failures.items():
            self._metrics.maintenance_failures.labels(step.split()[0]).inc()
            if repr(failure) != repr(self._failures.get(step)):  # a fault that lasts is logged once
                log.error("upkeep_failed", step=step, error=str(failure), exc_info=failure)
        self._failures = failures
