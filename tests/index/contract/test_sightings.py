"""Sightings of every engine: order, filters, retention, and erasure with their subject or collection."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from index.errors import ConflictError, InvalidError, NotFoundError
from index.sightings import DAY_S, NewSighting, Sighting, SightingFilter, SightingSettings, UnknownFace
from index.types import Collection, NewFace
from tests.index.contract.engines import Engine
from tests.index.people import Clock, vectors

NOW = 1_000_000.0
# Later than the delay after which maintenance erases expired sightings.
LATER_S = 3600.0


@pytest.fixture
def doors(engine: Engine, clock: Clock) -> Engine:
    clock.now = NOW
    engine.gallery.create("doors", "face-embedder", "f1", 4)
    engine.gallery.enrol("doors", [NewFace(f"p{n}", vector) for n, vector in enumerate(vectors(3))], "f1")
    engine.gallery.put_subject("doors", "p1", name="Grace", metadata={"site": "north"})
    return engine


def sighting(
    subject: str | None = None, camera: str = "north", started_at: float = NOW - 5, **more: Any
) -> NewSighting:
    return NewSighting(camera, started_at, started_at + 5, 12, subject=subject, **more)


def tokens(found: Iterable[Sighting]) -> list[str]:
    return [row.token for row in found]


def test_a_sighting_is_stored_with_its_subject(doors: Engine, clock: Clock) -> None:
    new = sighting("p1", probability=0.99, distance=0.25, fpir=0.01, threshold=0.5, crop=b"webp")
    stored = doors.sightings.add("doors", new, actor="k1")
    assert stored.observed() == new.observed() == ("north", NOW - 5, NOW, 12, 0.99, 0.25, 0.01, 0.5)
    assert (stored.collection, stored.created_at, stored.has_crop, stored.pseudonym) == ("doors", NOW, True, None)
    assert stored.expires_at == NOW + 30 * DAY_S
    subject = stored.subject
    assert subject is not None
    assert (subject.key, subject.name, subject.metadata) == ("p1", "Grace", {"site": "north"})
    assert doors.sightings.sighting(stored.token) == stored
    assert doors.sightings.page("doors") == [stored]
    assert doors.sightings.crop(stored.token) == b"webp"
    doors.gallery.put_subject("doors", "p1", name="Grace Hopper")
    (renamed,) = doors.sightings.page("doors")
    assert renamed.subject == replace(subject, name="Grace Hopper", metadata={})


def test_an_unknown_person_has_no_subject(doors: Engine) -> None:
    stored = doors.sightings.add("doors", sighting(started_at=NOW - 60))
    assert (stored.subject, stored.has_crop) == (None, False)
    assert stored.expires_at == NOW - 55 + DAY_S
    assert doors.sightings.page("doors") == [stored]
    with pytest.raises(NotFoundError, match="no best shot"):
        doors.sightings.crop(stored.token)


def test_sightings_are_listed_in_the_order_of_their_commits(doors: Engine, clock: Clock) -> None:
    stored = []
    for number in range(5):
        stored.append(doors.sightings.add("doors", sighting(started_at=NOW - 100 * number - 5)))
        clock.now += 1
    page = doors.sightings.page
    assert page("doors") == stored
    assert page("doors", newest_first=True) == stored[::-1]
    assert page("doors", limit=2) == stored[:2]
    assert page("doors", after=stored[1].position, limit=2) == stored[2:4]
    assert page("doors", after=stored[4].position) == []
    assert page("doors", after=stored[3].position, limit=2, newest_first=True) == [stored[2], stored[1]]
    assert page("doors", after=stored[0].position, newest_first=True) == []


def test_sightings_of_one_collection_are_listed(doors: Engine) -> None:
    doors.gallery.create("gates", "face-embedder", "f1", 4)
    stored = [doors.sightings.add(name, sighting()) for name in ("doors", "gates", "doors")]
    assert doors.sightings.page("gates") == [stored[1]]
    assert doors.sightings.page("doors") == [stored[0], stored[2]]


def test_concurrent_sightings_have_positions_in_the_order_of_their_commits(doors: Engine) -> None:
    """A reader who continues after the last position that it has seen misses nothing."""
    seen: list[Sighting] = []
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(doors.sightings.add, "doors", sighting(f"p{n % 3}")) for n in range(40)]
        while not all(future.done() for future in waiting):
            seen += doors.sightings.page("doors", after=seen[-1].position if seen else 0)
    seen += doors.sightings.page("doors", after=seen[-1].position if seen else 0)
    assert seen == doors.sightings.page("doors")
    assert sorted(tokens(seen)) == sorted(future.result().token for future in waiting)


def test_sightings_are_filtered(doors: Engine) -> None:
    rows = {
        name: doors.sightings.add("doors", new)
        for name, new in {
            "unknown": sighting(started_at=NOW - 300),
            "p0": sighting("p0", started_at=NOW - 200),
            "p1": sighting("p1", started_at=NOW - 100),
            "south": sighting("p1", "south", started_at=NOW - 50),
        }.items()
    }

    def found(**conditions: Any) -> set[str]:
        listed = tokens(doors.sightings.page("doors", SightingFilter(**conditions)))
        return {name for name, row in rows.items() if row.token in listed}

    assert found(camera="south") == {"south"}
    assert found(camera="nowhere") == set()
    assert found(subject="p1") == {"p1", "south"}
    assert found(unknown=True) == {"unknown"}
    assert found(unknown=False) == {"p0", "p1", "south"}
    assert found(subject="p1", unknown=True) == set()
    assert found(since=NOW - 195) == {"p0", "p1", "south"}  # p0's ended then
    assert found(since=NOW - 194) == {"p1", "south"}
    assert found(until=NOW - 200) == {"unknown"}
    assert found(until=NOW - 199) == {"unknown", "p0"}
    assert found(camera="north", unknown=False, since=NOW - 150) == {"p1"}
    with pytest.raises(NotFoundError, match="no subject 'nobody'"):
        found(subject="nobody")


def test_a_repeated_change_is_stored_once(doors: Engine) -> None:
    def add(key: str, request: bytes = b"request") -> str:
        change = doors.sightings.add.planned("doors", sighting()).then(lambda stored: stored.token)
        return change.once(key, request, str, str).submit().result()

    first = add("k")
    assert add("k") == first
    with pytest.raises(ConflictError):
        add("k", b"another request")
    assert tokens(doors.sightings.page("doors")) == [first]
    assert add("another") != first


def test_an_erased_subject_loses_its_sightings(doors: Engine) -> None:
    for subject in ("p1", "p2", "p1", None):
        doors.sightings.add("doors", sighting(subject, crop=b"webp"))
    _, second, _, unknown = doors.sightings.page("doors")
    receipt = doors.gallery.remove_subject("doors", "p1")
    assert (receipt.subjects, receipt.faces, receipt.sightings) == (1, 1, 2)
    assert doors.gallery.receipt(receipt.token) == receipt
    assert doors.sightings.page("doors") == [second, unknown]
    doors.gallery.put_subject("doors", "p1")
    assert doors.sightings.page("doors", SightingFilter(subject="p1")) == []


def test_a_dropped_collection_loses_its_sightings(doors: Engine) -> None:
    stored = [doors.sightings.add("doors", sighting(subject)) for subject in ("p1", None)]
    assert doors.gallery.drop("doors").sightings == 2
    for row in stored:
        with pytest.raises(NotFoundError):
            doors.sightings.sighting(row.token)


def test_a_sighting_is_erased_by_its_token(doors: Engine) -> None:
    known, unknown = (doors.sightings.add("doors", sighting(subject, crop=b"webp")) for subject in ("p1", None))
    for row in (known, unknown):
        receipt = doors.sightings.remove(row.token, actor="k1")
        assert (receipt.subjects, receipt.faces, receipt.sightings, receipt.erased_at) == (0, 0, 1, None)
        assert doors.gallery.receipt(receipt.token) == receipt
        for call in (doors.sightings.sighting, doors.sightings.crop, doors.sightings.remove):
            with pytest.raises(NotFoundError):
                call(row.token)
    assert doors.sightings.page("doors") == []


def test_expired_sightings_are_not_found_and_are_erased(doors: Engine, clock: Clock) -> None:
    unknown, known = (doors.sightings.add("doors", sighting(subject, crop=b"webp")) for subject in (None, "p1"))
    clock.now = unknown.expires_at - 1
    doors.maintain()
    assert doors.sightings.page("doors") == [unknown, known]
    clock.now = unknown.expires_at
    assert doors.sightings.page("doors") == [known]
    with pytest.raises(NotFoundError):
        doors.sightings.crop(unknown.token)
    with pytest.raises(NotFoundError):
        doors.sightings.sighting(unknown.token)
    clock.now += LATER_S
    doors.maintain()
    with pytest.raises(NotFoundError):
        doors.sightings.remove(unknown.token)
    clock.now = known.expires_at + LATER_S
    doors.maintain()
    with pytest.raises(NotFoundError):
        doors.sightings.remove(known.token)
    erased = [entry.event for entry in doors.audit.read(limit=1000)[0] if entry.event.action == "erase"]
    assert [(event.actor, tuple(event.subjects), tuple(event.faces)) for event in erased] == [
        ("retention", (), (-unknown.id,)),
        ("retention", (), (-known.id,)),
    ]
    for event in erased:
        assert doors.gallery.receipt(event.id).sightings == 1


def test_many_expired_sightings_are_erased_in_one_round(
    doors: Engine, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"index.{doors.name}.sightings.sightings.ERASE_BATCH", 2)
    stored = [doors.sightings.add("doors", sighting()) for _ in range(4)]
    clock.now += DAY_S + LATER_S
    doors.maintain()
    for row in stored:
        with pytest.raises(NotFoundError):
            doors.sightings.remove(row.token)


def test_sightings_of_an_expired_subject_are_not_found(doors: Engine, clock: Clock) -> None:
    doors.gallery.put_subject("doors", "p2", expires_at=NOW + 10)
    stored = doors.sightings.add("doors", sighting("p2"))
    clock.now += 10
    assert doors.sightings.page("doors") == []
    with pytest.raises(NotFoundError):
        doors.sightings.sighting(stored.token)
    with pytest.raises(NotFoundError, match="no subject 'p2'"):
        doors.sightings.add("doors", sighting("p2"))
    assert doors.sightings.remove(stored.token).sightings == 1


def test_settings_are_a_collections_own(doors: Engine) -> None:
    doors.gallery.create("gates", "face-embedder", "f1", 4)
    default = SightingSettings(DAY_S, 30 * DAY_S, pseudonyms=False)
    assert doors.sightings.settings("doors") == default
    doors.sightings.add("doors", sighting())
    assert doors.sightings.settings("doors") == default
    changed = SightingSettings(60, 366 * DAY_S)
    assert doors.sightings.put_settings("doors", changed, actor="k1") == changed
    assert doors.sightings.settings("doors") == changed
    assert doors.sightings.settings("gates") == default
    assert doors.sightings.put_settings("doors", default) == doors.sightings.settings("doors") == default
    doors.gallery.drop("doors")
    doors.gallery.create("doors", "face-embedder", "f1", 4)
    assert doors.sightings.settings("doors") == default


def test_a_shorter_retention_applies_to_all_sightings_a_longer_one_to_new_ones(doors: Engine, clock: Clock) -> None:
    doors.gallery.create("gates", "face-embedder", "f1", 4)
    for name, subject in (("doors", None), ("doors", "p1"), ("gates", None)):
        doors.sightings.add(name, sighting(subject, started_at=NOW - 105))
    clock.now += 10
    late = doors.sightings.add("doors", NewSighting("north", NOW, NOW + 60, 1))

    def expiry(name: str) -> list[float]:
        return [row.expires_at for row in doors.sightings.page(name)]

    assert late.expires_at == NOW + 10 + DAY_S  # the camera's clock is ahead
    doors.sightings.put_settings("doors", SightingSettings(3600, 40 * DAY_S))
    assert expiry("doors") == [NOW - 100 + 3600, NOW - 100 + 30 * DAY_S, NOW + 10 + 3600]
    doors.sightings.put_settings("doors", SightingSettings(7200, 7200))
    assert expiry("doors") == [NOW - 100 + 3600, NOW - 100 + 7200, NOW + 10 + 3600]
    assert doors.sightings.add("doors", sighting()).expires_at == NOW + 7200
    assert expiry("gates") == [NOW - 100 + DAY_S]


def test_invalid_sightings_are_refused(doors: Engine) -> None:
    add = doors.sightings.add
    invalid: dict[str, NewSighting] = {
        "1 to 64 letters": sighting(camera="north door"),
        "or -": sighting(camera=""),
        "digits": sighting(camera="k" * 65),
        "started_at to be a time": sighting(started_at=float("nan")),
        "ended_at to be a time": replace(sighting(), ended_at=1e12),
        "before started_at": replace(sighting(), ended_at=NOW - 6),
        "ahead": replace(sighting(), ended_at=NOW + 301),
        "longer ago": sighting(started_at=NOW - DAY_S - 5),
        "expected frames": replace(sighting(), frames=0),
        "frames from 1": replace(sighting(), frames=2**31),
        "probability from 0 to 1": sighting(probability=1.1),
        "distance from 0 to 2": sighting(distance=-0.1),
        "fpir from": sighting(fpir=float("nan")),
        "threshold from": sighting(threshold=2.5),
    }
    for text, new in invalid.items():
        with pytest.raises(InvalidError, match=text):
            add("doors", new)
    with pytest.raises(InvalidError, match="not a name"):
        add("doors", sighting(), actor="Grace Hopper")
    missing: list[Callable[[], object]] = [
        lambda: add("x", sighting()),
        lambda: add("doors", sighting("nobody")),
        lambda: doors.sightings.page("x"),
        lambda: doors.sightings.settings("x"),
        lambda: doors.sightings.put_settings("x", SightingSettings()),
        lambda: doors.sightings.sighting("0123"),
        lambda: doors.sightings.crop("0123"),
        lambda: doors.sightings.remove("0123"),
    ]
    for call in missing:
        with pytest.raises(NotFoundError):
            call()
    for settings in (SightingSettings(59), SightingSettings(known_s=367 * DAY_S), SightingSettings(float("nan"))):
        with pytest.raises(InvalidError, match="seconds"):
            doors.sightings.put_settings("doors", settings)
    assert doors.sightings.page("doors") == []
    assert doors.sightings.settings("doors") == SightingSettings()


def test_changes_are_in_the_audit_log_without_names(doors: Engine) -> None:
    before = doors.audit.head().sequence
    known = doors.sightings.add("doors", sighting("p1"), actor="k1")
    unknown = doors.sightings.add("doors", sighting(), actor="k1")
    doors.sightings.put_settings("doors", SightingSettings(60), actor="k2")
    doors.sightings.remove(known.token, actor="k2")
    doors.sightings.remove(unknown.token, actor="k2")
    subject, number = doors.gallery.subject("doors", "p1").id, doors.gallery.collection("doors").id
    events = [entry.event for entry in doors.audit.read(limit=1000)[0] if entry.sequence > before]
    assert {event.collection for event in events} == {number}
    assert [(event.action, event.actor, tuple(event.subjects), tuple(event.faces)) for event in events] == [
        ("add_sighting", "k1", (subject,), (-known.id,)),
        ("add_sighting", "k1", (), (-unknown.id,)),
        ("put_sighting_settings", "k2", (), ()),
        ("erase", "k2", (subject,), (-known.id,)),
        ("erase", "k2", (), (-unknown.id,)),
    ]
    assert doors.audit.verify() is None


def test_a_merge_moves_sightings_and_its_undo_returns_them(doors: Engine) -> None:
    for subject in ("p0", "p1", "p2", None):
        doors.sightings.add("doors", sighting(subject))
    before = doors.sightings.page("doors")
    merge = doors.curation.merge("doors", "p0", ["p1", "p2"])
    added = doors.sightings.add("doors", sighting("p0"))
    merged = doors.sightings.page("doors")
    assert tokens(merged) == [*tokens(before), added.token]
    assert [row.subject.key if row.subject else None for row in merged] == ["p0", "p0", "p0", None, "p0"]
    doors.curation.undo_merge("doors", merge.token)
    assert doors.sightings.page("doors") == [*before, added]
    doors.curation.merge("doors", "p0", ["p1"])
    assert doors.gallery.remove_subject("doors", "p0").sightings == 3
    assert doors.sightings.page("doors") == [before[2], before[3]]


def test_observers_see_a_sighting_in_its_transaction(doors: Engine) -> None:
    observed: list[tuple[str, Sighting]] = []

    def observe(db: Any, collection: Collection, stored: Sighting) -> None:
        (count,) = db.execute("SELECT count(*) FROM sightings").fetchone()
        assert count == len(observed) + 1
        if stored.camera == "south":
            raise ConflictError("no alert can be stored")
        observed.append((collection.name, stored))

    sightings: Any = type(doors.sightings)(doors.gallery, [observe])  # type: ignore[call-arg]
    stored = sightings.add("doors", sighting("p1"))
    with pytest.raises(ConflictError, match="no alert"):
        sightings.add("doors", sighting(camera="south"))
    assert observed == [("doors", stored)]
    assert doors.sightings.page("doors") == [stored]


# Pseudonyms of unknown people.

ALLOWED = SightingSettings(pseudonyms=True)
PEOPLE = vectors(6, seed=9)


def face(person: int, threshold: float | None = 0.99, fingerprint: str = "f1") -> UnknownFace:
    return UnknownFace(PEOPLE[person], fingerprint, lambda count: threshold)


def pseudonym(engine: Engine, person: int, subject: str | None = None, **more: Any) -> str | None:
    return engine.sightings.add("doors", sighting(subject, face=face(person, **more))).pseudonym


def test_an_unknown_person_has_no_pseudonym_by_default(doors: Engine) -> None:
    assert pseudonym(doors, 0) is None
    doors.sightings.put_settings("doors", ALLOWED)
    assert doors.sightings.settings("doors") == ALLOWED
    assert pseudonym(doors, 0) is not None
    assert pseudonym(doors, 0, "p1") is None
    assert pseudonym(doors, 0, fingerprint="f2") is None
    assert doors.sightings.add("doors", sighting()).pseudonym is None


def test_an_unknown_person_is_recognised_again(doors: Engine) -> None:
    doors.sightings.put_settings("doors", ALLOWED)
    given = [pseudonym(doors, person) for person in (0, 1, 2, 1, 0)]
    assert given[3:] == [given[1], given[0]]
    assert len(set(given)) == 3
    listed = doors.sightings.page("doors", SightingFilter(pseudonym=given[0]))
    assert [row.pseudonym for row in listed] == [given[0]] * 2
    nearest = max(float(PEOPLE[n] @ PEOPLE[3]) for n in range(3))
    assert pseudonym(doors, 3, threshold=nearest + 1e-3) not in given
    assert pseudonym(doors, 0, threshold=None) not in given
    with pytest.raises(InvalidError, match="numbers"):
        doors.sightings.add("doors", sighting(face=UnknownFace(vectors(1, 3)[0], "f1", lambda count: 0.5)))
    # The threshold is that for the number of stored faces, and vectors are scaled.
    scaled = UnknownFace(5 * PEOPLE[2], "f1", lambda count: 0.99 if count == 7 else None)
    assert doors.sightings.add("doors", sighting(face=scaled)).pseudonym == given[2]


def test_pseudonyms_end_with_the_last_sighting(doors: Engine, clock: Clock) -> None:
    doors.gallery.create("gates", "face-embedder", "f1", 4)
    doors.sightings.put_settings("doors", ALLOWED)
    doors.sightings.put_settings("gates", ALLOWED)
    first = pseudonym(doors, 0)
    assert doors.sightings.add("gates", sighting(face=face(0))).pseudonym != first
    clock.now += DAY_S
    assert doors.sightings.add("doors", sighting(started_at=clock.now - 5, face=face(0))).pseudonym != first


def test_forbidding_pseudonyms_erases_them(doors: Engine) -> None:
    doors.sightings.put_settings("doors", ALLOWED, actor="k1")
    doors.sightings.put_settings("doors", ALLOWED)
    given = pseudonym(doors, 0)
    doors.sightings.add("doors", sighting("p1"))
    doors.sightings.put_settings("doors", SightingSettings(), actor="k2")
    assert [row.pseudonym for row in doors.sightings.page("doors")] == [None, None]
    doors.sightings.put_settings("doors", ALLOWED)
    assert pseudonym(doors, 0) != given
    events = [entry.event for entry in doors.audit.read(limit=1000)[0] if "pseudonyms" in entry.event.action]
    assert [(event.action, event.actor) for event in events] == [
        ("allow_pseudonyms", "k1"),
        ("forbid_pseudonyms", "k2"),
        ("allow_pseudonyms", None),
    ]
    receipt = doors.gallery.receipt(events[1].id)
    assert (receipt.subjects, receipt.faces, receipt.sightings) == (0, 1, 0)


def test_a_reembedding_erases_pseudonyms(engine: Engine, clock: Clock) -> None:
    clock.now = NOW
    engine.gallery.create("doors", "face-embedder", "f1", 4)
    engine.sightings.put_settings("doors", ALLOWED)
    given = pseudonym(engine, 0)
    engine.reembeddings.begin("doors", "face-embedder", "f2", 6)
    worker = engine.new_worker()
    (reembedding,) = worker.waiting()
    assert worker.claim(reembedding)
    assert worker.switch(reembedding) == 0
    assert [row.pseudonym for row in engine.sightings.page("doors")] == [None]
    new = UnknownFace(vectors(1, 6)[0], "f2", lambda count: count - 1.0)
    assert engine.sightings.add("doors", sighting(face=new)).pseudonym not in (given, None)
