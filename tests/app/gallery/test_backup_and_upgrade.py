"""The commands of docs/backup-and-upgrade.md, as printed, on a small gallery."""

from __future__ import annotations

from pathlib import Path

import pytest

from index.embedded.gallery import EmbeddedGallery
from tests.fences import Shell, run_all
from tests.index.people import enrol, vectors

PAGE = Path(__file__).parents[3] / "docs" / "backup-and-upgrade.md"


def test_documented_commands_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VESTIBULE_STATE", "state")
    gallery = EmbeddedGallery(Path("state/gallery"))
    gallery.create("doors", "face-embedder", "f1", 4)
    enrol(gallery, "doors", 20)
    gallery.close()
    (tmp_path / "state/compiled").mkdir()
    (tmp_path / "state/compiled/cached").write_bytes(b"")
    with Shell() as shell:
        commands = list(run_all(PAGE, shell))
    outputs = dict(commands)
    assert [out for line, out in commands if line.endswith("gallery verify")] == ["no faults found\n"] * 3
    assert outputs[".venv/bin/vestibule gallery backup backups/monday"].startswith("backed up 20 faces of 1 ")
    (listed,) = (out for line, out in commands if line.endswith("gallery list"))
    assert listed.split()[3:5] == ["20", "faces"]
    (imported,) = (out for line, out in commands if "import" in line)
    assert imported == "enrolled 20 faces in doors; 0 were already enrolled\n"
    restored = EmbeddedGallery(Path("elsewhere/gallery"))
    (nearest,) = restored.nearest_subjects("doors", vectors(20)[:1], k=1)
    restored.close()
    assert nearest[0].subject.key == "p0"
