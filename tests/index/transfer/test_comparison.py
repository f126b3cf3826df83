"""The expected results of searches, computed from the files of an export, agree with comparing all faces by numpy."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from index.embedded.storage import EmbeddedStorage
from index.transfer import comparison, tables
from index.transfer.comparison import ExportedRows, best_subjects
from index.transfer.gallery_folder import export_gallery
from index.types import NewFace
from tests.index.people import vectors


@pytest.mark.parametrize("candidates", [4, 64])
def test_the_most_similar_subjects_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, candidates: int) -> None:
    monkeypatch.setattr(comparison, "CANDIDATES", candidates)
    monkeypatch.setattr(tables, "BATCH", 7)  # a subject's faces are in several batches
    faces, queries = vectors(60, 8), vectors(20, 8, seed=1)
    with closing(EmbeddedStorage(tmp_path / "gallery")) as storage:
        storage.gallery.create("doors", "e", "f", 8)
        storage.gallery.put_subject("doors", "brief", expires_at=4e9)
        storage.gallery.enrol("doors", [NewFace("brief", face) for face in queries], "f")
        storage.feedback.add("doors", "brief", faces[:9])
        storage.gallery.enrol("doors", [NewFace(f"p{number % 13}", face) for number, face in enumerate(faces)], "f")
        storage.feedback.add("doors", "p3", queries[:1])
        manifest = export_gallery(storage.transfer, tmp_path / "export")
    found = best_subjects(queries, ExportedRows(tmp_path / "export", manifest, 0, None, 5e9))
    similarities = queries @ faces.T
    for number, best in enumerate(found):
        subjects = {f"p{subject}": float(similarities[number, subject::13].max()) for subject in range(13)}
        expected = sorted(subjects, key=subjects.__getitem__, reverse=True)[:candidates]
        if queries[number] @ queries[0] >= subjects["p3"] - 1e-5:  # the rejected face
            expected = [subject for subject in expected if subject != "p3"]
        assert sorted(best, key=best.__getitem__, reverse=True) == expected
        assert best == pytest.approx({subject: subjects[subject] for subject in expected}, abs=1e-6)


def test_queries_are_stored_vectors_with_noise(tmp_path: Path) -> None:
    with closing(EmbeddedStorage(tmp_path / "gallery")) as storage:
        storage.gallery.create("doors", "e", "f", 8)
        storage.gallery.create("few", "e", "f", 8)
        storage.gallery.enrol("doors", [NewFace("p", face) for face in vectors(99, 8)], "f")
        storage.gallery.enrol("few", [NewFace("p", face) for face in vectors(1, 8)], "f")
        manifest = export_gallery(storage.transfer, tmp_path / "export")
    doors, few = (ExportedRows(tmp_path / "export", manifest, number, None, 0.0) for number in range(2))
    assert (doors.share(1000), few.share(1000), few.share(1)) == (990, 10, 1)
    queries = doors.queries(50)
    nearest = (queries @ vectors(99, 8).T).max(axis=1) / np.linalg.norm(queries, axis=1)
    assert queries.shape == (50, 8)
    assert np.array_equal(queries, doors.queries(50))
    assert nearest.min() > 0.9
