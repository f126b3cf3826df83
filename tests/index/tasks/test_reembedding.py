"""Collections embedded anew: by one pipeline until the switch, by the other from then on, whoever dies or is erased."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import apsw
import numpy as np
import pytest

from benchmarks.erasure import forms_of_vector, search_all
from index.embedded.admin import parquet as transfer
from index.embedded.admin import verify as integrity
from index.embedded.admin.backup import back_up, restore
from index.embedded.admin.verify import faults
from index.embedded.gallery import EmbeddedGallery
from index.embedded.query.feedback import Feedback
from index.embedded.query.search import compare, search
from index.embedded.store.migrations import STEPS, migrate
from index.embedded.tasks.compaction import Limits, Maintenance
from index.embedded.tasks.reembedding import FIRST, LEASE_S, Progress, Reembedding, Reembeddings, Worker
from index.embedded.vectors import segment as segments
from index.embedded.vectors.ivf import Ivf
from index.errors import ConflictError, InvalidError, NotFoundError
from index.types import Collection, Face, Floats, NewFace
from tests.index.people import folder_bytes, vectors

LIMITS = Limits(segment=8, exact_below=16)
OLD, NEW = vectors(60, 16, seed=1), vectors(60, 24, seed=2)  # a crop's number says which of them are its vectors


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def gallery(tmp_path: Path, clock: Clock) -> Iterator[EmbeddedGallery]:
    made = EmbeddedGallery(tmp_path / "gallery", clock=clock)
    made.create("doors", "face-embedder", "f1", 16)
    yield made
    made.close()


@pytest.fixture
def asked(gallery: EmbeddedGallery) -> Reembeddings:
    return Reembeddings(gallery)


@pytest.fixture
def worker(gallery: EmbeddedGallery) -> Worker:
    return Worker(gallery)


def face(number: int) -> NewFace:
    """Of somebody whom nobody else looks like."""
    return NewFace(f"p{number:02}", OLD[number], crop=bytes([number]))


def enrol(gallery: EmbeddedGallery, *numbers: int) -> list[Face]:
    return gallery.enrol("doors", [face(number) for number in numbers], "f1")


def begin(gallery: EmbeddedGallery) -> Reembedding:
    return Reembeddings(gallery).begin("doors", "better", "f2", 24).reembedding


def stage(worker: Worker, one: Reembedding, most: int = 1000) -> int:
    """What there is to embed, in small pieces; how many."""
    after, count = FIRST, 0
    while count < most and (items := worker.pending(one, after, min(3, most - count))):
        assert worker.stage(one, {item.id: NEW[item.crop[0]] for item in items})
        after, count = items[-1].id, count + len(items)
    return count


def switched(gallery: EmbeddedGallery) -> Reembedding:
    """All at once."""
    one, worker = begin(gallery), Worker(gallery)
    assert worker.claim(one)
    stage(worker, one)
    assert worker.switch(one) == 0
    return one


def nearest(gallery: EmbeddedGallery, queries: Floats, **options: Any) -> list[str]:
    return [matches[0].subject.key for matches in gallery.search("doors", queries, 1, **options)]


def staged(gallery: EmbeddedGallery) -> int:
    return int(gallery.ledger.reader().execute("SELECT count(*) FROM reembedded").get)


def names(*numbers: int) -> list[str]:
    return [f"p{number:02}" for number in numbers]


def test_every_search_is_of_one_pipeline_before_and_after_the_switch(
    gallery: EmbeddedGallery, asked: Reembeddings, worker: Worker, tmp_path: Path
) -> None:
    enrol(gallery, *range(40))
    first = Maintenance(gallery, LIMITS)
    first.run()
    first.release()
    other = EmbeddedGallery(tmp_path / "gallery")
    galleries = (gallery, other)
    one = begin(gallery)
    assert worker.claim(one)
    while True:
        for each in galleries:
            assert nearest(each, OLD[:40]) == names(*range(40))
            assert nearest(each, OLD[:2], fingerprint="f1") == names(0, 1)
            with pytest.raises(ConflictError, match="f1, not of f2"):
                each.search("doors", NEW[:1], fingerprint="f2")
        if not stage(worker, one, 15):
            break
    assert worker.switch(one) == 0
    for each in galleries:
        assert nearest(each, NEW[:40]) == names(*range(40))
        assert nearest(each, NEW[:2], fusion="mean", fingerprint="f2") == names(0, 1)
        with pytest.raises(ConflictError, match="f2, not of f1"):
            each.search("doors", OLD[:1], fingerprint="f1")
        with pytest.raises(InvalidError):
            each.search("doors", OLD[:1])
        assert each.size("doors") == 40
    found = gallery.collection("doors")
    assert (found.embedder, found.fingerprint, found.dimensions, found.generation) == ("better", "f2", 24, 1)
    with pytest.raises(ConflictError):
        enrol(gallery, 41)
    gallery.enrol("doors", [NewFace("p41", NEW[41])], "f2")
    with pytest.raises(NotFoundError):
        asked.progress("doors")
    maintenance = Maintenance(gallery, LIMITS)
    maintenance.run()
    maintenance.release()
    assert Maintenance(other, LIMITS).run()
    for each in galleries:
        assert not each.view(each.collection("doors")).exact
        assert nearest(each, NEW[:42]) == [*names(*range(40)), nearest(each, NEW[40:41])[0], "p41"]
    assert list(faults(gallery)) == []
    other.close()


def test_what_cannot_be_done_is_refused_and_says_why(gallery: EmbeddedGallery, asked: Reembeddings) -> None:
    enrol(gallery, 0, 1, 2)
    gallery.enrol("doors", [NewFace("p3", OLD[3]), NewFace("p4", OLD[4])], "f1")
    to = ("better", "f2", 24)
    with pytest.raises(ConflictError, match=r"2 of 5 faces of 'doors' have no crop.*a new collection of better"):
        asked.begin("doors", *to)
    for key in ("p3", "p4"):
        gallery.remove_subject("doors", key)
    with pytest.raises(ConflictError, match="f1 already"):
        asked.begin("doors", "better", "f1", 16)
    with pytest.raises(InvalidError, match="not a name"):
        asked.begin("doors", *to, actor="Grace Hopper")
    for use in (asked.progress, asked.cancel, partial(asked.begin, embedder="e", fingerprint="f2", dimensions=2)):
        with pytest.raises(NotFoundError):
            use("x")
    for use in (asked.progress, asked.cancel):
        with pytest.raises(NotFoundError, match="not being embedded anew"):
            use("doors")
    first = asked.begin("doors", *to)
    assert (first.state, first.faces, first.done, first.feedback, first.lost) == ("queued", 3, 0, 0, 0)
    with pytest.raises(ConflictError, match="already; that can be cancelled"):
        asked.begin("doors", "best", "f3", 24)
    assert asked.progress("doors") == first


def test_who_is_erased_meanwhile_is_gone_and_who_is_enrolled_meanwhile_comes_along(
    gallery: EmbeddedGallery, asked: Reembeddings, worker: Worker
) -> None:
    enrol(gallery, *range(6))
    one = begin(gallery)
    assert worker.claim(one)
    assert stage(worker, one, 3) == 3
    under_way = worker.pending(one, FIRST, 2)
    gallery.remove_subject("doors", "p00")  # who has a new vector
    gallery.remove_subject("doors", "p03")  # whose new vector is being made
    assert staged(gallery) == 2
    assert worker.stage(one, {item.id: NEW[item.crop[0]] for item in under_way})
    enrol(gallery, 7, 8)
    progress = asked.progress("doors")
    assert (progress.state, progress.faces, progress.done) == ("running", 6, 3)
    assert worker.switch(one) == 3
    assert stage(worker, one) == 3
    assert worker.switch(one) == 0
    assert sorted(nearest(gallery, NEW[[1, 2, 4, 5, 7, 8]])) == names(1, 2, 4, 5, 7, 8)
    assert gallery.size("doors") == 6
    assert staged(gallery) == 0


def test_a_face_without_a_crop_keeps_all_as_it_is_until_it_is_gone(
    gallery: EmbeddedGallery, asked: Reembeddings, worker: Worker, clock: Clock
) -> None:
    enrol(gallery, 0, 1)
    one = begin(gallery)
    assert worker.claim(one)
    (bare,) = gallery.enrol("doors", [NewFace("bare", OLD[5])], "f1")
    assert stage(worker, one) == 2
    assert worker.switch(one) == 1
    worker.block(one, "no crop")
    progress = asked.progress("doors")
    assert (progress.state, progress.reembedding.problem, progress.done) == ("blocked", "no crop", 2)
    assert nearest(gallery, OLD[:2]) == names(0, 1)
    enrol(gallery, 2)
    assert stage(worker, one) == 1
    assert asked.progress("doors").state == "running"
    gallery.remove_faces("doors", [bare.token])
    clock.now += LEASE_S
    assert Worker(gallery).waiting() == [one]
    assert worker.switch(one) == 0


def test_another_goes_on_where_one_died(
    gallery: EmbeddedGallery, asked: Reembeddings, worker: Worker, clock: Clock
) -> None:
    enrol(gallery, *range(5))
    one, other = begin(gallery), Worker(gallery)
    assert worker.waiting() == [one]
    assert worker.claim(one)
    assert stage(worker, one, 2) == 2
    assert not other.waiting()
    assert not other.claim(one)
    clock.now += LEASE_S - 1
    assert worker.keep(one)
    clock.now += LEASE_S - 1
    assert not other.claim(one)
    clock.now += 1
    assert asked.progress("doors").state == "queued"
    assert other.claim(one)
    late = worker.pending(one, FIRST, 1)
    assert [item.crop for item in late] == [b"\x02"]
    assert not worker.stage(one, {late[0].id: NEW[9]})
    assert not worker.keep(one)
    assert worker.switch(one) is None
    worker.block(one, "late")
    worker.release(one)
    assert asked.progress("doors").state == "running"
    other.release(one)
    assert worker.claim(one)
    assert stage(worker, one) == 3
    assert worker.switch(one) == 0
    assert nearest(gallery, NEW[:5]) == names(*range(5))


def test_what_is_no_vector_of_the_pipeline_is_not_staged(gallery: EmbeddedGallery, worker: Worker) -> None:
    (there,) = enrol(gallery, 0)
    gallery.create("trains", "face-embedder", "f1", 16)
    (elsewhere,) = gallery.enrol("trains", [face(1)], "f1")
    one = begin(gallery)
    assert worker.claim(one)
    for wrong in (OLD[0], 0 * NEW[0], np.inf * NEW[0]):
        with pytest.raises(InvalidError):
            worker.stage(one, {there.id: wrong})
    assert worker.stage(one, {elsewhere.id: NEW[1], there.id: NEW[0]})
    assert worker.stage(one, {there.id: NEW[2]})  # whose answer was lost
    assert staged(gallery) == 1
    assert worker.switch(one) == 0
    assert gallery.search("doors", NEW[:1])[0][0].similarity == pytest.approx(1)
    assert gallery.collection("trains").generation == 0


@pytest.mark.parametrize("how", ["cancelled", "dropped"])
def test_when_it_is_over_nothing_of_it_is_left(
    gallery: EmbeddedGallery, asked: Reembeddings, worker: Worker, how: str
) -> None:
    enrol(gallery, 0, 1)
    (said,) = Feedback(gallery).add("doors", "p00", OLD[2:3], [b"\x02"])
    one = begin(gallery)
    assert worker.claim(one)
    assert stage(worker, one, 2) == 2
    if how == "cancelled":
        assert (asked.cancel("doors").done, said.token) == (1, Feedback(gallery).of_subject("doors", "p00")[0].token)
        assert nearest(gallery, OLD[:2]) == names(0, 1)
    else:
        gallery.drop("doors")
    assert not worker.stage(one, {1: NEW[0]})
    assert worker.switch(one) is None
    assert not worker.claim(one)
    assert not worker.waiting()
    assert staged(gallery) == 0
    reader = gallery.ledger.reader()
    assert reader.execute("SELECT count(*) FROM leases WHERE name LIKE 'reembed:%'").get == 0
    assert reader.execute("SELECT count(*) FROM rejections WHERE reembedded IS NOT NULL").get == 0
    assert gallery.ledger.scrub()
    left = folder_bytes(gallery.files.parent)
    assert not any(NEW[number].tobytes()[:16] in left for number in range(3))
    if how == "cancelled":
        assert switched(gallery).token != one.token


def test_feedback_follows_by_its_crop_and_is_forgotten_without_one(
    gallery: EmbeddedGallery, asked: Reembeddings, worker: Worker
) -> None:
    enrol(gallery, 0, 1)
    said = Feedback(gallery)
    (kept,) = said.add("doors", "p00", OLD[2:3], [b"\x02"])
    (lost,) = said.add("doors", "p01", OLD[3:4])
    gallery.create("trains", "face-embedder", "f1", 16)
    gallery.enrol("trains", [face(0)], "f1")
    (elsewhere,) = said.add("trains", "p00", OLD[3:4])
    one = asked.begin("doors", "better", "f2", 24, actor="key_7").reembedding
    progress = asked.progress("doors")
    assert (progress.faces, progress.feedback, progress.lost) == (2, 2, 1)
    assert worker.claim(one)
    assert stage(worker, one) == 3
    (late,) = said.add("doors", "p01", OLD[4:5], [b"\x04"])
    (gone,) = said.add("doors", "p01", OLD[5:6], [b"\x05"])
    assert worker.switch(one) == 2
    under_way = worker.pending(one, FIRST, 9)
    said.remove("doors", "p01", gone.token)
    assert worker.stage(one, {item.id: NEW[item.crop[0]] for item in under_way})
    assert worker.switch(one) == 0
    for key, tokens in (("p00", [kept.token]), ("p01", [late.token])):
        assert [made.token for made in said.of_subject("doors", key)] == tokens
    assert [made.token for made in said.of_subject("trains", "p00")] == [elsewhere.token]
    for number, denied in ((2, "p00"), (4, "p01")):
        (matches,) = search(gallery, "doors", NEW[number : number + 1], fingerprint="f2")
        assert denied not in [match.subject.key for match in matches]
        assert compare(gallery, "doors", denied, NEW[number], fingerprint="f2")[1]
        assert not compare(gallery, "doors", denied, NEW[int(denied[1:])], fingerprint="f2")[1]
    (act,) = [entry.act for entry in gallery.audit.read()[0] if entry.act.action == "reembed"]
    assert (act.id, act.actor, act.collection, len(act.faces)) == (one.token, "key_7", 1, 1)
    assert gallery.receipt(one.token).faces == 1
    assert lost.token not in str(act)
    assert list(faults(gallery)) == []


def test_nothing_of_the_old_vectors_is_left_in_any_file(gallery: EmbeddedGallery, tmp_path: Path) -> None:
    enrol(gallery, *range(40))
    Feedback(gallery).add("doors", "p00", OLD[50:52], [bytes([50]), None])
    maintenance = Maintenance(gallery, LIMITS)
    maintenance.run()
    indexes = [Ivf.read(path) for path in gallery.files.glob("*.ivf")]
    assert indexes
    gone = [form for number in (0, 20, 39, 50, 51) for form in forms_of_vector(OLD[number], indexes)]
    assert all(OLD[number].tobytes() in folder_bytes(tmp_path) for number in (0, 20, 39, 50, 51))
    one = switched(gallery)
    assert gallery.receipt(one.token).erased_at is None
    maintenance.run()
    assert gallery.receipt(one.token).erased_at is not None
    assert len(list(gallery.files.iterdir())) == 6
    assert list(faults(gallery)) == []
    gallery.close()
    assert search_all(gone, [tmp_path])[1] == []
    assert search_all([NEW[50].tobytes()], [tmp_path])[1]


@pytest.mark.parametrize("what", ["segment", "inverted file"])
def test_files_of_the_old_vectors_do_not_get_between_the_new_ones(
    gallery: EmbeddedGallery, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    enrol(gallery, *range(20))
    done: list[Reembedding] = []

    def and_switch(write: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any) -> Any:
            if not done:
                done.append(switched(gallery))
            return write(*arguments)

        return wrapped

    owner, name = (segments, "write") if what == "segment" else (Ivf, "write")
    monkeypatch.setattr(owner, name, and_switch(getattr(owner, name)))
    maintenance = Maintenance(gallery, LIMITS)
    maintenance.run()
    assert done
    assert list(gallery.files.iterdir()) == []
    assert nearest(gallery, NEW[:20]) == names(*range(20))
    assert gallery.receipt(done[0].token).erased_at is not None
    maintenance.run()
    assert len(list(gallery.files.iterdir())) == 3
    assert nearest(gallery, NEW[:20]) == names(*range(20))
    assert list(faults(gallery)) == []


def test_a_view_of_the_old_vectors_is_let_go(gallery: EmbeddedGallery) -> None:
    enrol(gallery, *range(20))
    Maintenance(gallery, LIMITS).run()
    before = gallery.collection("doors")
    view = gallery.view(before)
    switched(gallery)
    with pytest.raises(ConflictError):
        gallery.view(before)
    gallery.reload(gallery.collection("doors"))
    assert gallery.view(gallery.collection("doors")) is not view
    with pytest.raises(ConflictError):
        gallery.view(before)
    gallery.reload(before)
    assert nearest(gallery, NEW[:20]) == names(*range(20))


def test_a_collection_that_goes_while_its_files_are_taken_up(gallery: EmbeddedGallery) -> None:
    enrol(gallery, *range(20))
    found = gallery.collection("doors")
    gallery.view(found)
    gallery.drop("doors")
    gallery.reload(found)
    with pytest.raises(NotFoundError):
        gallery.size("doors")


@pytest.mark.parametrize("fusion", ["best", "mean"])
def test_a_search_that_is_overtaken_by_the_switch(
    gallery: EmbeddedGallery, monkeypatch: pytest.MonkeyPatch, fusion: str
) -> None:
    enrol(gallery, *range(5))
    queries, search_in = OLD[:1], gallery._matches
    seen: list[int] = []

    def overtaken(*arguments: Any) -> Any:
        seen.append(arguments[0].generation)
        if len(seen) == 1:
            switched(gallery)
        return search_in(*arguments)

    monkeypatch.setattr(gallery, "_matches", overtaken)
    if fusion == "best":  # of the vectors that were there when it began
        assert gallery.search("doors", queries, 1, fingerprint="f1")[0][0].subject.key == "p00"
    else:
        with pytest.raises(ConflictError):
            gallery.search("doors", queries, 1, "mean", "f1")
    assert seen == [0]
    assert nearest(gallery, NEW[:1]) == ["p00"]


def test_no_comparison_is_of_two_pipelines(gallery: EmbeddedGallery, monkeypatch: pytest.MonkeyPatch) -> None:
    enrol(gallery, *range(5))
    gallery.put_subject("doors", "p00", metadata={"site": "north"})
    collection = gallery.collection
    uses: list[Callable[[], object]] = [
        lambda: search(gallery, "doors", OLD[:1], fingerprint="f1"),
        lambda: search(gallery, "doors", OLD[:1], where={"site": ["north"]}, fingerprint="f1"),
        lambda: compare(gallery, "doors", "p00", OLD[0], fingerprint="f1"),
        lambda: Feedback(gallery).add("doors", "p00", OLD[:1], fingerprint="f1"),
    ]
    before = collection("doors")
    for use in uses:
        use()
    switched(gallery)
    for use in uses:
        with pytest.raises(ConflictError, match="not of f1"):
            use()
    # Who has read of the collection what it was before.
    monkeypatch.setattr(gallery, "collection", lambda name: before)
    for use in uses[1:3]:
        with pytest.raises(ConflictError, match="meanwhile"):
            use()


def test_a_search_goes_on_with_what_the_collection_is_then(
    gallery: EmbeddedGallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    enrol(gallery, *range(5))
    view = gallery.view
    overtaken: list[Reembedding] = []

    def after_the_switch(found: Collection) -> Any:
        if not overtaken:
            overtaken.append(switched(gallery))
        return view(found)

    monkeypatch.setattr(gallery, "view", after_the_switch)
    assert gallery.size("doors") == 5
    assert overtaken


def test_a_restore_goes_on_without_who_was_erased_since(
    gallery: EmbeddedGallery, worker: Worker, tmp_path: Path
) -> None:
    enrol(gallery, *range(6))
    (taken,) = Feedback(gallery).add("doors", "p01", OLD[9:10], [b"\x09"])
    one = begin(gallery)
    assert worker.claim(one)
    assert stage(worker, one, 4) == 4
    back_up(gallery, tmp_path / "backup")
    stage(worker, one)
    assert worker.switch(one) == 0
    gallery.remove_subject("doors", "p00")
    Feedback(gallery).remove("doors", "p01", taken.token)
    gallery.close()
    restore(tmp_path / "gallery", tmp_path / "backup")
    again = EmbeddedGallery(tmp_path / "gallery")
    assert list(faults(again)) == []
    progress: Progress = Reembeddings(again).progress("doors")
    assert (progress.state, progress.faces, progress.done, progress.feedback) == ("queued", 5, 2, 0)
    assert nearest(again, OLD[1:6]) == names(1, 2, 3, 4, 5)
    other = Worker(again)
    (waiting,) = other.waiting()
    assert waiting == one
    assert other.claim(waiting)
    assert stage(other, waiting) == 3
    assert other.switch(waiting) == 0
    assert nearest(again, NEW[1:6]) == names(1, 2, 3, 4, 5)
    again.close()


def test_an_export_is_of_one_pipeline(
    gallery: EmbeddedGallery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyarrow")
    enrol(gallery, *range(4))
    batch = transfer._batch

    def and_switch(*arguments: Any) -> Any:
        if gallery.collection("doors").generation == 0:
            switched(gallery)
        return batch(*arguments)

    monkeypatch.setattr(transfer, "_batch", and_switch)
    with pytest.raises(ConflictError, match="meanwhile"):
        transfer.export_collection(gallery, "doors", tmp_path / "doors.parquet")
    assert not (tmp_path / "doors.parquet").exists()
    assert transfer.export_collection(gallery, "doors", tmp_path / "doors.parquet") == 4


@pytest.mark.parametrize("how", ["switched", "dropped"])
def test_what_happens_while_it_is_checked_is_no_fault(
    gallery: EmbeddedGallery, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    enrol(gallery, *range(20))
    Maintenance(gallery, LIMITS).run()
    check = integrity._vector_faults
    done: list[object] = []

    def and_then(*arguments: Any) -> Iterator[str]:
        if not done:
            done.append(switched(gallery) if how == "switched" else gallery.drop("doors"))
        yield from check(*arguments)

    monkeypatch.setattr(integrity, "_vector_faults", and_then)
    found = list(faults(gallery))
    assert done
    assert all("named by nobody" in what for what in found)


@pytest.mark.parametrize(
    ("damage", "told"),
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
def test_what_does_not_fit_is_found(gallery: EmbeddedGallery, worker: Worker, damage: str, told: str) -> None:
    enrol(gallery, 0, 1)
    Feedback(gallery).add("doors", "p00", OLD[2:4], [b"\x02", None])
    gallery.create("trains", "face-embedder", "f1", 16)
    gallery.put_subject("trains", "p00")
    one = begin(gallery)
    assert worker.claim(one)
    stage(worker, one)
    assert list(faults(gallery)) == []
    gallery.ledger.write(lambda db: db.execute(damage).fetchall())
    assert any(what.startswith(told) for what in faults(gallery))


def test_an_older_ledger_keeps_its_feedback(tmp_path: Path) -> None:
    connection = apsw.Connection(str(tmp_path / "ledger.db"))
    migrate(connection, STEPS[:6])
    connection.execute("INSERT INTO collections VALUES (1, 'doors', 'e', 'f1', 16, '{}', 0, 0)")
    connection.execute("INSERT INTO subjects VALUES (1, 1, 'p00', NULL, '{}', 0, NULL)")
    connection.execute("INSERT INTO rejections VALUES (7, 1, 'told', 0, ?)", (OLD[2].tobytes(),))
    connection.close()
    gallery = EmbeddedGallery(tmp_path)
    assert [made.token for made in Feedback(gallery).of_subject("doors", "p00")] == ["told"]
    enrol(gallery, 0)
    assert compare(gallery, "doors", "p00", OLD[2])[1]
    assert np.isclose(gallery.search("doors", OLD[:1])[0][0].similarity, 1)
    begin(gallery)
    assert Reembeddings(gallery).progress("doors").lost == 1
    gallery.close()
