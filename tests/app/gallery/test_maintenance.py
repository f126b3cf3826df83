"""The gallery's background work goes on after what passes by itself."""

from __future__ import annotations

import threading
from pathlib import Path

import apsw
import pytest
from structlog.testing import capture_logs

from app.gallery.maintenance import MaintenanceThread
from app.observability.metrics import Metrics
from index.embedded.gallery import EmbeddedGallery
from index.embedded.tasks.compaction import Maintenance
from index.errors import CorruptError


@pytest.mark.parametrize(
    "error", [apsw.BusyError("locked"), CorruptError("damaged"), OSError("no space"), ValueError("a damaged row")]
)
def test_a_round_that_fails_is_logged_and_the_next_one_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    run, failures, done = Maintenance.run, [error], threading.Event()

    def once(self: Maintenance) -> bool:
        if failures:
            raise failures.pop()
        mine = run(self)
        done.set()
        return mine

    gallery = EmbeddedGallery(tmp_path)
    upkeep = MaintenanceThread(gallery, 0.01, Metrics())
    assert [reason.split(":")[0] for reason in upkeep.troubles] == ["maintenance does not run"]
    with capture_logs() as logs:
        # Not before: the upkeep of another test's service may be the one that fails.
        monkeypatch.setattr(Maintenance, "run", once)
        upkeep.start()
        assert done.wait(10)
        upkeep.stop()
    assert upkeep.completed_at is not None
    gallery.close()
    assert [(line["event"], line["log_level"], line["error"]) for line in logs] == [
        ("upkeep_failed", "error", str(error))
    ]
