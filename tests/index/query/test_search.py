"""Searches among chosen subjects, and without those who are said to be somebody else: against numpy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import apsw
import numpy as np
import pytest

from index.embedded.admin.backup import back_up, restore
from index.embedded.admin.verify import faults
from index.embedded.gallery import EmbeddedGallery, Tuning
from index.embedded.query import metadata_filter, search
from index.embedded.query.feedback import Feedback
from index.embedded.query.metadata_filter import Where
from index.embedded.store import ledger
from index.embedded.store.migrations import STEPS, migrate
from index.embedded.tasks.compaction import Limits, Maintenance
from index.errors import InvalidError, NotFoundError
from index.types import Floats, NewFace
from tests.index.people import folder_bytes, vectors

PEOPLE, FACES = 30, vectors(90)
METADATA: list[dict[str, Any]] = [
    {
        "site": ("north", "süd", "east")[n % 3],
        "level": n % 4 if n % 2 else float(n % 4),
        "staff": n % 5 == 0,
        "tags": ["a"],
        "none": None,
    }
    for n in range(PEOPLE)
]


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def gallery(tmp_path: Path, clock: Clock) -> Iterator[EmbeddedGallery]:
    made = EmbeddedGallery(tmp_path / "gallery", tuning=Tuning(1000, 1000), clock=clock)
    made.create("other", "face-embedder", "f1", 4)
    made.put_subject("other", "p0", metadata=METADATA[0])
    made.create("doors", "face-embedder", "f1", 4)
    made.enrol("doors", [NewFace(f"p{n % PEOPLE}", vector) for n, vector in enumerate(FACES)], "f1")
    for n, metadata in enumerate(METADATA):
        made.put_subject("doors", f"p{n}", metadata=metadata)
    yield made
    made.close()


def is_chosen(metadata: Mapping[str, Any], where: Where) -> bool:
    def equal(a: object, b: object) -> bool:
        return a == b and isinstance(a, bool) == isinstance(b, bool)

    return all(any(equal(metadata.get(key), value) for value in allowed) for key, allowed in where.items())


def expected(query: Floats, where: Where, mean: bool, gone: Sequence[int] = ()) -> list[tuple[str, float]]:
    """Everybody chosen, likest first."""
    found = []
    for n, metadata in enumerate(METADATA):
        if is_chosen(metadata, where) and n not in gone:
            similarities = FACES[n::PEOPLE].astype(np.float64) @ query
            found.append((f"p{n}", float(similarities.mean() if mean else similarities.max())))
    return sorted(found, key=lambda one: -one[1])


WHERES: list[Where] = [
    {"site": ["north"]},
    {"site": ["süd", "east"]},
    {"level": [1]},
    {"level": [0, 2.0]},
    {"staff": [True]},
    {"staff": [1]},
    {"staff": ["true"]},
    {"site": ["north"], "level": [1, 3], "staff": [False]},
    {"site": ["west"]},
    {"tags": ["a"]},
    {"nothing": [1]},
    {"site": []},
    {},
]


@pytest.mark.parametrize("where", WHERES, ids=str)
@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("one_by_one", [4096, 4, 0])
def test_a_search_among_chosen_subjects_is_what_numpy_says(
    gallery: EmbeddedGallery, monkeypatch: pytest.MonkeyPatch, where: Where, mean: bool, one_by_one: int
) -> None:
    monkeypatch.setattr(search, "ONE_BY_ONE", one_by_one or 1)
    if not one_by_one:  # all at once after the first try
        monkeypatch.setattr(search, "MOST_WANTED", 1)
    queries = vectors(6, seed=4)
    k = 30 if mean else 3  # by the mean, only all of them are surely in the right order
    answers = search.search(gallery, "doors", queries, k, fusion="mean" if mean else "best", where=where)
    for query, matches in zip(queries, answers, strict=True):
        right = expected(query, where, mean)[:k]
        assert [match.subject.key for match in matches] == [key for key, _ in right]
        assert [match.similarity for match in matches] == pytest.approx([value for _, value in right], abs=1e-5)
        for match in matches:
            assert match.face in {face.token for face in gallery.faces("doors", match.subject.key)}
    chosen = sorted(f"p{n}" for n, metadata in enumerate(METADATA) if is_chosen(metadata, where))
    faces = sum(len(gallery.faces("doors", key)) for key in chosen)
    if where:
        with gallery.ledger.snapshot() as db:
            found = gallery.collection("doors").id
            assert metadata_filter.counts(db, found, where) == (len(chosen), faces)
            assert len(metadata_filter.subjects(db, found, where, 2)) == min(2, len(chosen))


def test_the_nearest_face_is_named(gallery: EmbeddedGallery) -> None:
    tokens = [face.token for face in gallery.faces("doors", "p7")]
    for place, token in enumerate(tokens):
        query = FACES[7 + place * PEOPLE][None]
        ((match,),) = search.search(gallery, "doors", query, 1, where={"level": [3], "site": ["süd"]})
        assert (match.subject.key, match.face) == ("p7", token)


def test_metadata_that_changes_chooses_others(gallery: EmbeddedGallery, clock: Clock) -> None:
    def chosen() -> list[str]:
        (matches,) = search.search(gallery, "doors", FACES[:1], 50, where={"badge": ["x"]})
        return sorted(match.subject.key for match in matches)

    assert chosen() == []
    for key in ("p1", "p2", "new"):
        gallery.put_subject("doors", key, metadata={"badge": "x"})
    assert chosen() == ["p1", "p2"]  # who has no face is not found
    gallery.put_subject("doors", "p1", metadata={"badge": "y"})
    assert chosen() == ["p2"]
    gallery.put_subject("doors", "p2", metadata={"badge": "x"}, expires_at=clock.now + 1)
    gallery.put_subject("doors", "p3", metadata={"badge": "x"}, expires_at=clock.now + 9)
    clock.now += 1
    assert chosen() == ["p3"]
    gallery.remove_subject("doors", "p3")
    assert chosen() == []
    rows = gallery.ledger.reader().execute("SELECT count(*) FROM subject_values WHERE key = 'badge' AND value = 'x'")
    assert rows.get == 2  # p2's, whose time is over, and new's
    gallery.drop("doors")
    assert gallery.ledger.reader().execute("SELECT count(DISTINCT subject_id) FROM subject_values").get == 1


def test_behind_an_inverted_file_that_misses_some_all_are_compared(
    gallery: EmbeddedGallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    maintenance = Maintenance(gallery, Limits(segment=8, exact_below=16))
    maintenance.run()
    maintenance.release()
    assert not gallery.usage("doors").exact
    poor = EmbeddedGallery(gallery.files.parent, tuning=Tuning(1, 1))
    monkeypatch.setattr(search, "ONE_BY_ONE", 2)
    where: Where = {"site": ["north"]}
    for query in vectors(5, seed=9):
        (matches,) = search.search(poor, "doors", query[None], 8, where=where)
        assert [match.subject.key for match in matches] == [key for key, _ in expected(query, where, False)[:8]]
    poor.close()


def near(face: Floats, share: float, seed: int = 0) -> Floats:
    """A vector that is this like to it."""
    other = vectors(1, seed=100 + seed)[0]
    other = other - (other @ face) * face
    return np.asarray(share * face + np.sqrt(1 - share**2) * other / np.linalg.norm(other), np.float32)


@pytest.mark.parametrize("where", [None, {"staff": [True, False]}])
@pytest.mark.parametrize("one_by_one", [4096, 1])
def test_who_is_said_not_to_be_a_face_is_not_named_for_it_again(
    gallery: EmbeddedGallery, monkeypatch: pytest.MonkeyPatch, where: Where | None, one_by_one: int
) -> None:
    monkeypatch.setattr(search, "ONE_BY_ONE", one_by_one)
    own = FACES[5]
    stranger = near(own, 0.97)

    def names(query: Floats) -> list[str]:
        (matches,) = search.search(gallery, "doors", query[None], 3, where=where)
        return [match.subject.key for match in matches]

    likest = [key for key, _ in expected(stranger, {}, False)[:5]]
    assert names(stranger) == likest[:3]
    assert likest[0] == "p5"
    said = Feedback(gallery)
    made = said.add("doors", "p5", np.stack([stranger, near(own, 0.9, 1)]))
    assert {one.token for one in said.of_subject("doors", "p5")} == {one.token for one in made}
    assert names(stranger) == likest[1:4]
    assert names(near(stranger, 0.995, 2))[0] != "p5"  # another picture of the stranger
    assert names(own)[0] == "p5"
    assert names(near(own, 0.995, 3))[0] == "p5"  # another picture of the subject
    match, denied = search.compare(gallery, "doors", "p5", stranger)
    assert match is not None
    assert match.similarity == pytest.approx(0.97, abs=1e-3)
    assert denied
    assert search.compare(gallery, "doors", "p5", own)[1] is False
    said.add("doors", likest[1], stranger[None])
    assert names(stranger) == likest[2:5]
    said.remove("doors", "p5", made[0].token)
    assert names(stranger)[0] == "p5"
    assert [one.token for one in said.of_subject("doors", "p5")] == [made[1].token]


def test_everybody_may_be_denied(gallery: EmbeddedGallery) -> None:
    for n in range(PEOPLE):
        Feedback(gallery).add("doors", f"p{n}", FACES[:1])
    assert search.search(gallery, "doors", FACES[:1], 3) == [[]]
    assert len(search.search(gallery, "doors", -FACES[:1], 3)[0]) == 3


def test_a_subject_is_compared_by_best_and_mean(gallery: EmbeddedGallery, clock: Clock) -> None:
    query = vectors(1, seed=5)[0]
    similarities = FACES[3::PEOPLE].astype(np.float64) @ query
    for fusion, value in (("best", similarities.max()), ("mean", similarities.mean())):
        match, denied = search.compare(gallery, "doors", "p3", query, fusion=fusion)  # type: ignore[arg-type]
        assert match is not None
        assert (match.subject.key, denied) == ("p3", False)
        assert match.similarity == pytest.approx(value, abs=1e-5)
    gallery.put_subject("doors", "faceless")
    assert search.compare(gallery, "doors", "faceless", query) == (None, False)
    gallery.put_subject("doors", "p3", expires_at=clock.now + 1)
    clock.now += 1
    with pytest.raises(NotFoundError):
        search.compare(gallery, "doors", "p3", query)


def test_feedback_needs_who_and_what_it_is_about(gallery: EmbeddedGallery) -> None:
    said = Feedback(gallery)
    with pytest.raises(NotFoundError):
        said.add("doors", "nobody", FACES[:1])
    with pytest.raises(NotFoundError):
        said.of_subject("doors", "nobody")
    with pytest.raises(InvalidError):
        said.add("doors", "p1", 0 * FACES[:1])
    (made,) = said.add("doors", "p1", FACES[:1])
    for key, token in (("p2", made.token), ("p1", "0123")):
        with pytest.raises(NotFoundError):
            said.remove("doors", key, token)
    with pytest.raises(InvalidError):
        search.search(gallery, "doors", 0 * FACES[:1])
    with pytest.raises(NotFoundError):
        search.search(gallery, "x", FACES[:1])


@pytest.mark.parametrize("how", ["taken back", "subject", "collection", "time"])
def test_nothing_is_left_of_what_was_said(gallery: EmbeddedGallery, clock: Clock, how: str) -> None:
    secret = vectors(1, seed=77)
    gallery.put_subject("doors", "p1", metadata={"badge": "Quartz-7781"}, expires_at=clock.now + 10)
    (made,) = Feedback(gallery).add("doors", "p1", secret)
    assert secret.tobytes() in folder_bytes(gallery.files.parent)
    if how == "taken back":
        receipt = Feedback(gallery).remove("doors", "p1", made.token)
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
    left = folder_bytes(gallery.files.parent)
    assert secret.tobytes()[:16] not in left
    assert (b"Quartz-7781" in left) == (how == "taken back")
    assert list(faults(gallery)) == []


def test_a_restore_forgets_what_was_taken_back_since(gallery: EmbeddedGallery, tmp_path: Path) -> None:
    said = Feedback(gallery)
    kept, taken = said.add("doors", "p1", FACES[:2])
    back_up(gallery, tmp_path / "backup")
    said.remove("doors", "p1", taken.token)
    gallery.close()
    for _ in range(2):
        restore(tmp_path / "gallery", tmp_path / "backup")
        again = EmbeddedGallery(tmp_path / "gallery")
        assert [one.token for one in Feedback(again).of_subject("doors", "p1")] == [kept.token]
        assert len(again.faces("doors", "p1")) == 3
        again.close()


def test_an_older_ledger_gets_its_values(tmp_path: Path) -> None:
    connection = apsw.Connection(str(tmp_path / "ledger.db"))
    migrate(connection, STEPS[:2])
    connection.execute("INSERT INTO collections VALUES (1, 'doors', 'e', 'f1', 4, '{}', 0, 0)")
    for number, metadata in enumerate(('{"site": "north"}', "{}", "no JSON", '{"site": ["north"]}', '"north"')):
        connection.execute(
            "INSERT INTO subjects VALUES (?, 1, ?, NULL, ?, 0, NULL)", (number + 1, f"p{number}", metadata)
        )
    connection.close()
    made = ledger.Ledger(tmp_path / "ledger.db")
    assert metadata_filter.subjects(made.reader(), 1, {"site": ["north"]}) == [1]
    made.write(lambda db: db.execute("UPDATE subjects SET metadata = 'no JSON' WHERE id = 1").fetchall())
    assert metadata_filter.subjects(made.reader(), 1, {"site": ["north"]}) == []
    made.close()
