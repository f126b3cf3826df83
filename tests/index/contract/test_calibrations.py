"""Calibrations of collections, of every engine."""

from __future__ import annotations

import pytest

from index.errors import ConflictError, NotFoundError
from tests.index.contract.engines import Engine
from tests.index.people import Clock


@pytest.fixture
def doors(engine: Engine) -> Engine:
    engine.gallery.create("doors", "face-embedder", "f1", 4)
    return engine


def test_the_latest_calibration_is_in_use(doors: Engine, clock: Clock) -> None:
    calibrations = doors.calibrations
    assert calibrations.in_use("doors") is None
    assert doors.searches.scope("doors").calibration is None
    first = calibrations.add("doors", "f1", '{"a": 1}', actor="key1")
    clock.now += 1
    second = calibrations.add("doors", "f1", '{"a": 2}')
    assert (first.version, first.created_at, first.in_use) == (1, clock.now - 1, True)
    assert (second.version, second.data, second.fingerprint) == (2, '{"a": 2}', "f1")
    assert calibrations.in_use("doors") == second
    assert doors.searches.scope("doors").calibration == second
    listed = calibrations.page("doors")
    assert [(row.token, row.in_use) for row in listed] == [(first.token, False), (second.token, True)]
    assert calibrations.page("doors", after=1) == listed[1:]
    assert calibrations.page("doors", limit=1) == listed[:1]
    assert calibrations.find("doors", first.token) == listed[0]


def test_an_earlier_calibration_or_none_can_be_used_again(doors: Engine) -> None:
    calibrations = doors.calibrations
    first = calibrations.add("doors", "f1", "{}")
    calibrations.add("doors", "f1", "{}")
    assert calibrations.use("doors", first.token, actor="key1") == first
    assert calibrations.in_use("doors") == first
    assert calibrations.use("doors", None) is None
    assert calibrations.in_use("doors") is None
    assert [row.in_use for row in calibrations.page("doors")] == [False, False]


def test_calibrations_belong_to_their_collection_and_pipeline(doors: Engine) -> None:
    calibrations = doors.calibrations
    doors.gallery.create("gates", "face-embedder", "f1", 4)
    other = calibrations.add("gates", "f1", "{}")
    assert other.version == 1
    with pytest.raises(NotFoundError):
        calibrations.use("doors", other.token)
    with pytest.raises(NotFoundError):
        calibrations.find("doors", other.token)
    with pytest.raises(NotFoundError):
        calibrations.add("nothing", "f1", "{}")
    with pytest.raises(ConflictError):
        calibrations.add("doors", "f2", "{}")
    own = calibrations.add("doors", "f1", "{}")
    doors.gallery.drop("doors")
    doors.gallery.create("doors", "face-embedder", "f1", 4)
    assert calibrations.page("doors") == []
    with pytest.raises(NotFoundError):
        calibrations.find("doors", own.token)
    assert calibrations.in_use("gates") == other


def test_a_reembedding_returns_to_the_embedders_own_calibration(doors: Engine) -> None:
    added = doors.calibrations.add("doors", "f1", "{}")
    doors.reembeddings.begin("doors", "face-embedder", "f2", 4)
    worker = doors.new_worker()
    (reembedding,) = worker.waiting()
    assert worker.claim(reembedding)
    worker.switch(reembedding)
    assert doors.gallery.collection("doors").fingerprint == "f2"
    assert doors.calibrations.in_use("doors") is None
    with pytest.raises(ConflictError):
        doors.calibrations.use("doors", added.token)
