"""Merges in PostgreSQL: concurrent changes, what an export contains, and erasure of what an undo needs."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from psycopg import sql

from index.errors import ConflictError, NotFoundError
from index.postgres.curation.curation import PostgresCuration
from index.postgres.feedback import PostgresFeedback
from index.postgres.gallery import PostgresGallery
from index.postgres.store import collection_records, face_records
from index.postgres.store.database import Database, scalar
from index.types import NewFace
from tests.index.people import vectors


@pytest.fixture
def gallery(database: Database) -> PostgresGallery:
    gallery = PostgresGallery(database)
    gallery.create("doors", "face-embedder", "f1", 4)
    faces = vectors(24)
    gallery.enrol("doors", [NewFace(f"p{n % 6}", faces[n]) for n in range(24)], "f1")
    return gallery


def test_export_leaves_out_suspended_rejections(gallery: PostgresGallery, database: Database) -> None:
    PostgresFeedback(gallery).add("doors", "p1", np.stack([vectors(1)[0], vectors(1, seed=9)[0]]))
    PostgresCuration(gallery).merge("doors", "p0", ["p1"])
    with database.snapshot() as db:
        number = collection_records.find(db, "doors").id
        assert len(face_records.read_rejections(db, number, 0, 10, 0.0)) == 1


def test_forgotten_merge_leaves_no_row(gallery: PostgresGallery, database: Database) -> None:
    curation = PostgresCuration(gallery)
    curation.merge("doors", "p0", ["p1", "p2"])
    gallery.remove_subject("doors", "p0")
    curation.merge("doors", "p3", ["p4"])
    gallery.drop("doors")
    with database.snapshot() as db:
        for table in ("merges", "absorbed_subjects", "merged_faces"):
            assert scalar(db, sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(table))) == 0


def test_concurrent_changes_leave_each_face_with_one_subject(gallery: PostgresGallery) -> None:
    """Several threads merge, undo, move, enrol and erase at the same time; faces are neither lost nor doubled."""
    curation, start = PostgresCuration(gallery), threading.Barrier(4)
    tokens = [face.token for n in range(6) for face in gallery.faces("doors", f"p{n}")]
    extra = vectors(40, seed=3)

    def work(thread: int) -> int:
        rng, enrolled = np.random.default_rng(thread), 0
        start.wait()
        for step in range(10):
            first, second = rng.permutation(6)[:2]
            try:
                if step % 3 == 0:
                    merge = curation.merge("doors", f"p{first}", [f"p{second}"])
                    if rng.random() < 0.5:
                        curation.undo_merge("doors", merge.token)
                elif step % 3 == 1:
                    curation.move_faces("doors", list(rng.choice(tokens, 3, replace=False)), f"p{first}")
                else:
                    gallery.enrol("doors", [NewFace(f"p{first}", extra[10 * thread + step])], "f1")
                    enrolled += 1
            except (NotFoundError, ConflictError):
                pass
        return enrolled

    with ThreadPoolExecutor(4) as threads:
        enrolled = sum(threads.map(work, range(4)))
    subjects = gallery.subjects("doors", limit=-1)
    faces = [face.token for subject in subjects for face in gallery.faces("doors", subject.key)]
    assert len(faces) == len(set(faces)) == 24 + enrolled
    assert set(tokens) <= set(faces)
    usage = gallery.usage("doors")
    assert (usage.subjects, usage.faces) == (len(subjects), len(faces))
