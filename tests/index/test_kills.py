"""Galleries after a SIGKILL or a power cut, and the test harness that causes and checks them."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import apsw
import numpy as np
import pytest

from index.embedded.gallery import EmbeddedGallery
from index.embedded.store import erasure_records, vector_records
from index.embedded.tasks.maintenance import Maintenance
from index.embedded.vectors.ivf import Ivf
from index.embedded.vectors.segment import Segment
from index.folders import make_folder, sync_folder, write_atomically
from index.types import Collection, NewFace
from tests.soak.gallery_kills import (
    DIMENSIONS,
    FINGERPRINT,
    LIMITS,
    Deaths,
    Erased,
    Model,
    check,
    clock,
    crop,
    listing,
    remains,
    summary,
    vector,
)
from tests.soak.power_cut_vfs import SECTOR, Disk, PowerCutVFS

VFS = "tests-power-cut"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A simulated disk of an empty folder; SQLite writes to it through `VFS`."""
    root = tmp_path.resolve() / "disk"
    root.mkdir()
    disk = Disk(root)
    vfs = PowerCutVFS(disk, VFS)
    with disk.watching():
        yield disk
    vfs.unregister()


def survivors(disk: Disk, share: float = 0.0, seed: int = 0) -> Path:
    """Write the files that remain after a power cut, with this share of what was not synced."""
    image = disk.root.with_name(f"image-{share}-{seed}")
    disk.write_survivors(image, random.Random(seed), share)
    return image


def rows(path: Path) -> list[int]:
    with closing(apsw.Connection(str(path))) as connection:
        return [row[0] for row in connection.execute("SELECT x FROM t")]


@pytest.mark.parametrize(("synchronous", "kept"), [("full", [1, 2]), ("off", [])])
def test_commits_survive_a_power_cut_if_sqlite_syncs(disk: Disk, synchronous: str, kept: list[int]) -> None:
    with closing(apsw.Connection(str(disk.root / "l.db"), vfs=VFS)) as connection:
        connection.pragma("journal_mode", "wal")
        connection.execute("CREATE TABLE t (x)")
        connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        connection.pragma("synchronous", synchronous)
        connection.execute("INSERT INTO t VALUES (1)")
        connection.execute("INSERT INTO t VALUES (2)")
        assert rows(survivors(disk) / "l.db") == kept
        assert rows(survivors(disk, 1.0) / "l.db") == [1, 2]


def test_unsynced_data_survives_by_sectors(disk: Disk) -> None:
    path = disk.root / "f"
    write_atomically(path, [bytes(8 * SECTOR)])
    with path.open("r+b") as file:
        file.write(b"\1" * 8 * SECTOR)
    content = (survivors(disk, 0.5) / "f").read_bytes()
    sectors = [content[start : start + SECTOR] for start in range(0, 8 * SECTOR, SECTOR)]
    assert set(sectors) == {bytes(SECTOR), b"\1" * SECTOR}
    assert (survivors(disk) / "f").read_bytes() == bytes(8 * SECTOR)


def test_an_unsynced_truncation_is_undone(disk: Disk) -> None:
    path = disk.root / "f"
    write_atomically(path, [b"long"])
    path.write_bytes(b"")
    assert [(survivors(disk, share) / "f").read_bytes() for share in (0.0, 1.0)] == [b"long", b""]


def test_renames_survive_if_the_folder_is_synced(disk: Disk) -> None:
    old, new = disk.root / "old", disk.root / "new"
    write_atomically(old, [b"1"])
    old.replace(new)
    assert [path.name for path in survivors(disk).iterdir()] == ["old"]
    sync_folder(disk.root)
    assert [path.name for path in survivors(disk, seed=1).iterdir()] == ["new"]
    new.unlink()
    assert [path.name for path in survivors(disk, seed=2).iterdir()] == ["new"]
    assert list(survivors(disk, 1.0).iterdir()) == []


def test_a_folder_survives_if_its_parents_are_synced(disk: Disk) -> None:
    (disk.root / "a" / "b").mkdir(parents=True)
    write_atomically(disk.root / "a" / "b" / "f", [b"1"])
    assert list(survivors(disk).iterdir()) == []
    make_folder(disk.root / "c" / "d")
    make_folder(disk.root / "c" / "d")
    assert (survivors(disk, seed=1) / "c" / "d").is_dir()


def test_files_outside_the_disk_are_not_changed(disk: Disk, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    write_atomically(elsewhere / "f", [b"1"])
    (elsewhere / "f").unlink()
    assert list(survivors(disk, 1.0).iterdir()) == []


class Filled:
    """A gallery of one collection with segments and an inverted file, and the model that the harness checks."""

    def __init__(self, folder: Path, vfs: str | None = None):
        self.gallery = EmbeddedGallery(folder, vfs=vfs, clock=clock(1))
        self.gallery.create("a0", "e", FINGERPRINT, DIMENSIONS)
        self.faces = self.enrol(range(60))
        self.maintenance = Maintenance(self.gallery, LIMITS)
        self.maintenance.run()

    def enrol(self, seeds: range) -> list[str]:
        new = [NewFace(f"p{seed % 5}", vector(seed), {"seed": seed}, crop(seed)) for seed in seeds]
        return [face.token for face in self.gallery.enrol("a0", new, FINGERPRINT)]

    @property
    def model(self) -> Model:
        return Model(listing(self.gallery))


def _bring_back_a_face(filled: Filled, model: Model) -> None:
    token = filled.faces[0]
    del model.there.faces[token]
    model.tokens.add(token)


def _add_an_unknown_face(filled: Filled, model: Model) -> None:
    filled.enrol(range(100, 101))


def _do_half(filled: Filled, model: Model) -> None:
    filled.enrol(range(100, 101))
    model.undecided.append({"do": "enrol", "collection": "a0", "faces": [["p0", 100], ["p1", 101]]})
    filled.gallery.remove_faces("a0", filled.faces[:1])
    model.undecided.append({"do": "remove_faces", "collection": "a0", "tokens": filled.faces[:2]})
    filled.gallery.remove_subject("a0", "p1")
    model.undecided.append({"do": "drop", "collection": "a0"})


def _lose_a_subject(filled: Filled, model: Model) -> None:
    model.there.subjects["a0"].add("p9")


def _swap_vectors(filled: Filled, model: Model) -> None:
    change = "UPDATE vectors SET data = (SELECT data FROM vectors WHERE face_id = 2) WHERE face_id = 1"
    filled.gallery.ledger.write(lambda db: db.execute(change).fetchall())
    for path in filled.gallery.files.iterdir():
        path.write_bytes(b"")


def _erase(filled: Filled, model: Model, receipt: str | None = None) -> tuple[int, str]:
    """Erase a face, add it to the model with its receipt or another one, and return its seed and its receipt."""
    face, token = model.there.faces.pop(filled.faces[0]), filled.gallery.remove_faces("a0", filled.faces[:1]).token
    model.erased.append(Erased(face, receipt or token))
    return face.seed, token


def _lose_a_receipt(filled: Filled, model: Model) -> None:
    _erase(filled, model, "missing")


def _complete_a_receipt_too_early(filled: Filled, model: Model) -> None:
    _, receipt = _erase(filled, model)
    filled.gallery.ledger.write(lambda db: erasure_records.finish_receipts(db, [receipt], 1.0))


def _leave_a_copy(filled: Filled, model: Model) -> None:
    seed, _ = _erase(filled, model)
    (filled.gallery.files.parent / "copy").write_bytes(b"..." + vector(seed).tobytes()[:16])


def _damage_the_ledger(filled: Filled, model: Model) -> None:
    filled.gallery.close()
    filled.gallery.ledger.path.write_bytes(b"SQLite format 3\0" + bytes(5000))


FAULTS: list[tuple[Callable[[Filled, Model], None], str]] = [
    (_bring_back_a_face, "came back: "),
    (_add_an_unknown_face, "never enrolled: "),
    (_do_half, "done by half: "),
    (_lose_a_subject, "subjects: "),
    (_swap_vectors, "not found: "),
    (_lose_a_receipt, "receipt lost: "),
    (_complete_a_receipt_too_early, "in spite of the receipt, bytes of "),
    (_leave_a_copy, "bytes of "),
    (_damage_the_ledger, "cannot be opened: "),
]


@pytest.mark.parametrize(("damage", "fault"), FAULTS, ids=[damage.__name__.strip("_") for damage, _ in FAULTS])
def test_the_harness_finds_each_fault(tmp_path: Path, damage: Callable[[Filled, Model], None], fault: str) -> None:
    filled = Filled(tmp_path)
    model = filled.model
    damage(filled, model)
    filled.gallery.close()
    assert any(line.startswith(fault) for line in check(tmp_path, model, 2))


def test_the_harness_accepts_both_outcomes_of_an_unacknowledged_request(tmp_path: Path) -> None:
    filled = Filled(tmp_path)
    model = filled.model
    filled.gallery.remove_subject("a0", "p1")
    for subject in ("p1", "p2"):
        model.undecided.append({"do": "remove_subject", "collection": "a0", "subject": subject})
    filled.enrol(range(102, 104))
    for faces in ([["p2", 102], ["p3", 103]], [["p0", 105]]):
        model.undecided.append({"do": "enrol", "collection": "a0", "faces": faces})
    filled.gallery.create("b0", "e", FINGERPRINT, DIMENSIONS)
    model.undecided += [{"do": "create", "collection": name} for name in ("b0", "b1")]
    filled.gallery.close()
    assert check(tmp_path, model, 2) == []
    assert (model.counts["undecided, done"], model.counts["undecided, not done"]) == (3, 3)
    assert len(model.erased) == 12


# Regressions that the harness found.


@pytest.mark.parametrize("built_before", [False, True])
def test_faces_removed_during_the_build_of_an_inverted_file_are_not_in_it(tmp_path: Path, built_before: bool) -> None:
    filled = Filled(tmp_path)
    gallery, name = filled.gallery, "a0" if built_before else "b0"
    if not built_before:
        gallery.create(name, "e", FINGERPRINT, DIMENSIONS)
    more = [NewFace("p", vector(seed)) for seed in range(100, 100 + 4 * LIMITS.segment)]
    late = [face.token for face in gallery.enrol(name, more, FINGERPRINT)[4:10]]

    class RemovingMaintenance(Maintenance):
        def _update_index(self, collection: Collection) -> None:
            if collection.name == name:
                gallery.remove_faces(name, late)
            super()._update_index(collection)

    filled.maintenance.release()
    RemovingMaintenance(gallery, LIMITS).run()
    with gallery.ledger.snapshot() as db:
        collection = gallery.collection(name)
        index, segments = vector_records.inverted_file(db, collection.id), vector_records.segments(db, collection.id)
        assert index is not None
        count = sum(len(Segment.open(gallery.files / segment.file).faces) for segment in segments)
    assert len(Ivf.read(gallery.files / index.file)) == count - len(late)
    gallery.close()


def test_an_inverted_file_contains_no_component_of_a_vector(tmp_path: Path) -> None:
    sample = np.stack([vector(seed) for seed in range(64)])
    Ivf.train(sample, 64).write(tmp_path / "i")
    content = (tmp_path / "i").read_bytes()
    assert not any(number.tobytes() in content for number in sample.ravel())


def test_erased_faces_do_not_come_back_after_a_power_cut(disk: Disk) -> None:
    filled = Filled(disk.root / "gallery", VFS)
    model = filled.model
    receipt = filled.gallery.remove_faces("a0", filled.faces[:5]).token
    model.asked["a"] = {"do": "remove_faces", "collection": "a0", "tokens": filled.faces[:5]}
    model.hear({"thread": "a", "answer": [receipt]})
    filled.maintenance.run()
    assert filled.gallery.receipt(receipt).erased_at is not None
    image = survivors(disk)
    files = b"".join(path.read_bytes() for path in (image / "gallery" / "files").iterdir())
    assert files
    assert list(remains(files, model.erased)) == []
    assert check(image / "gallery", model, 2) == []
    filled.gallery.close()


def test_a_new_gallery_survives_a_power_cut(disk: Disk) -> None:
    filled = Filled(disk.root / "new" / "gallery", VFS)
    assert check(survivors(disk) / "new" / "gallery", filled.model, 2) == []
    filled.gallery.close()


# The harness itself.


def run_deaths(deaths: Deaths, how: str, aims: tuple[str, ...]) -> list[str]:
    """Run the deaths and return the faults. Check the rows of the report, and that no ledger stays open."""
    before = set(threading.enumerate())
    rows = list(deaths.kills(aims) if how == "kill -9" else deaths.power_cuts(aims))
    assert [row.aim for row in rows] == list(aims[: len(rows)])
    assert len(rows) == len(aims) or deaths.faults
    assert f"| all | {len(rows)} |" in summary(rows)
    assert "ledger" not in {thread.name for thread in set(threading.enumerate()) - before}
    return deaths.faults


def test_kills_while_enrolling_and_opening_lose_nothing(tmp_path: Path) -> None:
    assert run_deaths(Deaths(tmp_path / "work"), "kill -9", ("enrolling", "opening")) == []


def test_power_cuts_while_writing_and_opening_lose_nothing(tmp_path: Path) -> None:
    assert run_deaths(Deaths(tmp_path / "work"), "power cut", ("write log", "opening")) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("broken", "how", "aims", "faults"),
    [
        ("the ledger is not synced", "power cut", ("write log", "sync folder"), ("lost: ", "cannot be opened: ")),
        ("files are not synced", "power cut", ("sync folder", "sync log"), ("named, but not whole: ",)),
        (
            "folders are not synced",
            "power cut",
            ("rename file", "sync log"),
            ("named, but not whole: ", "lost: ", "receipt lost: "),
        ),
        ("answers before it is durable", "kill -9", ("enrolling", "deleting"), ("lost: ", "came back: ", "subjects: ")),
    ],
)
def test_the_harness_finds_a_broken_gallery(
    tmp_path: Path, broken: str, how: str, aims: tuple[str, ...], faults: tuple[str, ...]
) -> None:
    lines = run_deaths(Deaths(tmp_path / "work", broken=broken), how, 5 * aims)
    assert any(line.startswith(faults) for line in lines), lines
