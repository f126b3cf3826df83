"""docs/backup-and-upgrade.md: its commands, as printed, on a small gallery."""

from __future__ import annotations

from pathlib import Path

import pytest

from index.embedded.gallery import EmbeddedGallery
from tests.fences import Shell, run_all
from tests.index.people import enrol, vectors

PAGE = Path(__file__).parents[3] / "docs" / "backup-and-upgrade.md"


def test_the_page_s_commands_do_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VESTIBULE_STATE", "state")
    gallery = EmbeddedGallery(Path("state/gallery"))
    gallery.create("doors", "face-embedder", "f1", 4)
    enrol(gallery, "doors", 20)
    gallery.close()
    Path("state/compiled").mkdir()
    (tmp_path / "state/compiled/made-anew").write_bytes(b"")

    with Shell() as shell:
        said = list(run_all(PAGE, shell))
    printed = dict(said)
    assert [text for line, text in said if line.endswith("gallery verify")] == ["no faults found\n"] * 3
    assert printed[".venv/bin/vestibule gallery backup backups/monday"].startswith("20 faces of 1 collections are in")
    (listed,) = (text for line, text in said if line.endswith("gallery list"))
    assert listed.split()[3:5] == ["20", "faces"]
    (imported,) = (text for line, text in said if "import" in line)
    assert imported == "enrolled 20 faces in doors; 0 were already enrolled\n"
    moved = EmbeddedGallery(Path("elsewhere/gallery"))
    (nearest,) = moved.search("doors", vectors(20)[:1], k=1)
    moved.close()
    assert nearest[0].subject.key == "p0"
