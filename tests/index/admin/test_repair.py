"""Smaller, or made anew: the same people and answers as before."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from index.embedded.admin import repair as upkeep
from index.embedded.admin.repair import compact, rebuild
from index.embedded.admin.verify import faults
from index.embedded.gallery import EmbeddedGallery, Tuning
from index.embedded.store.migrations import STEPS, migrate
from index.embedded.tasks.compaction import Limits, Maintenance
from index.errors import GalleryError, NotFoundError
from index.types import CollectionUsage, NewFace
from tests.index.people import enrol, vectors

LIMITS = Limits(segment=8, exact_below=16, growth=2.0)


@pytest.fixture
def gallery(tmp_path: Path) -> Iterator[EmbeddedGallery]:
    made = EmbeddedGallery(tmp_path, tuning=Tuning(1000, 1000))
    for name, count in (("doors", 30), ("trains", 10)):
        made.create(name, "face-embedder", "f1", 4)
        enrol(made, name, count)
    maintenance = Maintenance(made, LIMITS)
    maintenance.run()
    maintenance.release()
    yield made
    made.close()


def answers(gallery: EmbeddedGallery) -> list[list[tuple[str, str]]]:
    found = [gallery.search(name, vectors(5, seed=3), k=3) for name in ("doors", "trains")]
    return [[(match.subject.key, match.face) for match in matches] for each in found for matches in each]


def test_an_older_ledger_is_counted(tmp_path: Path) -> None:
    connection = apsw.Connection(str(tmp_path / "ledger.db"))
    migrate(connection, STEPS[:7])
    for number, name in enumerate(("doors", "trains", "empty"), 1):
        connection.execute("INSERT INTO collections VALUES (?, ?, 'e', 'f1', 4, '{}', 0, 0)", (number, name))
    connection.execute("INSERT INTO subjects (collection_id, key, metadata, created_at) VALUES (1, 'a', '{}', 0)")
    connection.execute("INSERT INTO subjects (collection_id, key, metadata, created_at) VALUES (2, 'a', '{}', 0)")
    for number, subject in enumerate((1, 1, 1, 2)):
        connection.execute(
            "INSERT INTO faces (collection_id, subject_id, token, details, created_at) VALUES (?, ?, ?, '{}', 0)",
            (subject, subject, str(number)),
        )
        connection.execute("INSERT INTO vectors VALUES (?, ?)", (number + 1, vectors(1)[0].tobytes()))
    connection.close()
    gallery = EmbeddedGallery(tmp_path)
    counted = {
        one.name: (gallery.usage(one.name).subjects, gallery.usage(one.name).faces) for one in gallery.collections()
    }
    assert counted == {"doors": (1, 3), "trains": (1, 1), "empty": (0, 0)}
    assert list(faults(gallery)) == []
    gallery.remove_subject("doors", "a")
    assert (gallery.usage("doors").subjects, gallery.usage("doors").faces) == (0, 0)
    gallery.close()


def test_usage_tells_what_there_is(gallery: EmbeddedGallery) -> None:
    def size(*patterns: str) -> int:
        return sum(path.stat().st_size for pattern in patterns for path in gallery.files.glob(pattern))

    assert gallery.usage("doors") == CollectionUsage(5, 30, False, size("1-*"))
    assert gallery.usage("trains") == CollectionUsage(5, 10, True, size("2-*"))
    lost = min(gallery.files.glob("2-*.seg"))
    lost.unlink()
    assert gallery.usage("trains").file_bytes == size("2-*")
    with pytest.raises(NotFoundError):
        gallery.usage("x")


def test_compact_gives_space_back(gallery: EmbeddedGallery) -> None:
    expected = answers(gallery)
    big = [NewFace(f"big-{i}", vector, {}, bytes(20_000)) for i, vector in enumerate(vectors(50, seed=8))]
    made = gallery.enrol("doors", big, "f1")
    gallery.remove_faces("doors", [face.token for face in made])
    receipt = gallery.remove_subject("doors", "big-0")
    done = compact(gallery, LIMITS)
    assert done.emptied
    assert done.before > 2_000_000
    assert done.after < 400_000
    assert (gallery.files.parent / "ledger.db-wal").stat().st_size == 0
    assert gallery.receipt(receipt.token).erased_at is not None
    assert answers(gallery) == expected
    assert list(faults(gallery)) == []


def test_compact_beside_one_who_reads_says_that_the_log_stays(
    gallery: EmbeddedGallery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "_TRIES", 1)
    reader = EmbeddedGallery(tmp_path)
    with reader.ledger.snapshot() as db:
        db.execute("SELECT count(*) FROM faces").fetchall()
        receipt = gallery.remove_subject("doors", "p0").token
        assert not compact(gallery).emptied
        assert gallery.receipt(receipt).erased_at is None
    reader.close()
    assert compact(gallery).emptied
    assert gallery.receipt(receipt).erased_at is not None


@pytest.mark.parametrize("name", [None, "doors"])
def test_rebuild_makes_every_file_anew(gallery: EmbeddedGallery, tmp_path: Path, name: str | None) -> None:
    expected, before = answers(gallery), {path.name for path in gallery.files.iterdir()}
    other = EmbeddedGallery(tmp_path, tuning=Tuning(1000, 1000))
    assert answers(other) == expected
    for path in gallery.files.glob("1-*"):
        path.write_bytes(b"damaged")
    assert rebuild(gallery, name, LIMITS) == (["doors", "trains"] if name is None else ["doors"])
    after = {path.name for path in gallery.files.iterdir()}
    kept = set() if name is None else {file for file in before if file.startswith("2-")}
    assert after & before == kept
    assert len(after) == len(before)
    assert list(faults(gallery)) == []
    for one in (gallery, other):
        for collection in one.collections():
            one.reload(collection)
        assert answers(one) == expected
    other.close()


def test_rebuild_leaves_another_process_to_its_work(gallery: EmbeddedGallery, tmp_path: Path) -> None:
    other = EmbeddedGallery(tmp_path)
    maintenance = Maintenance(other, LIMITS)
    assert maintenance.run()
    before = set(gallery.files.iterdir())
    with pytest.raises(GalleryError, match="background work"):
        rebuild(gallery, limits=LIMITS)
    with pytest.raises(NotFoundError):
        rebuild(gallery, "x", LIMITS)
    assert set(gallery.files.iterdir()) == before
    other.close()
