"""The gallery of every engine: collections, subjects, faces, expiry, erasures, receipts and their audit events."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from index.audit_chain import AuditEvent
from index.errors import ConflictError, GalleryError, InvalidError, NotFoundError
from index.protocol import Gallery
from index.types import CountedSubject, NewFace
from tests.index.contract.engines import Engine
from tests.index.people import Clock, vectors

FACES = vectors(20)
HUGE = 2**63 - 1


@pytest.fixture
def gallery(engine: Engine) -> Gallery:
    engine.gallery.create("doors", "face-embedder", "f1", 4)
    return engine.gallery


def enrol(gallery: Gallery, *keys: str, first: int = 0) -> list[str]:
    """Enrol one face of each of these subjects and return the tokens."""
    faces = [NewFace(key, vector) for key, vector in zip(keys, FACES[first:], strict=False)]
    return [face.token for face in gallery.enrol("doors", faces, "f1")]


def events(gallery: Gallery) -> list[AuditEvent]:
    """Return the events of the audit log in their order, without their own ids."""
    entries, _ = gallery.audit.read(limit=1000)  # type: ignore[attr-defined]
    return [replace(entry.event, id="") for entry in entries]


def test_collections(gallery: Gallery) -> None:
    cafe = gallery.create("cafe\u0301", "e", "f2", 8, actor="key1", self=3, levels=[1])
    assert (cafe.name, cafe.dimensions, cafe.generation, cafe.created_at) == ("caf\u00e9", 8, 0, 1000.0)
    assert cafe.settings == {"self": 3, "levels": [1]}
    assert gallery.collection("caf\u00e9") == gallery.collection("cafe\u0301") == cafe
    names = [collection.name for collection in gallery.collections()]
    assert names == ["caf\u00e9", "doors"]
    assert [collection.name for collection in gallery.collections("caf\u00e9", 1)] == ["doors"]
    assert len(gallery.collections(limit=-1)) == len(gallery.collections(limit=HUGE)) == 2
    with pytest.raises(ConflictError, match="doors"):
        gallery.create("doors", "e", "f1", 4)
    for name in ("", "a/b", "a\0", "\ud800", "x" * 129):
        with pytest.raises(InvalidError):
            gallery.create(name, "e", "f1", 4)
    with pytest.raises(InvalidError):
        gallery.create("new", "e", "f1", 4, level=float("nan"))
    with pytest.raises(InvalidError, match="an id, not a name"):
        gallery.create("new", "e", "f1", 4, actor="Ada Lovelace")
    assert len(gallery.collections()) == 2
    receipt = gallery.drop("cafe\u0301")
    assert (receipt.subjects, receipt.faces, receipt.requested_at, receipt.erased_at) == (0, 0, 1000.0, None)
    with pytest.raises(NotFoundError):
        gallery.collection("caf\u00e9")


def test_a_dropped_collection_is_gone_with_everything_in_it(gallery: Gallery) -> None:
    enrol(gallery, "ada", "bob", "bob")
    gallery.put_subject("doors", "eve", metadata={"floor": 1})
    assert gallery.subject("doors", "bob").faces == 2
    receipt = gallery.drop("doors")
    assert (receipt.subjects, receipt.faces) == (3, 3)
    assert gallery.receipt(receipt.token) == receipt
    with pytest.raises(NotFoundError):
        gallery.subject("doors", "bob")
    assert gallery.create("doors", "face-embedder", "f1", 4).id != 1
    assert gallery.subjects("doors") == []
    usage = gallery.usage("doors")
    assert (usage.subjects, usage.faces, usage.exact, gallery.size("doors")) == (0, 0, True, 0)
    with pytest.raises(NotFoundError):
        gallery.subject("doors", "bob")


def test_subjects(gallery: Gallery) -> None:
    metadata = {"re\u0301gion": "su\u0308d", "deep": [{"a": None}], "big": 10**30}
    ada = gallery.put_subject("doors", "ade\u0300le", name="Ad\0e\u0300le \U0001f600", metadata=metadata)
    assert (ada.key, ada.name, ada.faces, ada.created_at) == ("ad\u00e8le", "Ad\0e\u0300le \U0001f600", 0, 1000.0)
    assert ada.metadata == {"r\u00e9gion": "s\u00fcd", "deep": [{"a": None}], "big": 10**30}
    assert gallery.subject("doors", "ad\u00e8le") == ada
    again = gallery.put_subject("doors", "ad\u00e8le", expires_at=2000.0)
    assert again == CountedSubject(ada.id, ada.key, None, {}, 1000.0, 2000.0, 0)
    assert gallery.subject("doors", "ade\u0300le") == again
    for key in ("", "..", "a\0", "\udfff", "x" * 129):
        with pytest.raises(InvalidError):
            gallery.put_subject("doors", key)
        with pytest.raises(InvalidError):
            enrol(gallery, "new", key)
    invalid: list[dict[str, Any]] = [
        {"name": "\ud800"},
        {"name": "x" * 257},
        {"metadata": {"a": float("inf")}},
        {"metadata": {"a": "\ud800"}},
        {"expires_at": 1000.0},
        {"expires_at": float("nan")},
        {"expires_at": 1e300},
    ]
    for properties in invalid:
        with pytest.raises(InvalidError):
            gallery.put_subject("doors", "new", **properties)
    assert [subject.key for subject in gallery.subjects("doors")] == ["ad\u00e8le"]


def test_pages_of_subjects_have_each_subject_once(gallery: Gallery) -> None:
    keys = [f"p{number}" for number in range(7)]
    enrol(gallery, *keys)
    seen: list[str] = []
    while page := gallery.subjects("doors", seen[-1] if seen else "", 3):
        assert len(page) <= 3
        seen += [subject.key for subject in page]
    assert sorted(seen) == keys
    assert [subject.key for subject in gallery.subjects("doors", limit=HUGE)] == seen
    assert [subject.key for subject in gallery.subjects("doors", limit=-1)] == seen
    gallery.subjects("doors", "no\0subject")


def test_faces(gallery: Gallery) -> None:
    details, crop = {"sharp": 0.5, "box": [1, 2]}, bytes(range(256)) * 20
    first = gallery.enrol("doors", [NewFace("ada", 3 * FACES[0], details, crop), NewFace("bob", FACES[1])], "f1")
    second = gallery.enrol("doors", [NewFace("ada", vector) for vector in FACES[2:5]], "f1", actor="key1")
    faces = gallery.faces("doors", "ada")
    assert faces == [first[0], *second]
    assert (faces[0].subject, faces[0].details, faces[0].created_at) == ("ada", details, 1000.0)
    assert gallery.faces("doors", "ada", faces[0].id, 2) == faces[1:3]
    assert gallery.faces("doors", "ada", HUGE) == gallery.faces("doors", "ada", limit=0) == []
    assert gallery.faces("doors", "ada", -HUGE, HUGE) == faces
    assert gallery.crop("doors", faces[0].token) == crop
    with pytest.raises(NotFoundError, match="no crop"):
        gallery.crop("doors", faces[1].token)
    assert gallery.enrol("doors", [], "f1") == []
    assert (gallery.size("doors"), gallery.usage("doors").faces, gallery.usage("doors").subjects) == (5, 5, 2)


@pytest.mark.parametrize(
    ("face", "error"),
    [
        (NewFace("x", np.zeros(4, np.float32)), InvalidError),
        (NewFace("x", np.full(4, np.nan, np.float32)), InvalidError),
        (NewFace("x", np.ones(5, np.float32)), InvalidError),
        (NewFace("a/b", FACES[0]), InvalidError),
        (NewFace("x", FACES[0], {"a": "\ud800"}), InvalidError),
    ],
)
def test_faces_are_enrolled_all_or_none(gallery: Gallery, face: NewFace, error: type[GalleryError]) -> None:
    with pytest.raises(error):
        gallery.enrol("doors", [NewFace("ada", FACES[0]), face], "f1")
    with pytest.raises(ConflictError, match="f1"):
        gallery.enrol("doors", [NewFace("ada", FACES[0])], "f2")
    assert gallery.subjects("doors") == []
    assert gallery.size("doors") == 0
    assert len(events(gallery)) == 1  # of the collection


def test_faces_are_removed_all_or_none(gallery: Gallery) -> None:
    tokens = enrol(gallery, "ada", "bob", "bob", "eve")
    for token in ("0" * 32, "a\0", "\ud800"):
        with pytest.raises(NotFoundError):
            gallery.remove_faces("doors", [tokens[0], token])
    receipt = gallery.remove_faces("doors", [tokens[2], tokens[0], tokens[0]])
    assert (receipt.subjects, receipt.faces, receipt.erased_at) == (0, 2, None)
    assert gallery.receipt(receipt.token) == receipt
    assert [gallery.subject("doors", key).faces for key in ("ada", "bob", "eve")] == [0, 1, 1]
    with pytest.raises(NotFoundError):
        gallery.crop("doors", tokens[0])
    assert gallery.remove_faces("doors", []).faces == 0


def test_what_does_not_exist(gallery: Gallery) -> None:
    enrol(gallery, "ada")
    missing: list[Callable[[], object]] = [
        lambda: gallery.collection("x"),
        lambda: gallery.collection("a\0"),
        lambda: gallery.drop("x"),
        lambda: gallery.put_subject("x", "ada"),
        lambda: gallery.subject("x", "ada"),
        lambda: gallery.subject("doors", "x"),
        lambda: gallery.subject("doors", "a\0"),
        lambda: gallery.subjects("x"),
        lambda: gallery.remove_subject("x", "ada"),
        lambda: gallery.remove_subject("doors", "x"),
        lambda: gallery.enrol("x", [], "f1"),
        lambda: gallery.faces("x", "ada"),
        lambda: gallery.faces("doors", "x"),
        lambda: gallery.crop("x", "0"),
        lambda: gallery.crop("doors", "0"),
        lambda: gallery.crop("doors", "\0"),
        lambda: gallery.remove_faces("x", []),
        lambda: gallery.receipt("0"),
        lambda: gallery.receipt("\0"),
        lambda: gallery.size("x"),
        lambda: gallery.usage("x"),
        lambda: gallery.note_search("x", []),
    ]
    for use in missing:
        with pytest.raises(NotFoundError):
            use()


def test_expired_subjects_are_not_found_and_can_be_erased(gallery: Gallery, clock: Clock) -> None:
    gallery.put_subject("doors", "guest", expires_at=2000.0)
    gallery.put_subject("doors", "visitor", expires_at=2000.0)
    tokens = enrol(gallery, "guest", "guest", "owner", "visitor")
    assert gallery.clock() == 1000.0
    clock.now = 2000.0
    for use in (gallery.subject, gallery.faces):
        with pytest.raises(NotFoundError):
            use("doors", "guest")
    assert [subject.key for subject in gallery.subjects("doors")] == ["owner"]
    assert gallery.remove_faces("doors", tokens[:1]).faces == 1
    receipt = gallery.remove_subject("doors", "guest")
    assert (receipt.subjects, receipt.faces) == (1, 1)
    with pytest.raises(NotFoundError):
        gallery.remove_subject("doors", "guest")
    assert gallery.remove_subject("doors", "visitor").faces == 1


@pytest.mark.parametrize("by_enrolment", [True, False])
def test_an_expired_key_starts_a_new_subject(gallery: Gallery, clock: Clock, by_enrolment: bool) -> None:
    old = gallery.put_subject("doors", "guest", name="Old", metadata={"a": 1}, expires_at=2000.0)
    (token,) = enrol(gallery, "guest")
    clock.now = 3000.0
    if by_enrolment:
        enrol(gallery, "guest", "other", first=3)
    else:
        gallery.put_subject("doors", "guest", name="New", expires_at=4000.0)
    new = gallery.subject("doors", "guest")
    assert (new.id != old.id, new.created_at, new.faces) == (True, 3000.0, int(by_enrolment))
    assert (new.name, new.metadata) == (None if by_enrolment else "New", {})
    with pytest.raises(NotFoundError):
        gallery.crop("doors", token)
    erased = [event for event in events(gallery) if event.action == "erase"]
    assert [(event.actor, list(event.subjects), len(event.faces)) for event in erased] == [("retention", [old.id], 1)]


def test_every_change_has_its_audit_event(gallery: Gallery) -> None:
    subject = gallery.put_subject("doors", "ada", actor="key1")
    faces = gallery.enrol("doors", [NewFace(key, FACES[0]) for key in ("ada", "bob", "ada")], "f1", actor="key2")
    ids, bob = [face.id for face in faces], gallery.subject("doors", "bob").id
    gallery.note_search("doors", [gallery.subject("doors", "bob"), subject, subject], actor="key3")
    gallery.remove_faces("doors", [faces[2].token, faces[1].token], actor="key4")
    gallery.remove_subject("doors", "ada", actor="key5")
    gallery.drop("doors", actor="key6")
    number = events(gallery)[0].collection
    both = tuple(sorted((subject.id, bob)))
    searched = AuditEvent("search", 1000.0, "key3", number, both, (), "")
    found = events(gallery)
    assert searched in found
    assert [event for event in found if event != searched] == [
        AuditEvent("create_collection", 1000.0, None, number, (), (), ""),
        AuditEvent("put_subject", 1000.0, "key1", number, (subject.id,), (), ""),
        AuditEvent("enrol", 1000.0, "key2", number, both, tuple(ids), ""),
        AuditEvent("erase", 1000.0, "key4", number, both, tuple(ids[1:]), ""),
        AuditEvent("erase", 1000.0, "key5", number, (subject.id,), (ids[0],), ""),
        AuditEvent("erase", 1000.0, "key6", number, (), (), ""),
    ]
    gallery.create("doors", "face-embedder", "f1", 4)
    with pytest.raises(InvalidError, match="not a name"):
        gallery.drop("doors", actor="Ada Lovelace")
    with pytest.raises(InvalidError, match="not a name"):
        gallery.note_search("doors", [], actor="Ada Lovelace")
    gallery.collection("doors")  # the refused change was undone


def test_the_receipt_of_an_erasure_is_in_the_audit_log(gallery: Gallery) -> None:
    tokens = enrol(gallery, "ada")
    receipts = [gallery.remove_faces("doors", tokens), gallery.remove_subject("doors", "ada"), gallery.drop("doors")]
    entries, _ = gallery.audit.read(limit=100)  # type: ignore[attr-defined]
    erasures = [entry.event.id for entry in entries if entry.event.action == "erase"]
    assert erasures == [receipt.token for receipt in receipts]
    assert gallery.audit.verify() is None  # type: ignore[attr-defined]


def test_concurrent_changes_lose_nothing(gallery: Gallery) -> None:
    """Enrolments of the same subjects in different orders, and erasures of them, at the same time."""

    def work(seed: int) -> int:
        rng, enrolled = np.random.default_rng(seed), 0
        for _ in range(8):
            keys = [f"p{number}" for number in rng.permutation(6)[:3]]
            enrolled += len(gallery.enrol("doors", [NewFace(key, FACES[0]) for key in keys], "f1"))
            if rng.random() < 0.5:
                try:
                    enrolled -= gallery.remove_subject("doors", keys[0]).faces
                except NotFoundError:
                    continue
        return enrolled

    with ThreadPoolExecutor(4) as threads:
        left = sum(threads.map(work, range(4)))
    subjects = gallery.subjects("doors", limit=-1)
    assert sum(subject.faces for subject in subjects) == left == gallery.usage("doors").faces
    assert gallery.usage("doors").subjects == len(subjects)
    assert gallery.audit.verify() is None  # type: ignore[attr-defined]


def test_a_planned_change_answers_before_its_commit(gallery: Gallery) -> None:
    change = gallery.put_subject.planned("doors", "ada").then(lambda subject: subject.key.upper())
    assert gallery.subjects("doors") == []
    assert change.submit().result() == "ADA"

    def fail(subject: CountedSubject) -> None:
        raise InvalidError("no")

    with pytest.raises(InvalidError):
        gallery.put_subject.planned("doors", "bob").then(fail).submit().result()
    assert [subject.key for subject in gallery.subjects("doors")] == ["ada"]
