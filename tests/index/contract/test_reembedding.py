"""Re-embedding in every engine: searches use one pipeline before the switch and the other after it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from index.errors import ConflictError, InvalidError, NotFoundError
from index.protocol import FIRST, LEASE_S, Gallery, Reembeddings, ReembeddingWorker
from index.types import Floats, NewFace
from tests.index.contract.engines import Engine
from tests.index.people import Clock
from tests.index.reembeddings import NEW, OLD, begin, enrol, face, names, new_vectors, stage, switched


@pytest.fixture
def gallery(engine: Engine) -> Gallery:
    engine.gallery.create("doors", "face-embedder", "f1", 16)
    return engine.gallery


@pytest.fixture
def reembeddings(engine: Engine) -> Reembeddings:
    return engine.reembeddings


@pytest.fixture
def worker(engine: Engine) -> ReembeddingWorker:
    return engine.new_worker()


def nearest(engine: Engine, queries: Floats) -> list[str]:
    return [matches[0].subject.key for matches in engine.searches.search("doors", queries, 1)]


def test_impossible_requests_are_refused(engine: Engine, gallery: Gallery, reembeddings: Reembeddings) -> None:
    enrol(gallery, 0, 1, 2)
    gallery.enrol("doors", [NewFace("p3", OLD[3]), NewFace("p4", OLD[4])], "f1")
    to = ("better", "f2", 24)
    with pytest.raises(ConflictError, match=r"2 of 5 faces of 'doors' have no crop.*a new collection of better"):
        reembeddings.begin("doors", *to)
    for key in ("p3", "p4"):
        gallery.remove_subject("doors", key)
    with pytest.raises(ConflictError, match="f1 already"):
        reembeddings.begin("doors", "better", "f1", 16)
    with pytest.raises(InvalidError, match="not a name"):
        reembeddings.begin("doors", *to, actor="Grace Hopper")
    for use in (
        reembeddings.progress,
        reembeddings.cancel,
        partial(reembeddings.begin, embedder="e", fingerprint="f2", dimensions=2),
    ):
        with pytest.raises(NotFoundError):
            use("x")
    for use in (reembeddings.progress, reembeddings.cancel):
        with pytest.raises(NotFoundError, match="not being re-embedded"):
            use("doors")
    first = reembeddings.begin("doors", *to)
    assert (first.state, first.faces, first.done, first.feedback, first.lost) == ("queued", 3, 0, 0, 0)
    with pytest.raises(ConflictError, match="already; cancel that"):
        reembeddings.begin("doors", "best", "f3", 24)
    assert reembeddings.progress("doors") == first


def test_faces_keep_all_but_their_vector(engine: Engine, gallery: Gallery) -> None:
    enrol(gallery, *range(20))
    gallery.put_subject("doors", "p00", name="Ada", metadata={"site": "north"})
    engine.index("doors")
    before = {key: gallery.faces("doors", key) for key in names(*range(20))}
    assert nearest(engine, OLD[:20]) == names(*range(20))
    reembedding = switched(engine.reembeddings, engine.new_worker())
    after = gallery.collection("doors")
    assert (after.embedder, after.fingerprint, after.dimensions, after.generation) == ("better", "f2", 24, 1)
    assert {key: gallery.faces("doors", key) for key in before} == before
    assert [gallery.crop("doors", faces[0].token) for faces in before.values()] == [bytes([n]) for n in range(20)]
    assert nearest(engine, NEW[:20]) == names(*range(20))
    (matches,) = engine.searches.search("doors", NEW[:1], where={"site": ["north"]})
    assert [match.subject.name for match in matches] == ["Ada"]
    receipt = gallery.receipt(reembedding.token)
    assert (receipt.subjects, receipt.faces, receipt.erased_at) == (0, 0, None)
    assert gallery.usage("doors").exact
    engine.index("doors")
    assert nearest(engine, NEW[:20]) == names(*range(20))
    gallery.enrol("doors", [NewFace("new", NEW[30])], "f2")
    assert nearest(engine, NEW[30:31]) == ["new"]


def test_erasures_and_enrolments_meanwhile_take_effect(
    engine: Engine, gallery: Gallery, reembeddings: Reembeddings, worker: ReembeddingWorker
) -> None:
    enrol(gallery, *range(6))
    reembedding = begin(engine.reembeddings)
    assert worker.claim(reembedding)
    assert stage(worker, reembedding, 3) == 3
    late = worker.pending(reembedding, FIRST, 2)
    gallery.remove_subject("doors", "p00")  # with a new vector
    gallery.remove_subject("doors", "p03")  # whose new vector is not staged yet
    assert reembeddings.progress("doors").done == 2
    assert worker.stage(reembedding, new_vectors(late))
    enrol(gallery, 7, 8)
    progress = reembeddings.progress("doors")
    assert (progress.state, progress.faces, progress.done) == ("running", 6, 3)
    assert worker.switch(reembedding) == 3
    assert stage(worker, reembedding) == 3
    assert worker.switch(reembedding) == 0
    assert sorted(nearest(engine, NEW[[1, 2, 4, 5, 7, 8]])) == names(1, 2, 4, 5, 7, 8)
    assert gallery.size("doors") == 6
    assert len(engine.searches.search("doors", NEW[:1], 9)[0]) == 6


def test_a_face_without_a_crop_blocks_the_switch(
    engine: Engine, gallery: Gallery, reembeddings: Reembeddings, worker: ReembeddingWorker, clock: Clock
) -> None:
    enrol(gallery, 0, 1)
    reembedding = begin(engine.reembeddings)
    assert worker.claim(reembedding)
    (bare,) = gallery.enrol("doors", [NewFace("bare", OLD[5])], "f1")
    assert stage(worker, reembedding) == 2
    assert worker.switch(reembedding) == 1
    worker.block(reembedding, "no crop")
    progress = reembeddings.progress("doors")
    assert (progress.state, progress.reembedding.problem, progress.done) == ("blocked", "no crop", 2)
    assert nearest(engine, OLD[:2]) == names(0, 1)
    enrol(gallery, 2)
    assert stage(worker, reembedding) == 1
    assert reembeddings.progress("doors").state == "running"
    gallery.remove_faces("doors", [bare.token])
    clock.now += LEASE_S
    assert engine.new_worker().waiting() == [reembedding]
    assert worker.switch(reembedding) == 0


def test_another_worker_continues_after_a_crash(
    engine: Engine, gallery: Gallery, reembeddings: Reembeddings, worker: ReembeddingWorker, clock: Clock
) -> None:
    enrol(gallery, *range(5))
    reembedding, other = begin(engine.reembeddings), engine.new_worker()
    assert worker.waiting() == [reembedding]
    assert worker.claim(reembedding)
    assert stage(worker, reembedding, 2) == 2
    assert not other.waiting()
    assert not other.claim(reembedding)
    clock.now += LEASE_S - 1
    assert worker.keep(reembedding)
    clock.now += LEASE_S - 1
    assert not other.claim(reembedding)
    clock.now += 1
    assert reembeddings.progress("doors").state == "queued"
    assert other.claim(reembedding)
    late = worker.pending(reembedding, FIRST, 1)
    assert [item.crop for item in late] == [b"\x02"]
    assert not worker.stage(reembedding, {late[0].id: NEW[9]})
    assert not worker.keep(reembedding)
    assert worker.switch(reembedding) is None
    worker.block(reembedding, "late")
    worker.release(reembedding)
    assert reembeddings.progress("doors").state == "running"
    other.release(reembedding)
    assert worker.claim(reembedding)
    assert stage(worker, reembedding) == 3
    assert worker.switch(reembedding) == 0
    assert nearest(engine, NEW[:5]) == names(*range(5))


def test_invalid_vectors_are_not_staged(engine: Engine, gallery: Gallery, worker: ReembeddingWorker) -> None:
    (there,) = enrol(gallery, 0)
    gallery.create("trains", "face-embedder", "f1", 16)
    (elsewhere,) = gallery.enrol("trains", [face(1)], "f1")
    reembedding = begin(engine.reembeddings)
    assert worker.claim(reembedding)
    for wrong in (OLD[0], 0 * NEW[0], np.inf * NEW[0]):
        with pytest.raises(InvalidError):
            worker.stage(reembedding, {there.id: wrong})
    assert worker.stage(reembedding, {elsewhere.id: NEW[1], there.id: 3 * NEW[0]})
    assert worker.stage(reembedding, {there.id: NEW[2]})  # a repeated call
    assert engine.reembeddings.progress("doors").done == 1
    assert worker.switch(reembedding) == 0
    assert engine.searches.search("doors", NEW[:1])[0][0].similarity == pytest.approx(1)
    assert gallery.collection("trains").generation == 0


@pytest.mark.parametrize("how", ["cancelled", "dropped"])
def test_an_ended_reembedding_leaves_nothing_behind(
    engine: Engine, gallery: Gallery, reembeddings: Reembeddings, worker: ReembeddingWorker, how: str
) -> None:
    enrol(gallery, 0, 1)
    (rejection,) = engine.feedback.add("doors", "p00", OLD[2:3], [b"\x02"])
    reembedding = begin(engine.reembeddings)
    assert worker.claim(reembedding)
    assert stage(worker, reembedding, 2) == 2
    if how == "cancelled":
        assert reembeddings.cancel("doors").done == 1
        assert engine.feedback.of_subject("doors", "p00") == [rejection]
        assert nearest(engine, OLD[:2]) == names(0, 1)
    else:
        gallery.drop("doors")
    assert not worker.stage(reembedding, {1: NEW[0]})
    assert worker.switch(reembedding) is None
    assert not worker.claim(reembedding)
    assert not worker.keep(reembedding)
    assert not worker.waiting()
    if how == "cancelled":
        second = begin(engine.reembeddings)
        assert second.token != reembedding.token
        assert worker.claim(second)
        assert not worker.stage(reembedding, {1: NEW[0]})
        assert worker.switch(reembedding) is None
        assert reembeddings.progress("doors").done == 0
        assert stage(worker, second) == 3
        assert worker.switch(second) == 0
        assert nearest(engine, NEW[:2]) == names(0, 1)


def test_feedback_is_reembedded_or_discarded_without_a_crop(
    engine: Engine, gallery: Gallery, reembeddings: Reembeddings, worker: ReembeddingWorker
) -> None:
    enrol(gallery, 0, 1)
    feedback, searches = engine.feedback, engine.searches
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
    assert {item.crop for item in late} == {b"\x04", b"\x05"}
    feedback.remove("doors", "p01", removed.token)
    assert worker.stage(reembedding, new_vectors(late))
    assert worker.switch(reembedding) == 0
    for key, tokens in (("p00", [kept.token]), ("p01", [added.token])):
        assert [rejection.token for rejection in feedback.of_subject("doors", key)] == tokens
    assert [rejection.token for rejection in feedback.of_subject("trains", "p00")] == [elsewhere.token]
    for number, key in ((2, "p00"), (4, "p01")):
        (matches,) = searches.search("doors", NEW[number : number + 1], fingerprint="f2")
        assert key not in [match.subject.key for match in matches]
        assert searches.compare("doors", key, NEW[number], fingerprint="f2")[1]
        assert not searches.compare("doors", key, NEW[int(key[1:])], fingerprint="f2")[1]
    assert gallery.receipt(reembedding.token).faces == 1
    assert lost.token not in [rejection.token for rejection in feedback.of_subject("doors", "p01")]


def test_no_call_compares_vectors_of_two_pipelines(engine: Engine, gallery: Gallery) -> None:
    enrol(gallery, *range(5))
    gallery.put_subject("doors", "p00", metadata={"site": "north"})
    searches = engine.searches
    uses: list[Callable[[], object]] = [
        lambda: searches.search("doors", OLD[:1], fingerprint="f1"),
        lambda: searches.search("doors", OLD[:1], where={"site": ["north"]}, fingerprint="f1"),
        lambda: searches.compare("doors", "p00", OLD[0], fingerprint="f1"),
        lambda: engine.feedback.add("doors", "p00", OLD[:1], [b"\x00"], fingerprint="f1"),
        lambda: enrol(gallery, 41),
    ]
    for use in uses:
        use()
    switched(engine.reembeddings, engine.new_worker())
    for use in uses:
        with pytest.raises(ConflictError, match="not of f1"):
            use()
