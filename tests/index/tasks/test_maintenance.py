"""Maintenance: segments, inverted files, erasures, the lease, and failures of single steps."""

from __future__ import annotations

import threading
from contextlib import closing
from typing import Any

import apsw
import pytest

from index.embedded.gallery import EmbeddedGallery, SearchTuning
from index.embedded.store import vector_records
from index.embedded.tasks.maintenance import Maintenance
from index.embedded.vectors import segment as segments
from index.embedded.vectors.ivf import Ivf
from index.engine import maintenance as module
from index.errors import MaintenanceError
from tests.index.people import LIMITS, Clock, enrol, vectors


def referenced(gallery: EmbeddedGallery) -> set[str]:
    with gallery.ledger.snapshot() as db:
        return vector_records.files(db)


def test_one_process_at_a_time_does_maintenance(gallery: EmbeddedGallery, clock: Clock) -> None:
    first, second = Maintenance(gallery), Maintenance(gallery)
    assert first.run()
    assert not second.run()
    assert first.run()
    clock.now += module.LEASE_S
    assert second.run()
    assert not first.run()
    second.release()
    assert first.run()


def test_maintenance_without_the_lease_changes_nothing(
    gallery: EmbeddedGallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    enrol(gallery, "doors", 20)
    loser, winner = Maintenance(gallery, LIMITS), Maintenance(gallery, LIMITS)
    monkeypatch.setattr(loser, "_renew", lambda db: loser.holder == "never")
    (gallery.files / "1-theirs.seg").write_bytes(b"the winner is writing this")
    loser._work()
    assert referenced(gallery) == set()
    assert (gallery.files / "1-theirs.seg").exists()
    assert winner.run()
    assert not (gallery.files / "1-theirs.seg").exists()


def test_a_collection_that_is_dropped_meanwhile_gets_no_files(
    gallery: EmbeddedGallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    enrol(gallery, "doors", 20)
    gallery.create("other", "e", "f1", 4)
    enrol(gallery, "other", 20)
    write = segments.write

    def drop_first(*given: Any) -> segments.Segment:
        if [c.name for c in gallery.collections()] == ["doors", "other"]:
            gallery.drop("doors")
        return write(*given)

    monkeypatch.setattr(segments, "write", drop_first)
    Maintenance(gallery, LIMITS).run()
    with gallery.ledger.snapshot() as db:
        assert len(vector_records.segments(db, 1)) == 0
        assert len(vector_records.segments(db, 2)) == 2
        assert {path.name for path in gallery.files.iterdir()} == vector_records.files(db)


def test_damaged_files_are_rebuilt(gallery: EmbeddedGallery) -> None:
    enrol(gallery, "doors", 40)
    faces = vectors(40)
    maintenance = Maintenance(gallery, LIMITS)
    maintenance.run()
    (index,) = gallery.files.glob("*.ivf")
    index.write_bytes(index.read_bytes()[:-5])
    segment = min(gallery.files.glob("*.seg"))
    content = segment.read_bytes()
    segment.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # in a vector: the header is valid
    assert Maintenance(gallery, LIMITS).run() is False  # without the lease
    assert {index.name, segment.name} <= referenced(gallery)
    maintenance.release()
    Maintenance(gallery, LIMITS).run()
    assert not {index.name, segment.name} & referenced(gallery)
    (new,) = gallery.files.glob("*.ivf")
    assert len(Ivf.read(new)) == 40
    with closing(EmbeddedGallery(gallery.files.parent, tuning=SearchTuning(1000, 1000))) as other:
        query = vectors(1, seed=9)
        assert other.nearest_subjects("doors", query)[0][0].subject.key == f"p{(faces @ query[0]).argmax() % 5}"


def test_the_inverted_file_is_retrained_after_growth(gallery: EmbeddedGallery) -> None:
    maintenance = Maintenance(gallery, LIMITS)
    trained = []
    for round_ in range(4):
        enrol(gallery, "doors", 16, seed=round_)
        maintenance.run()
        with gallery.ledger.snapshot() as db:
            index = vector_records.inverted_file(db, 1)
        assert index is not None
        trained.append(index.trained_rows)
        assert gallery.searchers.get(gallery.collection("doors"))._indexed
    assert trained == [16, 16, 48, 48]


def test_a_damaged_row_stops_maintenance_of_its_collection_only(gallery: EmbeddedGallery) -> None:
    gallery.create("trains", "face-embedder", "f1", 4)
    enrol(gallery, "doors", 3)
    enrol(gallery, "trains", 3)
    gallery.put_subject("trains", "p9", expires_at=gallery.clock() + 1)

    def damage(db: apsw.Connection) -> None:
        db.execute("UPDATE collections SET unscaled = 1 WHERE name = 'doors'")
        db.execute("UPDATE vectors SET data = x'00' WHERE face_id = 1")
        db.execute("INSERT INTO acts (act) VALUES ('nonsense')")

    gallery.ledger.write(damage)
    gallery.clock = lambda: 1e10
    receipt = gallery.remove_subject("trains", "p0")
    maintenance = Maintenance(gallery)
    for _ in range(2):
        with pytest.raises(MaintenanceError) as failed:
            maintenance.run()
        assert sorted(failed.value.failures) == ["audit log", f"collection {gallery.collection('doors').id}"]
    assert gallery.receipt(receipt.token).erased_at is not None
    assert gallery.ledger.reader().execute("SELECT count(*) FROM subjects WHERE key = 'p9'").get == 0
    gallery.ledger.write(lambda db: db.execute("DELETE FROM acts WHERE act = 'nonsense'").fetchall())


def test_a_failed_renewal_is_reported_and_repeated(gallery: EmbeddedGallery, monkeypatch: pytest.MonkeyPatch) -> None:
    maintenance = Maintenance(gallery)
    renewed, renew = threading.Event(), maintenance._renew
    failures = [ValueError("damaged")]

    def renew_or_fail(db: apsw.Connection) -> bool:
        if threading.current_thread().name == "ledger" and inside.is_set():
            if failures:
                raise failures.pop()
            renewed.set()
        return renew(db)

    inside = threading.Event()
    monkeypatch.setattr(module, "LEASE_S", 0.04)
    monkeypatch.setattr(maintenance, "_renew", renew_or_fail)

    def work() -> None:
        inside.set()
        assert renewed.wait(10)
        inside.clear()

    monkeypatch.setattr(maintenance, "_work", work)
    with pytest.raises(MaintenanceError, match="lease: damaged"):
        maintenance.run()
