"""Searches with metadata filters and feedback, against numpy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index.embedded.admin.backup import back_up, restore
from index.embedded.admin.verify import find_faults
from index.embedded.gallery import EmbeddedGallery, SearchTuning
from index.embedded.query import search
from index.embedded.query.feedback import Feedback
from index.embedded.query.search import Searches
from index.embedded.tasks.maintenance import Maintenance
from index.errors import NotFoundError
from index.types import Floats, NewFace, Where
from tests.index.filtered import FACES, METADATA, PEOPLE, WHERES, expected, fill, matches_filter, near
from tests.index.people import Clock, folder_bytes, maintain, vectors


@pytest.fixture
def gallery(tmp_path: Path, clock: Clock) -> Iterator[EmbeddedGallery]:
    gallery = EmbeddedGallery(tmp_path / "gallery", tuning=SearchTuning(1000, 1000), clock=clock)
    fill(gallery)
    yield gallery
    gallery.close()


@pytest.mark.parametrize("where", WHERES, ids=str)
@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("exhaustive", [4096, 4, 0])
def test_filtered_searches_agree_with_numpy(
    gallery: EmbeddedGallery, monkeypatch: pytest.MonkeyPatch, where: Where, mean: bool, exhaustive: int
) -> None:
    monkeypatch.setattr(search, "EXHAUSTIVE_SUBJECTS", exhaustive or 1)
    if not exhaustive:  # compare all after the first attempt
        monkeypatch.setattr(search, "MAX_MATCHES", 1)
    queries = vectors(6, seed=4)
    k = 30 if mean else 3  # fusion by the mean guarantees the order only if all subjects are asked for
    results = Searches(gallery).search("doors", queries, k, fusion="mean" if mean else "best", where=where)
    for query, matches in zip(queries, results, strict=True):
        right = expected(query, where, mean)[:k]
        assert [match.subject.key for match in matches] == [key for key, _ in right]
        assert [match.similarity for match in matches] == pytest.approx([value for _, value in right], abs=1e-5)
        for match in matches:
            number = [face.token for face in gallery.faces("doors", match.subject.key)].index(match.face)
            assert number == int((FACES[int(match.subject.key[1:]) :: PEOPLE] @ query).argmax())
    selected = [n for n, metadata in enumerate(METADATA) if matches_filter(metadata, where)]
    scope = Searches(gallery).scope("doors", where)
    assert (scope.collection, scope.usage) == (gallery.collection("doors"), gallery.usage("doors"))
    assert scope.selected == ((len(selected), 3 * len(selected)) if where else None)
    if where:
        with gallery.ledger.snapshot() as db:
            assert len(search.selected_subjects(db, scope.collection.id, where, 2)) == min(2, len(selected))


def test_the_scope_of_a_search_is_of_one_commit(gallery: EmbeddedGallery, monkeypatch: pytest.MonkeyPatch) -> None:
    where: Where = {"site": ["north"]}
    before = Searches(gallery).scope("doors", where)
    counts = search.selected_counts

    def counts_then_enrol(*args: Any) -> tuple[int, int]:
        result = counts(*args)
        gallery.enrol("doors", [NewFace("p0", vectors(1, seed=7)[0])], "f1")
        return result

    with monkeypatch.context() as patched:
        patched.setattr(search, "selected_counts", counts_then_enrol)
        assert Searches(gallery).scope("doors", where) == before
    after = Searches(gallery).scope("doors", where)
    assert (after.usage.faces, after.selected) == (91, (10, 31))
    with pytest.raises(NotFoundError):
        Searches(gallery).scope("x")


def test_filters_use_the_current_metadata(gallery: EmbeddedGallery, clock: Clock) -> None:
    def selected() -> list[str]:
        (matches,) = Searches(gallery).search("doors", FACES[:1], 50, where={"badge": ["x"]})
        return sorted(match.subject.key for match in matches)

    assert selected() == []
    for key in ("p1", "p2", "new"):
        gallery.put_subject("doors", key, metadata={"badge": "x"})
    assert selected() == ["p1", "p2"]  # a subject without a face is not found
    gallery.put_subject("doors", "p1", metadata={"badge": "y"})
    assert selected() == ["p2"]
    gallery.put_subject("doors", "p2", metadata={"badge": "x"}, expires_at=clock.now + 1)
    gallery.put_subject("doors", "p3", metadata={"badge": "x"}, expires_at=clock.now + 9)
    clock.now += 1
    assert selected() == ["p3"]
    gallery.remove_subject("doors", "p3")
    assert selected() == []
    rows = gallery.ledger.reader().execute("SELECT count(*) FROM subject_values WHERE key = 'badge' AND value = 'x'")
    assert rows.get == 2  # of p2, which has expired, and of new
    gallery.drop("doors")
    assert gallery.ledger.reader().execute("SELECT count(DISTINCT subject_id) FROM subject_values").get == 1


def test_subjects_that_the_inverted_file_misses_are_compared(
    gallery: EmbeddedGallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    maintain(gallery)
    assert not gallery.usage("doors").exact
    with closing(EmbeddedGallery(gallery.files.parent, tuning=SearchTuning(1, 1))) as poor:
        monkeypatch.setattr(search, "EXHAUSTIVE_SUBJECTS", 2)
        where: Where = {"site": ["north"]}
        for query in vectors(5, seed=9):
            (matches,) = Searches(poor).search("doors", query[None], 8, where=where)
            assert [match.subject.key for match in matches] == [key for key, _ in expected(query, where)[:8]]


@pytest.mark.parametrize("where", [None, {"staff": [True, False]}])
@pytest.mark.parametrize("exhaustive", [4096, 1])
def test_a_rejected_face_no_longer_matches_the_subject(
    gallery: EmbeddedGallery, monkeypatch: pytest.MonkeyPatch, where: Where | None, exhaustive: int
) -> None:
    monkeypatch.setattr(search, "EXHAUSTIVE_SUBJECTS", exhaustive)
    own = FACES[5]
    stranger = near(own, 0.97)

    def names(query: Floats) -> list[str]:
        (matches,) = Searches(gallery).search("doors", query[None], 3, where=where)
        return [match.subject.key for match in matches]

    nearest = [key for key, _ in expected(stranger, {})[:5]]
    assert names(stranger) == nearest[:3]
    assert nearest[0] == "p5"
    feedback = Feedback(gallery)
    rejections = feedback.add("doors", "p5", np.stack([stranger, near(own, 0.9, 1)]))
    assert {rejection.token for rejection in feedback.of_subject("doors", "p5")} == {r.token for r in rejections}
    assert names(stranger) == nearest[1:4]
    assert names(near(stranger, 0.995, 2))[0] != "p5"  # another image of the stranger
    assert names(own)[0] == "p5"
    assert names(near(own, 0.995, 3))[0] == "p5"  # another image of the subject
    match, rejected = Searches(gallery).compare("doors", "p5", stranger)
    assert match is not None
    assert match.similarity == pytest.approx(0.97, abs=1e-3)
    assert rejected
    assert Searches(gallery).compare("doors", "p5", own)[1] is False
    feedback.add("doors", nearest[1], stranger[None])
    assert names(stranger) == nearest[2:5]
    feedback.remove("doors", "p5", rejections[0].token)
    assert names(stranger)[0] == "p5"
    assert [rejection.token for rejection in feedback.of_subject("doors", "p5")] == [rejections[1].token]


@pytest.mark.parametrize("how", ["removed", "subject", "collection", "expiry"])
def test_erased_feedback_is_in_no_file(gallery: EmbeddedGallery, clock: Clock, how: str) -> None:
    secret = vectors(1, seed=77)
    gallery.put_subject("doors", "p1", metadata={"badge": "Quartz-7781"}, expires_at=clock.now + 10)
    (rejection,) = Feedback(gallery).add("doors", "p1", secret)
    assert secret.tobytes() in folder_bytes(gallery.files.parent)
    if how == "removed":
        receipt = Feedback(gallery).remove("doors", "p1", rejection.token)
        assert (receipt.subjects, receipt.faces) == (0, 1)
    elif how == "subject":
        receipt = gallery.remove_subject("doors", "p1")
    elif how == "collection":
        receipt = gallery.drop("doors")
    else:
        receipt = gallery.remove_faces("doors", [gallery.faces("doors", "p2")[0].token])
        clock.now += 10
    Maintenance(gallery).run()
    assert gallery.receipt(receipt.token).erased_at is not None
    content = folder_bytes(gallery.files.parent)
    assert secret.tobytes()[:16] not in content
    assert (b"Quartz-7781" in content) == (how == "removed")
    assert list(find_faults(gallery)) == []


def test_a_restore_erases_feedback_that_was_removed_since(gallery: EmbeddedGallery, tmp_path: Path) -> None:
    feedback = Feedback(gallery)
    kept, removed = feedback.add("doors", "p1", FACES[:2])
    back_up(gallery, tmp_path / "backup")
    feedback.remove("doors", "p1", removed.token)
    gallery.close()
    for _ in range(2):
        restore(tmp_path / "gallery", tmp_path / "backup")
        with closing(EmbeddedGallery(tmp_path / "gallery")) as restored:
            assert [rejection.token for rejection in Feedback(restored).of_subject("doors", "p1")] == [kept.token]
            assert len(restored.faces("doors", "p1")) == 3
