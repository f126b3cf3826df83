"""Prometheus metrics, in a registry of each application."""

from __future__ import annotations

import os
from contextlib import suppress
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_1_0_0
from prometheus_client.multiprocess import MultiProcessCollector

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64)

CONTENT_TYPE = CONTENT_TYPE_PLAIN_1_0_0

# prometheus_client reads this variable when imported: the folder in which several processes keep their metrics.
SHARED = "PROMETHEUS_MULTIPROC_DIR"


class Metrics:
    """All metrics of the service, summed over its worker processes. Times in seconds."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._shared = SHARED in os.environ
        ProcessCollector(registry=self.registry)
        counter = partial(Counter, registry=self.registry)
        histogram = partial(Histogram, registry=self.registry)
        # Of several processes: the sum, or the maximum, over the live ones.
        gauge = partial(Gauge, registry=self.registry, multiprocess_mode="livesum")
        latest = partial(Gauge, registry=self.registry, multiprocess_mode="livemax")

        self.requests = counter("vestibule_requests", "Responses by route and status", ["route", "method", "status"])
        self.latency = histogram(
            "vestibule_request_seconds",
            "From the headers to the end of the response",
            ["route"],
            buckets=_SECONDS,
        )
        self.in_flight = gauge("vestibule_requests_in_flight", "Requests that use capacity and are not yet answered")
        self.shed = counter(
            "vestibule_shed",
            "Refused at a limit: requests (admission, slow-body, body-bytes, key-rate, key-concurrency), and images by"
            " a model (queue, deadline, memory)",
            ["where", "model"],
        )
        self.cancelled = counter(
            "vestibule_cancelled",
            "Images whose client disconnected, or whose deadline passed, before the model had answered",
            ["model"],
        )
        self.queue_depth = gauge("vestibule_queue_depth", "Images that wait for the model or are in it", ["model"])
        self.batch_size = histogram("vestibule_batch_size", "Images in a batch", ["model"], buckets=_SIZES)
        self.queued = histogram("vestibule_queue_seconds", "Wait for the model", ["model"], buckets=_SECONDS)
        self.computed = histogram("vestibule_compute_seconds", "A batch in the model", ["model"], buckets=_SECONDS)

        self.loaded = latest("vestibule_model_loaded", "1 for each loaded model", ["model", "version"])
        self.memory = gauge("vestibule_model_bytes", "Approximate memory of the loaded parts of a model", ["model"])
        self.reloads = counter("vestibule_reloads", "Reloads by outcome", ["model", "outcome"])
        self.evictions = counter("vestibule_evictions", "Models evicted to free memory", ["model"])

        self.alert_attempts = counter(
            "vestibule_alert_attempts",
            "Attempts to send an alert: delivered, failed, dead (the last failed one)",
            ["outcome"],
        )

        self.maintenance_failures = counter(
            "vestibule_maintenance_failures", "Failed steps of gallery maintenance (round: a whole round)", ["step"]
        )
        self.maintenance_completed = latest(
            "vestibule_maintenance_completed_seconds",
            "End of the last round of gallery maintenance without a failed step, in seconds since 1970",
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
