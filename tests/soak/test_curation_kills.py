"""Merges, undos and moves under kill -9: complete or not made at all, and in the audit log with the key's id.

pytest -m slow -s tests/soak/test_curation_kills.py --soak-size 100 --soak-results benchmarks/results
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pytest

from benchmarks import tables
from index.audit_chain import AuditEvent
from index.factory import open_storage
from index.protocol import Storage
from tests.soak.conftest import Soak
from tests.soak.curation_kills import Death, Kills


def events_of(storage: Storage) -> list[AuditEvent]:
    """Return all events of the audit log, whose chain is checked."""
    log = storage.gallery.audit  # type: ignore[attr-defined]
    assert log.verify() is None
    events: list[AuditEvent] = []
    cursor = 0
    while page := log.read(cursor, 1000)[0]:
        events += [entry.event for entry in page]
        cursor = log.read(cursor, 1000)[1]
    return events


def opener(request: pytest.FixtureRequest, engine: str, folder: Path) -> Callable[[], Storage]:
    url = request.getfixturevalue("database_url") if engine == "postgres" else None
    return partial(open_storage, folder, database=url)


@pytest.mark.parametrize("engine", ["embedded", "postgres"])
def test_few_kills(request: pytest.FixtureRequest, tmp_path: Path, engine: str) -> None:
    kills = Kills(opener(request, engine, tmp_path), events_of, seed=1)
    assert len(list(kills.run(2))) == 2
    assert kills.faults == []


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["embedded", "postgres"])
def test_no_kill_leaves_half_a_change(request: pytest.FixtureRequest, soak: Soak, tmp_path: Path, engine: str) -> None:
    kills, path = Kills(opener(request, engine, tmp_path), events_of, soak.seed), soak.results / "curation_kills.csv"
    others = [row for row in tables.read(path) if row["engine"] != engine]
    deaths: list[Death] = []
    for death in kills.run(soak.size or 5):
        deaths.append(death)
        tables.write(path, ["engine", *asdict(death)], [*others, *({"engine": engine, **asdict(d)} for d in deaths)])
        print(death, flush=True)
    print(engine, len(deaths), "kills;", sum(death.acknowledged for death in deaths), "changes acknowledged; killed in")
    print(Counter((death.in_progress, death.made) for death in deaths))
    assert kills.faults == []
    assert len(deaths) == (soak.size or 5)
