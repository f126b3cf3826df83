"""A gallery that is killed, or loses its power, loses nothing acknowledged and brings nothing erased back.

    pytest -m slow -s tests/soak/test_gallery_kills.py -k sigkill --soak-size 300 --soak-results benchmarks/results
    pytest -m slow -s tests/soak/test_gallery_kills.py -k power_cut --soak-size 50 --soak-results benchmarks/results

The size is the number of deaths; the default is one of each kind. The first fault ends the run, and its folder stays
where pytest keeps temporary folders. Threads make every run different, whatever the seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import cycle, islice
from pathlib import Path

import pytest

from benchmarks import tables
from tests.soak.conftest import Soak
from tests.soak.gallery_kills import CUT_AIMS, KILL_AIMS, Deaths, Row, summary


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "kinds"), [("kill -9", KILL_AIMS), ("power cut", tuple(CUT_AIMS))], ids=["kill", "cut"]
)
def test_no_death_loses_or_revives_data(soak: Soak, tmp_path: Path, how: str, kinds: Sequence[str]) -> None:
    aims = list(islice(cycle(kinds), soak.size or len(kinds)))
    deaths, path = Deaths(tmp_path / "work", soak.seed), soak.results / "gallery_kills.csv"
    others = [row for row in tables.read(path) if row["how"] != how]
    rows: list[Row] = []
    for row in deaths.kills(aims) if how == "kill -9" else deaths.power_cuts(aims):
        rows.append(row)
        tables.write(path, list(asdict(row)), [*others, *map(asdict, rows)])
        print(asdict(row), flush=True)
    print(summary(rows))
    assert deaths.faults == []
    assert [row.aim for row in rows] == aims
