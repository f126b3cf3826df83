"""Feedback of every engine; what it means for searches is in test_search.py."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from index.errors import ConflictError, InvalidError, NotFoundError
from index.types import NewFace
from tests.index.contract.engines import Engine
from tests.index.people import Clock, vectors

FACES = vectors(6)


@pytest.fixture
def doors(engine: Engine) -> Engine:
    engine.gallery.create("doors", "face-embedder", "f1", 4)
    engine.gallery.enrol("doors", [NewFace(f"p{n}", FACES[n]) for n in range(3)], "f1")
    return engine


def test_rejected_faces_are_listed_in_their_order(doors: Engine, clock: Clock) -> None:
    feedback = doors.feedback
    first = feedback.add("doors", "p1", FACES[:2], [b"a", None])
    clock.now += 1
    second = feedback.add("doors", "p1", FACES[2:3])
    feedback.add("doors", "p2", FACES[2:3])
    assert [rejection.created_at for rejection in first + second] == [clock.now - 1, clock.now - 1, clock.now]
    listed = feedback.of_subject("doors", "p1")
    assert listed == [*sorted(first, key=lambda rejection: rejection.id), *second]
    pages, after = [], (0.0, 0)
    while page := feedback.of_subject("doors", "p1", after, 1):
        pages += page
        after = (page[-1].created_at, page[-1].id)
    assert pages == listed
    assert feedback.of_subject("doors", "p1", limit=2) == listed[:2]
    assert feedback.of_subject("doors", "p0") == []


def test_removed_feedback_has_a_receipt(doors: Engine) -> None:
    feedback = doors.feedback
    (rejection,) = feedback.add("doors", "p1", FACES[:1], [b"crop"])
    receipt = feedback.remove("doors", "p1", rejection.token)
    assert (receipt.subjects, receipt.faces, receipt.erased_at) == (0, 1, None)
    assert doors.gallery.receipt(receipt.token) == receipt
    assert feedback.of_subject("doors", "p1") == []
    with pytest.raises(NotFoundError):
        feedback.remove("doors", "p1", rejection.token)


def test_feedback_is_erased_with_its_subject(doors: Engine) -> None:
    doors.feedback.add("doors", "p1", FACES[:1], [b"crop"])
    doors.gallery.remove_subject("doors", "p1")
    doors.gallery.put_subject("doors", "p1")
    assert doors.feedback.of_subject("doors", "p1") == []
    doors.feedback.add("doors", "p1", FACES[:1])
    doors.gallery.drop("doors")
    with pytest.raises(NotFoundError):
        doors.feedback.of_subject("doors", "p1")


def test_invalid_feedback_is_refused(doors: Engine, clock: Clock) -> None:
    feedback = doors.feedback
    (rejection,) = feedback.add("doors", "p1", FACES[:1])
    doors.gallery.put_subject("doors", "p0", expires_at=clock.now + 1)
    (expired,) = feedback.add("doors", "p0", FACES[:1])
    clock.now += 1
    missing: list[Callable[[], object]] = [
        lambda: feedback.add("x", "p1", FACES[:1]),
        lambda: feedback.add("doors", "nobody", FACES[:1]),
        lambda: feedback.add("doors", "p0", FACES[:1]),
        lambda: feedback.of_subject("doors", "nobody"),
        lambda: feedback.of_subject("doors", "p0"),
        lambda: feedback.of_subject("x", "p1"),
        lambda: feedback.remove("doors", "p2", rejection.token),
        lambda: feedback.remove("doors", "p1", "0123"),
        lambda: feedback.remove("doors", "nobody", rejection.token),
    ]
    for call in missing:
        with pytest.raises(NotFoundError):
            call()
    with pytest.raises(InvalidError):
        feedback.add("doors", "p1", 0 * FACES[:1])
    with pytest.raises(InvalidError, match="not a name"):
        feedback.add("doors", "p1", FACES[:1], actor="Grace Hopper")
    with pytest.raises(ConflictError, match="not of f2"):
        feedback.add("doors", "p1", FACES[:1], fingerprint="f2")
    with pytest.raises(ValueError, match="zip"):
        feedback.add("doors", "p1", FACES[:2], [b"a crop too few"])
    assert feedback.of_subject("doors", "p1") == [rejection]
    assert feedback.add("doors", "p1", np.empty((0, 4), np.float32)) == []
    assert feedback.remove("doors", "p0", expired.token).faces == 1  # an expired subject's can still be erased
