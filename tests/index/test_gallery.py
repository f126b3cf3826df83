"""The embedded gallery: enrolment, search, fusion, expiry and erasure."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from index.embedded.gallery import EmbeddedGallery, SearchTuning
from index.embedded.store import face_records
from index.embedded.tasks.maintenance import Maintenance
from index.types import NewFace
from tests.index.people import LIMITS, Clock, enrol


def unit(*values: float) -> npt.NDArray[np.float32]:
    return np.asarray(values, np.float32) / np.float32(np.linalg.norm(values))


def test_faces_are_looked_up_without_a_scan_of_the_collection(gallery: EmbeddedGallery) -> None:
    faces = enrol(gallery, "doors", 1500)
    steps: list[int] = []

    def count() -> bool:
        steps.append(100)
        return False

    db = gallery.ledger.reader()
    db.set_progress_handler(count, 100)
    try:
        assert face_records.ids_of_tokens(db, 1, [faces[7].token, faces[3].token]) == [faces[3].id, faces[7].id]
    finally:
        db.set_progress_handler(None)
    assert sum(steps) < 1000  # SQLite instructions: fewer than there are faces


def test_a_subject_with_many_similar_faces_does_not_hide_others(gallery: EmbeddedGallery) -> None:
    crowd = [NewFace("crowd", unit(1, 0.001 * i, 0, 0)) for i in range(200)]
    gallery.enrol("doors", [*crowd, NewFace("far", unit(0, 0, 1, 0))], "f1")
    (matches,) = gallery.nearest_subjects("doors", unit(1, 0, 0, 0)[None], k=2)
    assert [match.subject.key for match in matches] == ["crowd", "far"]


def test_expired_subjects_are_not_found_and_then_erased(gallery: EmbeddedGallery, clock: Clock) -> None:
    gallery.put_subject("doors", "guest", expires_at=2000.0)
    gallery.enrol("doors", [NewFace("guest", unit(1, 0, 0, 0)), NewFace("owner", unit(0, 1, 0, 0))], "f1")
    query = unit(1, 0, 0, 0)[None]
    assert [match.subject.key for match in gallery.nearest_subjects("doors", query)[0]] == ["guest", "owner"]
    clock.now = 2000.0
    assert [match.subject.key for match in gallery.nearest_subjects("doors", query)[0]] == ["owner"]
    Maintenance(gallery).run()
    assert [subject.key for subject in gallery.subjects("doors")] == ["owner"]
    assert gallery.size("doors") == 1


def test_searches_run_during_enrolments_and_maintenance(tmp_path: Path) -> None:
    gallery = EmbeddedGallery(tmp_path, tuning=SearchTuning(1000, 1000))
    gallery.create("doors", "e", "f1", 4)
    anchor = NewFace("anchor", unit(1, 1, 1, 1))
    gallery.enrol("doors", [anchor], "f1")
    done = threading.Event()

    def search() -> None:
        while not done.is_set():
            (matches,) = gallery.nearest_subjects("doors", anchor.vector[None], k=1)
            assert matches[0].similarity == pytest.approx(1, abs=1e-5)

    maintenance, deadline = Maintenance(gallery, LIMITS), time.monotonic() + 120
    with ThreadPoolExecutor(3) as threads:
        searches = [threads.submit(search) for _ in range(3)]
        try:
            for round_ in range(15):
                faces = enrol(gallery, "doors", 10, seed=round_)
                gallery.remove_faces("doors", [face.token for face in faces[::3]])
                maintenance.run()
                assert time.monotonic() < deadline
        finally:
            done.set()
        for future in searches:
            future.result()
    assert gallery.size("doors") == 1 + 15 * 6
    gallery.close()
