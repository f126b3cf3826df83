"""The faults that `benchmarks.cameras.process_kills` finds in stored sightings."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from benchmarks.cameras.watcher_processes import ENROLLED, WatcherRun, judge
from vestibule_client.sighting_answers import Sighting

FAULTS = ("lost", "doubled", "wrong_recordings", "wrong_ids")


def sighting(id: str, camera: str, started_at: float, subject: str | None) -> Sighting:
    start = datetime.fromtimestamp(started_at, UTC)
    return Sighting(
        id=id, position=1, created_at=start, expires_at=start + timedelta(1), pseudonym=None, collection="people",
        camera=camera, started_at=start, ended_at=start, frames=4, subject_id=subject, name=None, probability=None,
        distance=None, fpir=None, threshold=None, has_crop=False,
    )  # fmt: skip


def run(camera: str, status: int, *events: tuple[str, str, str | None], **fields: Any) -> WatcherRun:
    """A watcher that ended with this status; events: kind, passage, and the stored sighting."""
    process = subprocess.Popen([sys.executable, "-c", f"raise SystemExit({status})"])
    process.wait()
    reported = [{"event": kind, "passage": passage, "sighting": stored} for kind, passage, stored in events]
    return WatcherRun(camera, process, Path("watcher.jsonl"), events=reported, **fields)


@pytest.fixture(scope="module")
def runs() -> list[WatcherRun]:
    """A recording that was processed to its end; and a kill with one passage in the queue and one in view."""
    complete = run(
        "a", 0, ("passage", "p1", None), ("sighting", "p1", "s1"), ("passage", "p2", None), ("sighting", "p2", "s2"),
        began=100.0, ended=200.0,
    )  # fmt: skip
    killed = run(
        "b", 9, ("passage", "p3", None), ("passage", "p4", None), began=100.0, ended=150.0, queued={"p3": 101.0}
    )
    return [complete, killed]


STORED = [sighting("s1", "a", 101, ENROLLED), sighting("s2", "a", 111, None), sighting("s3", "b", 101, ENROLLED)]


def test_no_fault(runs: list[WatcherRun]) -> None:
    found = judge(runs, STORED)
    assert {name: found[name] for name in FAULTS} == dict.fromkeys(FAULTS, 0)
    counts = ("recordings", "ended", "sightings", "unreported", "in_view")
    assert [found[name] for name in counts] == [1, 3, 3, 0, 1]


def test_a_sighting_that_the_killed_watcher_did_not_report(runs: list[WatcherRun]) -> None:
    found = judge(runs, [*STORED, sighting("s4", "b", 111, None)])
    assert (found["unreported"], found["in_view"], found["lost"]) == (1, 0, 0)


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (STORED[:2], {"lost": 1}),  # that of the queue
        (STORED[1:], {"lost": 1, "wrong_recordings": 1}),
        ([*STORED, sighting("s5", "b", 101, ENROLLED)], {"doubled": 1}),
        ([STORED[0], sighting("s2", "a", 111, ENROLLED), STORED[2]], {"wrong_recordings": 1}),
    ],
)
def test_faults(runs: list[WatcherRun], stored: list[Sighting], expected: dict[str, int]) -> None:
    found = judge(runs, stored)
    assert {name: found[name] for name in FAULTS} == dict.fromkeys(FAULTS, 0) | expected


def test_a_passage_with_two_ids(runs: list[WatcherRun]) -> None:
    again = run("a", 9, ("sighting", "p1", "s2"), began=300.0, ended=301.0)
    assert judge([*runs, again], STORED)["wrong_ids"] == 1
