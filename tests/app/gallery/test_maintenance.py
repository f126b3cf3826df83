"""The thread that runs the gallery's maintenance."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from app.gallery.maintenance import MaintenanceThread
from app.observability.metrics import Metrics
from index.embedded.gallery import EmbeddedGallery
from index.embedded.tasks.compaction import Maintenance


def test_a_failed_round_is_logged_and_followed_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, errors, completed = Maintenance.run, [OSError("no space")], threading.Event()

    def fail_once(self: Maintenance) -> bool:
        if errors:
            raise errors.pop()
        is_leader = run(self)
        completed.set()
        return is_leader

    gallery = EmbeddedGallery(tmp_path)
    maintenance = MaintenanceThread(gallery, 0.01, Metrics())
    assert [problem.split(":")[0] for problem in maintenance.problems] == ["maintenance does not run"]
    with capture_logs() as logs:
        # Not before: the maintenance of another test's service may be the one that fails.
        monkeypatch.setattr(Maintenance, "run", fail_once)
        maintenance.start()
        assert completed.wait(60)
        maintenance.stop()
    assert maintenance.completed_at is not None
    gallery.close()
    assert [(line["event"], line["error"]) for line in logs] == [("maintenance_failed", "no space")]
