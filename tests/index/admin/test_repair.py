"""Compaction and rebuilding do not change the results of searches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from index.embedded.admin import repair
from index.embedded.admin.repair import compact, rebuild
from index.embedded.admin.verify import find_faults
from index.embedded.gallery import EmbeddedGallery, SearchTuning
from index.embedded.tasks.maintenance import Maintenance
from index.errors import GalleryError, NotFoundError
from index.types import CollectionUsage, NewFace
from tests.index.people import LIMITS, enrol, maintain, vectors


@pytest.fixture
def gallery(tmp_path: Path) -> Iterator[EmbeddedGallery]:
    gallery = EmbeddedGallery(tmp_path, tuning=SearchTuning(1000, 1000))
    for name, count in (("doors", 30), ("trains", 10)):
        gallery.create(name, "face-embedder", "f1", 4)
        enrol(gallery, name, count)
    maintain(gallery)
    yield gallery
    gallery.close()


def answers(gallery: EmbeddedGallery) -> list[list[tuple[str, str]]]:
    results = [
        matches for name in ("doors", "trains") for matches in gallery.nearest_subjects(name, vectors(5, seed=3), k=3)
    ]
    return [[(match.subject.key, match.face) for match in matches] for matches in results]


def test_usage_counts_subjects_faces_and_bytes(gallery: EmbeddedGallery) -> None:
    def size(*patterns: str) -> int:
        return sum(path.stat().st_size for pattern in patterns for path in gallery.files.glob(pattern))

    assert gallery.usage("doors") == CollectionUsage(5, 30, False, size("1-*"))
    assert gallery.usage("trains") == CollectionUsage(5, 10, True, size("2-*"))
    lost = min(gallery.files.glob("2-*.seg"))
    lost.unlink()
    assert gallery.usage("trains").file_bytes == size("2-*")
    with pytest.raises(NotFoundError):
        gallery.usage("x")


def test_compact_frees_space(gallery: EmbeddedGallery) -> None:
    expected = answers(gallery)
    big = [NewFace(f"big-{i}", vector, {}, bytes(20_000)) for i, vector in enumerate(vectors(50, seed=8))]
    faces = gallery.enrol("doors", big, "f1")
    gallery.remove_faces("doors", [face.token for face in faces])
    receipt = gallery.remove_subject("doors", "big-0")
    result = compact(gallery, LIMITS)
    assert result.emptied
    assert result.before > 2_000_000
    assert result.after < 600_000
    assert (gallery.files.parent / "ledger.db-wal").stat().st_size == 0
    assert gallery.receipt(receipt.token).erased_at is not None
    assert answers(gallery) == expected
    assert list(find_faults(gallery)) == []


def test_compact_reports_a_write_ahead_log_in_use(
    gallery: EmbeddedGallery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repair, "_SCRUB_TRIES", 1)
    with closing(EmbeddedGallery(tmp_path)) as reader, reader.ledger.snapshot() as db:
        db.execute("SELECT count(*) FROM faces").fetchall()
        receipt = gallery.remove_subject("doors", "p0").token
        assert not compact(gallery).emptied
        assert gallery.receipt(receipt).erased_at is None
    assert compact(gallery).emptied
    assert gallery.receipt(receipt).erased_at is not None


@pytest.mark.parametrize("name", [None, "doors"])
def test_rebuild_replaces_every_file(gallery: EmbeddedGallery, tmp_path: Path, name: str | None) -> None:
    expected, before = answers(gallery), {path.name for path in gallery.files.iterdir()}
    with closing(EmbeddedGallery(tmp_path, tuning=SearchTuning(1000, 1000))) as other:
        assert answers(other) == expected
        for path in gallery.files.glob("1-*"):
            path.write_bytes(b"damaged")
        assert rebuild(gallery, name, LIMITS) == (["doors", "trains"] if name is None else ["doors"])
        after = {path.name for path in gallery.files.iterdir()}
        kept = set() if name is None else {file for file in before if file.startswith("2-")}
        assert after & before == kept
        assert len(after) == len(before)
        assert list(find_faults(gallery)) == []
        for opened in (gallery, other):
            for collection in opened.collections():
                opened.searchers.reload(collection)
            assert answers(opened) == expected


def test_rebuild_fails_during_maintenance_of_another_process(gallery: EmbeddedGallery, tmp_path: Path) -> None:
    with closing(EmbeddedGallery(tmp_path)) as other:
        maintenance = Maintenance(other, LIMITS)
        assert maintenance.run()
        before = set(gallery.files.iterdir())
        with pytest.raises(GalleryError, match="maintenance"):
            rebuild(gallery, limits=LIMITS)
        with pytest.raises(NotFoundError):
            rebuild(gallery, "x", LIMITS)
        assert set(gallery.files.iterdir()) == before
