"""Prometheus metrics, in a registry of each application."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_1_0_0
from prometheus_client.multiprocess import MultiProcessCollector

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64)

CONTENT_TYPE = CONTENT_TYPE_PLAIN_1_0_0

# prometheus_client reads this variable when imported: the folder in which several processes keep their metrics.
SHARED = "PROMETHEUS_MULTIPROC_DIR"
# A gauge of several processes: the sum, or the maximum, over the live ones.
_SUM: Literal["livesum"] = "livesum"
_ANY: Literal["livemax"] = "livemax"


class Metrics:
    """All metrics of the service, summed over its worker processes. Times in seconds."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._shared = SHARED in os.environ
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "vestibule_requests", "Answers by route and status", ["route", "method", "status"], registry=self.registry
        )
        self.latency = Histogram(
            "vestibule_request_seconds",
            "From the first header to the last byte",
            ["route"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.in_flight = Gauge(
            "vestibule_requests_in_flight",
            "Admitted and not yet answered",
            registry=self.registry,
            multiprocess_mode=_SUM,
        )
        self.shed = Counter(
            "vestibule_shed",
            "Refused for want of room: requests at the door (admission, slow-body, key-rate, key-concurrency), pictures"
            " by a model (queue, deadline, memory)",
            ["where", "model"],
            registry=self.registry,
        )
        self.cancelled = Counter(
            "vestibule_cancelled",
            "Pictures whose caller left, or whose time was over, before the model had answered",
            ["model"],
            registry=self.registry,
        )
        self.queue_depth = Gauge(
            "vestibule_queue_depth",
            "Pictures that wait for the model or are in it",
            ["model"],
            registry=self.registry,
            multiprocess_mode=_SUM,
        )
        self.batch_size = Histogram(
            "vestibule_batch_size", "Pictures run together", ["model"], buckets=_SIZES, registry=self.registry
        )
        self.queued = Histogram(
            "vestibule_queue_seconds", "Wait for the model", ["model"], buckets=_SECONDS, registry=self.registry
        )
        self.computed = Histogram(
            "vestibule_compute_seconds", "A batch in the model", ["model"], buckets=_SECONDS, registry=self.registry
        )
        self.loaded = Gauge(
            "vestibule_model_loaded",
            "1 for each loaded model",
            ["model", "version"],
            registry=self.registry,
            multiprocess_mode=_ANY,
        )

        self.memory = Gauge(
            "vestibule_model_bytes",
            "What the loaded parts of a model take, about",
            ["model"],
            registry=self.registry,
            multiprocess_mode=_SUM,
        )
        self.reloads = Counter(
            "vestibule_reloads", "What reloading came to", ["model", "outcome"], registry=self.registry
        )
        self.evictions = Counter(
            "vestibule_evictions", "Models let go of for want of memory", ["model"], registry=self.registry
        )

        self.maintenance_failures = Counter(
            "vestibule_maintenance_failures",
            "Steps of the gallery's maintenance that failed (round: as a whole)",
            ["step"],
            registry=self.registry,
        )
        self.maintenance_completed = Gauge(
            "vestibule_maintenance_completed_seconds",
            "When the last round of the gallery's maintenance ended in which no step failed, seconds since 1970",
            registry=self.registry,
            multiprocess_mode=_ANY,
        )

    def unloaded(self, model: str, version: str) -> None:
        """Record that the model is no longer loaded."""
        if self._shared:  # labels cannot be removed there
            self.loaded.labels(model, version).set(0)
            return
        with suppress(KeyError):
            self.loaded.remove(model, version)

    def exposition(self) -> bytes:
        """Return all metrics in the text format that Prometheus scrapes."""
        if not self._shared:
            return generate_latest(self.registry)
        all_processes = CollectorRegistry()
        MultiProcessCollector(all_processes)  # type: ignore[no-untyped-call]
        return generate_latest(all_processes)
