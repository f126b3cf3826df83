"""Re-embedding: searches use one pipeline before the switch and the other after it, also after crashes and erasures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from index.embedded.admin import verify as integrity
from index.embedded.admin.backup import back_up, restore
from index.embedded.admin.verify import find_faults
from index.embedded.gallery import EmbeddedGallery
from index.embedded.query.feedback import Feedback
from index.embedded.query.search import Searches
from index.embedded.tasks.maintenance import Maintenance, MaintenanceLimits
from index.embedded.tasks.reembedding import Reembeddings, ReembeddingWorker
from index.embedded.vectors import segment as segments
from index.embedded.vectors.ivf import Ivf
from index.errors import ConflictError, NotFoundError
from index.protocol import FIRST
from index.types import Collection, Floats, Reembedding
from tests.index.people import Clock, folder_bytes
from tests.index.reembeddings import NEW, OLD, begin, enrol, face, names, new_vectors, stage, switched
from tests.soak.erasure import forms_of_vector, search_all

LIMITS = MaintenanceLimits(segment=8, exact_below=16)


@pytest.fixture
def gallery(tmp_path: Path, clock: Clock) -> Iterator[EmbeddedGallery]:
    gallery = EmbeddedGallery(tmp_path / "gallery", clock=clock)
    gallery.create("doors", "face-embedder", "f1", 16)
    yield gallery
    gallery.close()


@pytest.fixture
def reembeddings(gallery: EmbeddedGallery) -> Reembeddings:
    return Reembeddings(gallery)


@pytest.fixture
def worker(gallery: EmbeddedGallery) -> ReembeddingWorker:
    return ReembeddingWorker(gallery)


def nearest(gallery: EmbeddedGallery, queries: Floats, **options: Any) -> list[str]:
    return [matches[0].subject.key for matches in gallery.nearest_subjects("doors", queries, 1, **options)]


def staged(gallery: EmbeddedGallery) -> int:
    return int(gallery.ledger.reader().execute("SELECT count(*) FROM reembedded").get)


def test_erasures_and_enrolments_meanwhile_take_effect(
    gallery: EmbeddedGallery, reembeddings: Reembeddings, worker: ReembeddingWorker
) -> None:
    enrol(gallery, *range(6))
    reembedding = begin(Reembeddings(gallery))
    assert worker.claim(reembedding)
    assert stage(worker, reembedding, 3) == 3
    late = worker.pending(reembedding, FIRST, 2)
    gallery.remove_subject("doors", "p00")  # with a new vector
    gallery.remove_subject("doors", "p03")  # whose new vector is not staged yet
    assert staged(gallery) == 2
    assert worker.stage(reembedding, new_vectors(late))
    enrol(gallery, 7, 8)
    progress = reembeddings.progress("doors")
    assert (progress.state, progress.faces, progress.done) == ("running", 6, 3)
    assert worker.switch(reembedding) == 3
    assert stage(worker, reembedding) == 3
    assert worker.switch(reembedding) == 0
    assert sorted(nearest(gallery, NEW[[1, 2, 4, 5, 7, 8]])) == names(1, 2, 4, 5, 7, 8)
    assert gallery.size("doors") == 6
    assert staged(gallery) == 0


@pytest.mark.parametrize("how", ["cancelled", "dropped"])
def test_an_ended_reembedding_leaves_nothing_behind(
    gallery: EmbeddedGallery, reembeddings: Reembeddings, worker: ReembeddingWorker, how: str
) -> None:
    enrol(gallery, 0, 1)
    (rejection,) = Feedback(gallery).add("doors", "p00", OLD[2:3], [b"\x02"])
    reembedding = begin(Reembeddings(gallery))
    assert worker.claim(reembedding)
    assert stage(worker, reembedding, 2) == 2
    if how == "cancelled":
        assert reembeddings.cancel("doors").done == 1
        assert Feedback(gallery).of_subject("doors", "p00") == [rejection]
        assert nearest(gallery, OLD[:2]) == names(0, 1)
    else:
        gallery.drop("doors")
    assert not worker.stage(reembedding, {1: NEW[0]})
    assert worker.switch(reembedding) is None
    assert not worker.claim(reembedding)
    assert not worker.waiting()
    assert staged(gallery) == 0
    reader = gallery.ledger.reader()
    assert reader.execute("SELECT count(*) FROM leases WHERE name LIKE 'reembed:%'").get == 0
    assert reader.execute("SELECT count(*) FROM rejections WHERE reembedded IS NOT NULL").get == 0
    assert gallery.ledger.scrub()
    content = folder_bytes(gallery.files.parent)
    assert not any(NEW[number].tobytes()[:16] in content for number in range(3))
    if how == "cancelled":
        assert switched(Reembeddings(gallery), ReembeddingWorker(gallery)).token != reembedding.token


def test_feedback_is_reembedded_or_discarded_without_a_crop(
    gallery: EmbeddedGallery, reembeddings: Reembeddings, worker: ReembeddingWorker
) -> None:
    enrol(gallery, 0, 1)
    feedback = Feedback(gallery)
    (kept,) = feedback.add("doors", "p00", OLD[2:3], [b"\x02"])
    (lost,) = feedback.add("doors", "p01", OLD[3:4])
    gallery.create("trains", "face-embedder", "f1", 16)
    gallery.enrol("trains", [face(0)], "f1")
    (elsewhere,) = feedback.add("trains", "p00", OLD[3:4])
    reembedding = reembeddings.begin("doors", "better", "f2", 24, actor="key_7").reembedding
    progress = reembeddings.progress("doors")
    assert (progress.faces, progress.feedback, progress.lost) == (2, 2, 1)
    assert worker.claim(reembedding)
    assert stage(worker, reembedding) == 3
    (added,) = feedback.add("doors", "p01", OLD[4:5], [b"\x04"])
    (removed,) = feedback.add("doors", "p01", OLD[5:6], [b"\x05"])
    assert worker.switch(reembedding) == 2
    late = worker.pending(reembedding, FIRST, 9)
    feedback.remove("doors", "p01", removed.token)
    assert worker.stage(reembedding, new_vectors(late))
    assert worker.switch(reembedding) == 0
    for key, tokens in (("p00", [kept.token]), ("p01", [added.token])):
        assert [rejection.token for rejection in feedback.of_subject("doors", key)] == tokens
    assert [rejection.token for rejection in feedback.of_subject("trains", "p00")] == [elsewhere.token]
    for number, key in ((2, "p00"), (4, "p01")):
        (matches,) = Searches(gallery).search("doors", NEW[number : number + 1], fingerprint="f2")
        assert key not in [match.subject.key for match in matches]
        assert Searches(gallery).compare("doors", key, NEW[number], fingerprint="f2")[1]
        assert not Searches(gallery).compare("doors", key, NEW[int(key[1:])], fingerprint="f2")[1]
    (event,) = [entry.event for entry in gallery.audit.read()[0] if entry.event.action == "reembed"]
    assert (event.id, event.actor, event.collection, len(event.faces)) == (reembedding.token, "key_7", 1, 1)
    assert gallery.receipt(reembedding.token).faces == 1
    assert lost.token not in str(event)
    assert list(find_faults(gallery)) == []


def test_old_vectors_are_in_no_file(gallery: EmbeddedGallery, tmp_path: Path) -> None:
    enrol(gallery, *range(40))
    Feedback(gallery).add("doors", "p00", OLD[50:52], [bytes([50]), None])
    maintenance = Maintenance(gallery, LIMITS)
    maintenance.run()
    indexes = [Ivf.read(path) for path in gallery.files.glob("*.ivf")]
    assert indexes
    erased = [form for number in (0, 20, 39, 50, 51) for form in forms_of_vector(OLD[number], indexes)]
    assert all(OLD[number].tobytes() in folder_bytes(tmp_path) for number in (0, 20, 39, 50, 51))
    reembedding = switched(Reembeddings(gallery), ReembeddingWorker(gallery))
    assert gallery.receipt(reembedding.token).erased_at is None
    maintenance.run()
    assert gallery.receipt(reembedding.token).erased_at is not None
    assert len(list(gallery.files.iterdir())) == 6
    assert list(find_faults(gallery)) == []
    gallery.close()
    assert search_all(erased, [tmp_path])[1] == []
    assert search_all([NEW[50].tobytes()], [tmp_path])[1]


@pytest.mark.parametrize("owner", [segments, Ivf], ids=["segment", "inverted file"])
def test_files_of_old_vectors_are_not_used_after_the_switch(
    gallery: EmbeddedGallery, monkeypatch: pytest.MonkeyPatch, owner: Any
) -> None:
    enrol(gallery, *range(20))
    done: list[Reembedding] = []
    write = owner.write

    def switch_and_write(*arguments: Any) -> Any:
        if not done:
            done.append(switched(Reembeddings(gallery), ReembeddingWorker(gallery)))
        return write(*arguments)

    monkeypatch.setattr(owner, "write", switch_and_write)
    maintenance = Maintenance(gallery, LIMITS)
    maintenance.run()
    assert done
    assert list(gallery.files.iterdir()) == []
    assert nearest(gallery, NEW[:20]) == names(*range(20))
    assert gallery.receipt(done[0].token).erased_at is not None
    maintenance.run()
    assert len(list(gallery.files.iterdir())) == 3
    assert nearest(gallery, NEW[:20]) == names(*range(20))
    assert list(find_faults(gallery)) == []


def test_a_searcher_of_old_vectors_is_dropped(gallery: EmbeddedGallery) -> None:
    enrol(gallery, *range(20))
    Maintenance(gallery, LIMITS).run()
    before = gallery.collection("doors")
    searcher = gallery.searchers.get(before)
    switched(Reembeddings(gallery), ReembeddingWorker(gallery))
    after = gallery.collection("doors")
    with pytest.raises(ConflictError):
        gallery.searchers.get(before)
    gallery.searchers.reload(after)
    assert gallery.searchers.get(after) is not searcher
    with pytest.raises(ConflictError):
        gallery.searchers.get(before)
    gallery.searchers.reload(before)
    assert nearest(gallery, NEW[:20]) == names(*range(20))
    gallery.drop("doors")
    gallery.searchers.reload(after)
    with pytest.raises(NotFoundError):
        gallery.size("doors")


@pytest.mark.parametrize("fusion", ["best", "mean"])
def test_a_switch_during_a_search(gallery: EmbeddedGallery, monkeypatch: pytest.MonkeyPatch, fusion: str) -> None:
    enrol(gallery, *range(5))
    queries, matches = OLD[:1], gallery._matches
    seen: list[int] = []

    def switch_and_match(*arguments: Any) -> Any:
        seen.append(arguments[0].generation)
        if len(seen) == 1:
            switched(Reembeddings(gallery), ReembeddingWorker(gallery))
        return matches(*arguments)

    monkeypatch.setattr(gallery, "_matches", switch_and_match)
    if fusion == "best":  # with the vectors at its beginning
        assert gallery.nearest_subjects("doors", queries, 1, fingerprint="f1")[0][0].subject.key == "p00"
    else:
        with pytest.raises(ConflictError):
            gallery.nearest_subjects("doors", queries, 1, "mean", "f1")
    assert seen == [0]
    assert nearest(gallery, NEW[:1]) == ["p00"]


def test_no_call_compares_vectors_of_two_pipelines(gallery: EmbeddedGallery, monkeypatch: pytest.MonkeyPatch) -> None:
    enrol(gallery, *range(5))
    gallery.put_subject("doors", "p00", metadata={"site": "north"})
    collection = gallery.collection
    uses: list[Callable[[], object]] = [
        lambda: Searches(gallery).search("doors", OLD[:1], fingerprint="f1"),
        lambda: Searches(gallery).search("doors", OLD[:1], where={"site": ["north"]}, fingerprint="f1"),
        lambda: Searches(gallery).compare("doors", "p00", OLD[0], fingerprint="f1"),
        lambda: Feedback(gallery).add("doors", "p00", OLD[:1], fingerprint="f1"),
        lambda: gallery.nearest_subjects("doors", OLD[:1], fingerprint="f1"),
        lambda: enrol(gallery, 41),
    ]
    before = collection("doors")
    for use in uses:
        use()
    switched(Reembeddings(gallery), ReembeddingWorker(gallery))
    for use in uses:
        with pytest.raises(ConflictError, match="not of f1"):
            use()
    # A caller that read the collection before the switch.
    monkeypatch.setattr(gallery, "current_collection", lambda name: before)
    for use in uses[1:3]:
        with pytest.raises(ConflictError, match="meanwhile"):
            use()


def test_a_read_is_repeated_after_the_switch(gallery: EmbeddedGallery, monkeypatch: pytest.MonkeyPatch) -> None:
    enrol(gallery, *range(5))
    get = gallery.searchers.get
    done: list[Reembedding] = []

    def switch_and_get(collection: Collection) -> Any:
        if not done:
            done.append(switched(Reembeddings(gallery), ReembeddingWorker(gallery)))
        return get(collection)

    monkeypatch.setattr(gallery.searchers, "get", switch_and_get)
    assert gallery.size("doors") == 5
    assert done


def test_a_restored_reembedding_continues_without_erased_faces(
    gallery: EmbeddedGallery, worker: ReembeddingWorker, tmp_path: Path
) -> None:
    enrol(gallery, *range(6))
    (removed,) = Feedback(gallery).add("doors", "p01", OLD[9:10], [b"\x09"])
    reembedding = begin(Reembeddings(gallery))
    assert worker.claim(reembedding)
    assert stage(worker, reembedding, 4) == 4
    back_up(gallery, tmp_path / "backup")
    stage(worker, reembedding)
    assert worker.switch(reembedding) == 0
    gallery.remove_subject("doors", "p00")
    Feedback(gallery).remove("doors", "p01", removed.token)
    gallery.close()
    restore(tmp_path / "gallery", tmp_path / "backup")
    with closing(EmbeddedGallery(tmp_path / "gallery")) as restored:
        assert list(find_faults(restored)) == []
        progress = Reembeddings(restored).progress("doors")
        assert (progress.state, progress.faces, progress.done, progress.feedback) == ("queued", 5, 2, 0)
        assert nearest(restored, OLD[1:6]) == names(1, 2, 3, 4, 5)
        other = ReembeddingWorker(restored)
        assert other.waiting() == [reembedding]
        assert other.claim(reembedding)
        assert stage(other, reembedding) == 3
        assert other.switch(reembedding) == 0
        assert nearest(restored, NEW[1:6]) == names(1, 2, 3, 4, 5)


@pytest.mark.parametrize("how", ["switched", "dropped"])
def test_changes_during_a_verification_are_no_faults(
    gallery: EmbeddedGallery, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    enrol(gallery, *range(20))
    Maintenance(gallery, LIMITS).run()
    check = integrity._vector_faults
    done: list[object] = []

    def change_and_check(*arguments: Any) -> Iterator[str]:
        if not done:
            if how == "switched":
                switched(Reembeddings(gallery), ReembeddingWorker(gallery))
            else:
                gallery.drop("doors")
            done.append(how)
        yield from check(*arguments)

    monkeypatch.setattr(integrity, "_vector_faults", change_and_check)
    faults = list(find_faults(gallery))
    assert done
    assert all("not referenced" in fault for fault in faults)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        ("UPDATE reembedded SET data = x'0000' WHERE face_id = 2", "ledger: 1 new vectors of faces do not fit"),
        (
            "UPDATE faces SET collection_id = 2, subject_id = 3 WHERE id = 1",
            "ledger: 1 new vectors of faces do not fit",
        ),
        ("UPDATE rejections SET data = x'0000'", "ledger: 2 vectors of feedback do not fit"),
        ("UPDATE rejections SET reembedded = x'0000' WHERE crop IS NOT NULL", "ledger: 1 vectors of feedback do not"),
    ],
)
def test_vectors_of_the_wrong_size_are_faults(
    gallery: EmbeddedGallery, worker: ReembeddingWorker, damage: str, expected: str
) -> None:
    enrol(gallery, 0, 1)
    Feedback(gallery).add("doors", "p00", OLD[2:4], [b"\x02", None])
    gallery.create("trains", "face-embedder", "f1", 16)
    gallery.put_subject("trains", "p00")
    reembedding = begin(Reembeddings(gallery))
    assert worker.claim(reembedding)
    stage(worker, reembedding)
    assert list(find_faults(gallery)) == []
    gallery.ledger.write(lambda db: db.execute(damage).fetchall())
    assert any(fault.startswith(expected) for fault in find_faults(gallery))
