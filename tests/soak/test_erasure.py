"""Once every receipt says `erased`, no file holds any form of what was erased, however large the collection.

    pytest -m slow -s tests/soak/test_erasure.py -k plain --soak-size 1000000 --soak-results benchmarks/results
    pytest -m slow -s tests/soak/test_erasure.py -k encrypted --soak-size 200000 --soak-results benchmarks/results

The size is the number of vectors, of which each of three rounds erases 1,000, and 20 subjects.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks import tables
from index.embedded.gallery import EmbeddedGallery
from index.embedded.tasks.maintenance import Maintenance
from tests.soak import erasure
from tests.soak.conftest import Soak
from tests.soak.erasure import Plan, erase, measure


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for the temporary files of this process and of SQLite."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    for name in ("TMPDIR", "SQLITE_TMPDIR"):
        monkeypatch.setenv(name, str(folder))
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "encrypted"])
def test_erased_data_is_in_no_file(soak: Soak, tmp_path: Path, temporary: Path, encrypted: bool) -> None:
    plan = Plan(soak.size or 20_000, dimensions=128, faces=1000, subjects=20, rounds=3, encrypted=encrypted)
    row, lines = measure(plan, tmp_path / "state", temporary)
    tables.write(soak.results / f"erasure{'_encrypted' if encrypted else ''}.csv", list(row), [row])
    print(row)
    assert lines == []
    assert row["searched_mb"] > row["files_mb"] > 0.5


def test_a_copy_of_an_erased_subject_is_found(tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def erase_incompletely(
        gallery: EmbeddedGallery, maintenance: Maintenance, tokens: Sequence[str], keys: Sequence[str]
    ) -> float:
        (gallery.files.parent / "copy").write_text(json.dumps({"subject": keys[0]}))
        return erase(gallery, maintenance, tokens, keys)

    monkeypatch.setattr(erasure, "erase", erase_incompletely)
    plan = Plan(2000, dimensions=64, faces=300, subjects=20, rounds=2, encrypted=False)
    row, lines = measure(plan, tmp_path / "state", temporary)
    assert row["left"] == len(lines) > 0
    assert all("copy" in line for line in lines)
