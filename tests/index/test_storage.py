"""The storage engine as the service opens it."""

from __future__ import annotations

import shutil
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from index.embedded import storage as module
from index.embedded.storage import EmbeddedStorage
from index.errors import ConflictError, LockedError
from index.factory import open_storage
from index.operator_key import OperatorKey
from tests.index.people import enrol, vectors


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[EmbeddedStorage]:
    storage = EmbeddedStorage(tmp_path / "gallery")
    storage.gallery.create("doors", "face-embedder", "f1", 4)
    yield storage
    storage.close()


def test_the_factory_opens_the_embedded_engine(tmp_path: Path) -> None:
    storage = open_storage(tmp_path / "gallery", key=OperatorKey(b"k" * 32))
    assert isinstance(storage, EmbeddedStorage)
    storage.gallery.create("doors", "face-embedder", "f1", 4, encrypted=True)
    enrol(storage.gallery, "doors", 5)
    storage.close()
    storage = open_storage(tmp_path / "gallery")
    with pytest.raises(LockedError):
        storage.searches.search("doors", vectors(1))
    storage.close()


def test_all_parts_work_on_one_gallery(storage: EmbeddedStorage) -> None:
    enrol(storage.gallery, "doors", 5)
    storage.feedback.add("doors", "p0", vectors(1))
    ((nearest,),) = storage.searches.search("doors", vectors(1), 1)
    assert nearest.subject.key != "p0"
    job = storage.jobs.ready(storage.jobs.begin("doors", {}))
    claimed = storage.job_worker.claim()
    assert claimed is not None
    assert claimed.token == job.token
    with pytest.raises(ConflictError, match="no crop"):
        storage.reembeddings.begin("doors", "face-embedder", "f2", 4)
    assert storage.reembedding_worker.waiting() == []
    assert storage.maintenance.run()


def test_subjects_whose_ids_clash_are_a_warning(storage: EmbeddedStorage, tmp_path: Path) -> None:
    assert storage.warnings() == []
    composed, decomposed = (unicodedata.normalize(form, "m\u00fcller") for form in ("NFC", "NFD"))
    for name in (composed, "other"):
        storage.gallery.put_subject("doors", name)

    def rename(db: apsw.Connection) -> None:
        db.execute("UPDATE subjects SET key = ? WHERE key = 'other'", (decomposed,))
        db.execute("UPDATE collections SET normalised = 0")

    storage.gallery.ledger.write(rename)
    storage.close()
    again = EmbeddedStorage(tmp_path / "gallery")
    (warning,) = again.warnings()
    assert warning.startswith("1 subjects ")
    assert "vestibule gallery clashes" in warning
    again.close()


def test_a_full_disk_and_a_missing_folder_are_problems(
    storage: EmbeddedStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert storage.problems() == []
    monkeypatch.setattr(module, "MIN_FREE_BYTES", 2**80)
    (problem,) = storage.problems()
    assert problem.startswith("the disk is full")
    monkeypatch.undo()
    storage.gallery.ledger.full_at = time.monotonic()
    assert storage.problems() == [problem]
    storage.gallery.ledger.full_at -= module.FULL_DISK_S
    assert storage.problems() == []
    shutil.rmtree(tmp_path / "gallery" / "files")
    assert storage.problems() == ["the folder of the gallery cannot be read: No such file or directory"]
    (tmp_path / "gallery" / "files").mkdir()
