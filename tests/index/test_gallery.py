"""What a gallery keeps, refuses, fuses and lets expire; what its background work does when things go wrong."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import numpy as np
import numpy.typing as npt
import pytest

from index.embedded.gallery import EmbeddedGallery, Tuning
from index.embedded.store import face_records, vector_records
from index.embedded.tasks import compaction as module
from index.embedded.tasks.compaction import Limits, Maintenance, RoundError
from index.embedded.vectors import segment as segments
from index.embedded.vectors.ivf import Ivf
from index.errors import ConflictError, InvalidError, NotFoundError
from index.types import NewFace
from tests.index.people import enrol

LIMITS = Limits(segment=8, exact_below=16, growth=2.0)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def unit(*values: float) -> npt.NDArray[np.float32]:
    return np.asarray(values, np.float32) / np.float32(np.linalg.norm(values))


def random_faces(count: int, seed: int = 0) -> list[NewFace]:
    vectors = np.random.default_rng(seed).normal(size=(count, 4))
    return [NewFace(f"p{i % 5}", unit(*vector)) for i, vector in enumerate(vectors)]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def gallery(tmp_path: Path, clock: Clock) -> Iterator[EmbeddedGallery]:
    made = EmbeddedGallery(tmp_path, clock=clock, tuning=Tuning(1000, 1000))
    made.create("doors", "face-embedder", "f1", 4, keep_crops=True)
    yield made
    made.close()


def test_collections_are_listed_by_page_in_the_order_of_names(gallery: EmbeddedGallery) -> None:
    for name in ("b", "a", "c"):
        gallery.create(name, "e", "f", 2)
    assert [c.name for c in gallery.collections(limit=2)] == ["a", "b"]
    assert [c.name for c in gallery.collections(after="b")] == ["c", "doors"]
    found = gallery.collection("doors")
    assert (found.embedder, found.fingerprint, found.dimensions, found.settings) == (
        "face-embedder",
        "f1",
        4,
        {"keep_crops": True},
    )
    with pytest.raises(ConflictError, match="'doors'"):
        gallery.create("doors", "e", "f", 2)
    with pytest.raises(NotFoundError, match="'x'"):
        gallery.collection("x")


def test_a_subject_keeps_what_it_was_given(gallery: EmbeddedGallery) -> None:
    gallery.put_subject("doors", "7", name="Zoë", metadata={"floor": 3})
    gallery.enrol("doors", [NewFace("7", unit(1, 0, 0, 0))], "f1")
    gallery.put_subject("doors", "3")
    subject = gallery.subject("doors", "7")
    assert (subject.name, subject.metadata, subject.faces, subject.created_at) == ("Zoë", {"floor": 3}, 1, 1000.0)
    gallery.put_subject("doors", "7", metadata={"floor": 4})
    assert gallery.subject("doors", "7").metadata == {"floor": 4}
    assert [s.key for s in gallery.subjects("doors")] == ["3", "7"]
    assert [s.key for s in gallery.subjects("doors", after="3", limit=1)] == ["7"]
    with pytest.raises(NotFoundError, match="'8'"):
        gallery.subject("doors", "8")
    with pytest.raises(NotFoundError, match="'y'"):
        gallery.put_subject("y", "8")


def test_a_face_keeps_its_crop_and_what_was_measured(gallery: EmbeddedGallery) -> None:
    new = NewFace("a", unit(1, 0, 0, 0), {"sharpness": 0.1}, b"picture")
    (first,) = gallery.enrol("doors", [new], "f1")
    (second,) = gallery.enrol("doors", [NewFace("a", unit(0, 1, 0, 0))], "f1")
    assert gallery.faces("doors", "a") == [first, second]
    assert first.details == {"sharpness": 0.1}
    assert gallery.crop("doors", first.token) == b"picture"
    for token in (second.token, "unknown"):
        with pytest.raises(NotFoundError):
            gallery.crop("doors", token)
    with pytest.raises(NotFoundError):
        gallery.remove_faces("doors", [first.token, "unknown"])
    gallery.remove_faces("doors", [first.token])
    assert gallery.faces("doors", "a") == [second]
    with pytest.raises(NotFoundError):
        gallery.receipt("unknown")


def test_faces_are_looked_up_without_going_through_the_collection(gallery: EmbeddedGallery) -> None:
    made = gallery.enrol("doors", random_faces(1500), "f1")
    steps: list[int] = []

    def count() -> bool:
        steps.append(100)
        return False

    db = gallery.ledger.reader()
    db.set_progress_handler(count, 100)
    try:
        assert face_records.ids_of_tokens(db, 1, [made[7].token, made[3].token]) == [made[3].id, made[7].id]
    finally:
        db.set_progress_handler(None)
    assert sum(steps) < 1000  # of SQLite's instructions; there are more faces than that


def test_many_removals_are_made_room_of(gallery: EmbeddedGallery) -> None:
    made = gallery.enrol("doors", random_faces(300), "f1")
    assert gallery.size("doors") == 300
    gallery.remove_faces("doors", [face.token for face in made[50:250]])
    query = random_faces(300)[10].vector
    assert gallery.size("doors") == 100
    assert gallery.search("doors", query[None])[0][0].face == made[10].token


@pytest.mark.parametrize(
    "vector", [unit(1, 2, 3), np.full(4, np.inf, np.float32), np.full(4, np.nan, np.float32), np.zeros(4, np.float32)]
)
def test_what_is_no_vector_of_the_pipeline_is_refused(
    gallery: EmbeddedGallery, vector: npt.NDArray[np.float32]
) -> None:
    good = NewFace("a", unit(1, 0, 0, 0))
    with pytest.raises(InvalidError):
        gallery.enrol("doors", [good, NewFace("b", vector)], "f1")
    with pytest.raises(InvalidError):
        gallery.search("doors", vector[None])
    assert gallery.size("doors") == 0
    assert gallery.subjects("doors") == []


def test_another_pipelines_vectors_are_refused(gallery: EmbeddedGallery) -> None:
    with pytest.raises(ConflictError, match="f1, not of f2"):
        gallery.enrol("doors", [NewFace("a", unit(1, 0, 0, 0))], "f2")
    assert gallery.subjects("doors") == []


def test_faces_of_a_subject_are_fused(gallery: EmbeddedGallery) -> None:
    faces = [NewFace("a", unit(1, 0, 0, 0)), NewFace("a", unit(-1, 0.1, 0, 0)), NewFace("b", unit(0.8, 0.6, 0, 0))]
    enrolled = gallery.enrol("doors", faces, "f1")
    query = unit(1, 0.1, 0, 0)
    (best,) = gallery.search("doors", query[None], k=2)
    (mean,) = gallery.search("doors", query[None], k=2, fusion="mean")
    assert [match.subject.key for match in best] == ["a", "b"]
    assert [match.subject.key for match in mean] == ["b", "a"]
    assert best[0].face == mean[1].face == enrolled[0].token
    assert best[0].similarity == pytest.approx(float(faces[0].vector @ query), abs=1e-6)
    assert mean[1].similarity == pytest.approx(float((faces[0].vector @ query + faces[1].vector @ query) / 2), abs=1e-6)


def test_a_subject_with_many_near_faces_does_not_hide_the_others(gallery: EmbeddedGallery) -> None:
    crowd = [NewFace("crowd", unit(1, 0.001 * i, 0, 0)) for i in range(200)]
    gallery.enrol("doors", [*crowd, NewFace("far", unit(0, 0, 1, 0))], "f1")
    (matches,) = gallery.search("doors", unit(1, 0, 0, 0)[None], k=2)
    assert [match.subject.key for match in matches] == ["crowd", "far"]


def test_who_has_expired_is_not_found_and_then_erased(gallery: EmbeddedGallery, clock: Clock) -> None:
    gallery.put_subject("doors", "guest", expires_at=2000.0)
    gallery.enrol("doors", [NewFace("guest", unit(1, 0, 0, 0)), NewFace("owner", unit(0, 1, 0, 0))], "f1")
    query = unit(1, 0, 0, 0)[None]
    assert [match.subject.key for match in gallery.search("doors", query)[0]] == ["guest", "owner"]
    clock.now = 2000.0
    assert [match.subject.key for match in gallery.search("doors", query)[0]] == ["owner"]
    Maintenance(gallery).run()
    assert [subject.key for subject in gallery.subjects("doors")] == ["owner"]
    assert gallery.size("doors") == 1


def test_one_process_at_a_time_does_the_work(gallery: EmbeddedGallery, clock: Clock) -> None:
    first, second = Maintenance(gallery), Maintenance(gallery)
    assert first.run()
    assert not second.run()
    assert first.run()
    clock.now += module.LEASE_S
    assert second.run()
    assert not first.run()
    second.release()
    assert first.run()


def test_a_lost_lease_changes_nothing(gallery: EmbeddedGallery, monkeypatch: pytest.MonkeyPatch) -> None:
    gallery.enrol("doors", random_faces(20), "f1")
    loser, winner = Maintenance(gallery, LIMITS), Maintenance(gallery, LIMITS)
    monkeypatch.setattr(loser, "_renew", lambda db: loser._holder == "never")
    monkeypatch.setattr(loser, "_work", loser._work)
    with gallery.ledger.snapshot() as db:
        before = vector_records.files(db)
    (gallery.files / "1-theirs.seg").write_bytes(b"the other is writing this")
    loser._work()
    with gallery.ledger.snapshot() as db:
        assert vector_records.files(db) == before == set()
    assert (gallery.files / "1-theirs.seg").exists()
    assert winner.run()
    assert not (gallery.files / "1-theirs.seg").exists()


def test_the_lease_is_kept_while_a_step_is_long(gallery: EmbeddedGallery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEASE_S", 0.04)
    beats = threading.Event()
    maintenance = Maintenance(gallery)
    renew = maintenance._renew

    def counted(db: object) -> bool:
        beats.set()
        return renew(db)  # type: ignore[arg-type]

    monkeypatch.setattr(maintenance, "_renew", counted)
    with maintenance._heartbeat():
        assert beats.wait(10)


def test_a_collection_dropped_meanwhile_is_left_alone(
    gallery: EmbeddedGallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery.enrol("doors", random_faces(20), "f1")
    gallery.create("other", "e", "f1", 4)
    gallery.enrol("other", random_faces(20), "f1")
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


def test_a_damaged_segment_is_made_anew(gallery: EmbeddedGallery, tmp_path: Path) -> None:
    gallery.enrol("doors", random_faces(20), "f1")
    Maintenance(gallery, LIMITS).run()
    path = min(gallery.files.glob("*.seg"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # in a vector: it opens, and would answer wrongly
    path.write_bytes(content)
    assert Maintenance(gallery, LIMITS).run() is False  # the other one has the lease
    with gallery.ledger.snapshot() as db:
        names = {one.file for one in vector_records.segments(db, 1)}
    assert path.name in names
    gallery.ledger.write(lambda db: db.execute("DELETE FROM leases").fetchall())
    Maintenance(gallery, LIMITS).run()
    with gallery.ledger.snapshot() as db:
        assert path.name not in {one.file for one in vector_records.segments(db, 1)}
    again = EmbeddedGallery(tmp_path, tuning=Tuning(1000, 1000))
    query = unit(1, 2, 3, 4)[None]
    faces = random_faces(20)
    expected = max(faces, key=lambda face: float(face.vector @ query[0])).subject
    assert again.search("doors", query)[0][0].subject.key == expected
    again.close()


def test_a_damaged_inverted_file_is_made_anew(gallery: EmbeddedGallery) -> None:
    gallery.enrol("doors", random_faces(40), "f1")
    Maintenance(gallery, LIMITS).run()
    (path,) = gallery.files.glob("*.ivf")
    path.write_bytes(path.read_bytes()[:-5])
    gallery.ledger.write(lambda db: db.execute("DELETE FROM leases").fetchall())
    Maintenance(gallery, LIMITS).run()
    (new,) = gallery.files.glob("*.ivf")
    assert new.name != path.name
    assert len(Ivf.read(new)) == 40


def test_it_is_trained_anew_when_it_has_grown(gallery: EmbeddedGallery) -> None:
    maintenance = Maintenance(gallery, LIMITS)
    trained = []
    for round_ in range(4):
        gallery.enrol("doors", random_faces(16, seed=round_), "f1")
        maintenance.run()
        with gallery.ledger.snapshot() as db:
            index = vector_records.inverted_file(db, 1)
        assert index is not None
        trained.append(index.trained_rows)
        assert not gallery.view(gallery.collection("doors")).exact
    assert trained == [16, 16, 48, 48]


def test_searches_go_on_while_others_enrol_and_files_are_written(tmp_path: Path) -> None:
    gallery = EmbeddedGallery(tmp_path, tuning=Tuning(1000, 1000))
    gallery.create("doors", "e", "f1", 4)
    anchor = NewFace("anchor", unit(1, 1, 1, 1))
    gallery.enrol("doors", [anchor], "f1")
    failures: list[Exception] = []
    done = threading.Event()

    def search() -> None:
        try:
            while not done.is_set():
                (matches,) = gallery.search("doors", anchor.vector[None], k=1)
                assert matches[0].similarity == pytest.approx(1, abs=1e-5)
        except Exception as error:  # noqa: BLE001  it is told below, not in a thread
            failures.append(error)

    searchers = [threading.Thread(target=search) for _ in range(3)]
    for thread in searchers:
        thread.start()
    maintenance, deadline = Maintenance(gallery, LIMITS), time.monotonic() + 120  # on a machine that is busy, too
    for round_ in range(15):
        made = gallery.enrol("doors", random_faces(10, seed=round_), "f1")
        gallery.remove_faces("doors", [face.token for face in made[::3]])
        maintenance.run()
        assert time.monotonic() < deadline
    done.set()
    for thread in searchers:
        thread.join()
    assert not failures
    assert gallery.size("doors") == 1 + 15 * 6
    gallery.close()


def test_a_damaged_row_stops_the_maintenance_of_its_collection_only(gallery: EmbeddedGallery) -> None:
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
        with pytest.raises(RoundError) as failed:
            maintenance.run()
        assert sorted(failed.value.failures) == ["audit log", f"collection {gallery.collection('doors').id}"]
    assert gallery.receipt(receipt.token).erased_at is not None
    assert gallery.ledger.reader().execute("SELECT count(*) FROM subjects WHERE key = 'p9'").get == 0
    gallery.ledger.write(lambda db: db.execute("DELETE FROM acts WHERE act = 'nonsense'").fetchall())


def test_a_heartbeat_that_fails_is_told_and_goes_on(gallery: EmbeddedGallery, monkeypatch: pytest.MonkeyPatch) -> None:
    maintenance = Maintenance(gallery)
    renewed, renew = threading.Event(), maintenance._renew
    failures = [ValueError("damaged")]

    def beat(db: apsw.Connection) -> bool:
        if threading.current_thread().name == "ledger" and inside.is_set():
            if failures:
                raise failures.pop()
            renewed.set()
        return renew(db)

    inside = threading.Event()
    monkeypatch.setattr(module, "LEASE_S", 0.04)
    monkeypatch.setattr(maintenance, "_renew", beat)

    def work() -> None:
        inside.set()
        assert renewed.wait(10)
        inside.clear()

    monkeypatch.setattr(maintenance, "_work", work)
    with pytest.raises(RoundError, match="lease: damaged"):
        maintenance.run()


def test_a_lease_of_a_clock_that_was_ahead_does_not_stop_maintenance(gallery: EmbeddedGallery, tmp_path: Path) -> None:
    now = gallery.clock()
    ahead = EmbeddedGallery(gallery.files.parent, clock=lambda: now + 5 * 365 * 86_400)
    other = Maintenance(ahead)
    assert other.run()
    ahead.close()
    assert Maintenance(gallery).run()
