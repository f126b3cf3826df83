"""`vestibule gallery`: output and exit status."""

from __future__ import annotations

import json
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import psycopg
import pytest
from typer.testing import CliRunner

from app.cli.main import cli
from index import administration
from index.embedded.admin.repair import CompactionResult
from index.embedded.gallery import EmbeddedGallery
from index.embedded.store.atomic_files import lock_folder
from index.embedded.tasks.maintenance import Maintenance
from tests.index.people import enrol

Command = Callable[..., Any]  # returns a result with exit_code, stdout and stderr


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state folder whose gallery has 20 faces in `doors` and none in `trains`."""
    gallery = EmbeddedGallery(tmp_path / "state" / "gallery")
    gallery.create("doors", "face-embedder", "f1", 4)
    gallery.create("trains", "efficientnet-lite0", "f2", 3)
    enrol(gallery, "doors", 20)
    gallery.close()
    return tmp_path / "state"


@pytest.fixture
def gallery_of(state: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.setenv("VESTIBULE_STATE", str(state))
    return lambda *arguments: CliRunner().invoke(cli, ["gallery", *map(str, arguments)])


def opened(state: Path) -> EmbeddedGallery:
    return EmbeddedGallery(state / "gallery")


def test_list(gallery_of: Command, state: Path) -> None:
    listed = json.loads(gallery_of("list", "--json").stdout)
    assert listed["ledger_bytes"] >= (state / "gallery" / "ledger.db").stat().st_size
    common = {"encrypted": False, "exact": True, "file_bytes": 0}
    doors = {"name": "doors", "embedder": "face-embedder", "fingerprint": "f1", "dimensions": 4}
    trains = {"name": "trains", "embedder": "efficientnet-lite0", "fingerprint": "f2", "dimensions": 3}
    assert listed["collections"] == [
        {**doors, **common, "subjects": 5, "faces": 20},
        {**trains, **common, "subjects": 0, "faces": 0},
    ]
    text = gallery_of("list").stdout.splitlines()
    assert len(text) == 3
    assert text[0].split()[:5] == ["doors", "5", "subjects", "20", "faces"]
    assert "2 collections" in text[2]


def test_clashes(gallery_of: Command, state: Path) -> None:
    assert gallery_of("clashes").stdout == "0 names clash\n"
    gallery = opened(state)
    composed, decomposed = (unicodedata.normalize(form, "m\u00fcller") for form in ("NFC", "NFD"))
    for name in (composed, "trains"):
        gallery.put_subject("doors", name)
    gallery.create(composed, "face-embedder", "f1", 4)
    gallery.create("other", "face-embedder", "f1", 4)

    def rename(db: apsw.Connection) -> None:
        db.execute("UPDATE subjects SET key = ? WHERE key = 'trains'", (decomposed,))
        db.execute("UPDATE collections SET name = ? WHERE name = 'other'", (decomposed,))
        db.execute("UPDATE collections SET normalised = 0")

    gallery.ledger.write(rename)
    gallery.close()
    *clashes, total = gallery_of("clashes").stdout.splitlines()
    assert sorted(line.partition(":")[0] for line in clashes) == ["a collection", "a subject of 'doors'"]
    assert all("'mu\\u0308ller'" in line and "'m\\xfcller'" in line for line in clashes)
    assert total == "2 names clash"


def test_export_and_import(gallery_of: Command, state: Path, tmp_path: Path) -> None:
    file = tmp_path / "doors.parquet"
    assert gallery_of("export", "doors", file).stdout == f"wrote 20 faces to {file}\n"
    again = gallery_of("export", "doors", file)
    assert (again.exit_code, "already" in again.stderr) == (1, True)
    assert gallery_of("import", file).stdout == "enrolled 0 faces in doors; 20 were already enrolled\n"
    refused = gallery_of("import", file, "--collection", "trains")
    assert (refused.exit_code, "embedder" in refused.stderr) == (1, True)
    gallery = opened(state)
    gallery.drop("doors")
    gallery.close()
    imported = gallery_of("import", file, "--collection", "gates").stdout
    assert imported == "enrolled 20 faces in gates; 0 were already enrolled\n"


def test_only_import_creates_the_gallery(gallery_of: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gallery_of("export", "doors", tmp_path / "doors.parquet")
    monkeypatch.setenv("VESTIBULE_STATE", str(tmp_path / "new"))
    for command in (["list"], ["verify"], ["compact"], ["rebuild"], ["backup", tmp_path / "b"]):
        missing = gallery_of(*command)
        assert (missing.exit_code, "no gallery" in missing.stderr) == (1, True)
    assert not (tmp_path / "new").exists()
    assert gallery_of("import", tmp_path / "doors.parquet").exit_code == 0
    assert "doors" in gallery_of("list").stdout


def test_verify(gallery_of: Command, state: Path) -> None:
    intact = gallery_of("verify")
    assert (intact.exit_code, intact.stdout) == (0, "no faults found\n")
    for name in ("1-0.seg", "1-1.seg"):
        (state / "gallery" / "files" / name).write_bytes(b"left")
    faulty = gallery_of("verify")
    assert (faulty.exit_code, [line.split()[0] for line in faulty.stdout.splitlines()]) == (1, ["1-0.seg", "1-1.seg"])
    (state / "gallery" / "ledger.db").write_bytes(b"nonsense" * 1000)
    for command in ("verify", "list"):
        damaged = gallery_of(command)
        assert damaged.exit_code == 1
        assert damaged.stderr.startswith(f"vestibule: {state}/gallery/ledger.db: ")
        assert len(damaged.stderr.splitlines()) == 1


def test_compact(gallery_of: Command, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = gallery_of("compact")
    before, after = (int(word.replace(",", "")) for word in done.stdout.split() if word[0].isdigit())
    assert (done.exit_code, 0 < after <= before) == (0, True)
    monkeypatch.setattr(administration, "compact", lambda _: CompactionResult(2, 1, emptied=False))
    assert "has open readers" in gallery_of("compact").stdout


def test_rebuild(gallery_of: Command, state: Path) -> None:
    assert gallery_of("rebuild").stdout == "rebuilt: doors, trains\n"
    assert gallery_of("rebuild", "doors").stdout == "rebuilt: doors\n"
    missing = gallery_of("rebuild", "x")
    assert (missing.exit_code, "no collection 'x'" in missing.stderr) == (1, True)
    gallery = opened(state)
    assert Maintenance(gallery).run()
    refused = gallery_of("rebuild")
    gallery.close()
    assert (refused.exit_code, "another process does" in refused.stderr) == (1, True)


def test_backup_and_restore(gallery_of: Command, state: Path, tmp_path: Path) -> None:
    done = gallery_of("backup", tmp_path / "backup")
    assert done.stdout.startswith(f"backed up 20 faces of 2 collections to {tmp_path / 'backup'}, ")
    gallery = opened(state)
    gallery.remove_subject("doors", "p0")
    in_use = gallery_of("restore", tmp_path / "backup")
    assert (in_use.exit_code, "in use" in in_use.stderr) == (1, True)
    gallery.close()
    done = gallery_of("restore", tmp_path / "backup")
    assert (done.exit_code, done.stderr) == (0, "")
    assert "erased again: 4 faces, 1 subjects, 0 collections" in done.stdout
    assert "deleted the previous ledger" in done.stdout
    gallery = opened(state)
    assert [subject.key for subject in gallery.subjects("doors")] == ["p1", "p2", "p3", "p4"]
    gallery.close()
    assert gallery_of("verify").exit_code == 0
    (tmp_path / "backup" / "ledger.db").write_bytes(b"")
    assert gallery_of("restore", tmp_path / "backup").exit_code == 1


def test_restore_elsewhere_warns_that_erasures_are_unknown(
    gallery_of: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery_of("backup", tmp_path / "backup")
    monkeypatch.setenv("VESTIBULE_STATE", str(tmp_path / "new"))
    done = gallery_of("restore", tmp_path / "backup")
    assert (done.exit_code, "no record of erasures" in done.stderr) == (0, True)
    assert "doors" in gallery_of("list").stdout


def test_invalid_settings_and_a_running_restore_are_reported(
    gallery_of: Command, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with lock_folder(state / "gallery", exclusive=True):
        assert "being restored" in gallery_of("list").stderr
    monkeypatch.setenv("VESTIBULE_PORT", "x")
    invalid = gallery_of("list")
    assert (invalid.exit_code, invalid.stderr.startswith("vestibule: VESTIBULE_PORT: ")) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "instead"),
    [
        (("clashes",), "none clash"),
        (("compact",), "VACUUM FULL"),
        (("rebuild",), "REINDEX"),
        (("rekey", "key"), "no encrypted collections"),
        (("backup", "copy"), "pg_basebackup or pg_dump"),
        (("restore", "copy"), "pg_basebackup or pg_dump"),
    ],
)
def test_commands_for_a_folder_are_refused_for_a_database(
    gallery_of: Command, arguments: tuple[str, ...], instead: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """These commands would otherwise change, or create, a gallery in the state folder that the service does not use."""
    monkeypatch.setenv("VESTIBULE_DATABASE", "postgresql://user:hidden@127.0.0.1/vestibule")
    result = gallery_of(*arguments)
    assert result.exit_code == 1
    assert instead in result.output
    assert "hidden" not in result.output


def test_an_unreachable_database_is_reported(gallery_of: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VESTIBULE_DATABASE", "postgresql://user:hidden@127.0.0.1:1/vestibule")
    result = gallery_of("list")
    assert (result.exit_code, "cannot be reached" in result.stderr, "hidden" in result.output) == (1, True, False)


def test_a_gallery_is_moved_into_a_database(
    gallery_of: Command, tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "export"
    assert gallery_of("export", "--all", folder).stdout == (
        f"wrote 5 subjects, 20 faces and 0 rejected faces of 2 collections, and 0 receipts to {folder}\n"
    )
    monkeypatch.setenv("VESTIBULE_DATABASE", database_url)
    done = gallery_of("import", "--all", folder, "--searches", "30")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "doors: 5 subjects, 20 faces, 0 rejected faces",
        "trains: 0 subjects, 0 faces, 0 rejected faces",
        "0 receipts",
        "compared all rows and 30 searches with the export: equal",
    ]
    again = gallery_of("import", "--all", folder, "--searches", "0", "--without", "trains").stdout.splitlines()
    assert again[-2] == "all of this export was imported before: nothing has changed"
    listed = json.loads(gallery_of("list", "--json").stdout)
    assert listed["database_bytes"] > 0
    assert [(row["name"], row["faces"]) for row in listed["collections"]] == [("doors", 20), ("trains", 0)]
    assert "the database has" in gallery_of("list").stdout
    assert gallery_of("verify").stdout == "no faults found\n"
    assert gallery_of("export", "doors", tmp_path / "doors.parquet").stdout.startswith("wrote 20 faces")
    with psycopg.connect(database_url) as connection:
        connection.execute("UPDATE subjects SET sealed = '' WHERE id = 1")
    faulty = gallery_of("verify")
    assert (faulty.exit_code, faulty.stdout.startswith("doors: the rest cannot be read")) == (1, True)


def test_a_gallery_that_differs_from_its_export_is_reported(
    gallery_of: Command, state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery = opened(state)
    gallery.put_subject("doors", "brief", expires_at=time.time() + 3600)
    gallery.remove_subject("doors", "p4")
    gallery.close()
    exported = gallery_of("export", "--all", tmp_path / "export")
    assert "1 erasures are not finished" in exported.stderr
    later = time.time() + 7200
    defaults = EmbeddedGallery.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "clock", lambda: later)
    monkeypatch.setenv("VESTIBULE_STATE", str(tmp_path / "new"))
    done = gallery_of("import", "--all", tmp_path / "export", "--searches", "0")
    assert done.stdout.splitlines()[0] == (
        "doors: 4 subjects, 16 faces, 0 rejected faces; left out 1 of expired or erased subjects"
    )
    gallery = opened(tmp_path / "new")
    gallery.remove_subject("doors", "p3")
    gallery.drop("trains")
    gallery.close()
    again = gallery_of("import", "--all", tmp_path / "export", "--searches", "0")
    assert again.exit_code == 1
    assert "trains was dropped after it was imported" in again.stdout
    assert "'doors' has 3 subjects, the export 4" in again.stderr
    assert "the gallery differs from the export" in again.stderr


def test_wrong_uses_of_export_and_import(gallery_of: Command, tmp_path: Path) -> None:
    for arguments, message in (
        (("export", "doors"), "expected a collection and a file"),
        (("export", "--all", "doors", tmp_path / "x"), "or a folder and --all"),
        (("import", tmp_path), "import it with --all"),
        (("import", "--all", tmp_path, "--collection", "x"), "--collection is for a file"),
        (("import", "--all", tmp_path / "none"), "is not an export"),
    ):
        result = gallery_of(*arguments)
        assert (result.exit_code, message in result.stderr) == (1, True), arguments
