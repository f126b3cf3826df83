"""Ids and metadata in Unicode form C: every way in, galleries of older versions, and ids that clash."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import apsw
import pytest

from index.audit_chain import AuditEvent
from index.embedded.audit import id_normalisation
from index.embedded.audit.id_normalisation import Clash
from index.embedded.gallery import EmbeddedGallery
from index.embedded.query.feedback import Feedback
from index.embedded.query.search import Searches, selected_counts
from index.embedded.store import collection_records, job_records, subject_records
from index.embedded.tasks.bulk_enrolment import BulkEnrolmentWorker, JobQueue
from index.embedded.transfer.transfer import EmbeddedTransfer
from index.errors import ConflictError, InvalidError, NotFoundError
from index.operator_key import OperatorKey
from index.transfer.collection_file import export_collection, import_collection
from index.types import Item, Job, NewFace, Outcome, ProcessedItem, Properties
from index.validation import MAX_KEY, normalised, normalised_json, normalised_metadata, normalised_where
from tests.index.people import vectors

C, D = (unicodedata.normalize(form, "m\u00fcller") for form in ("NFC", "NFD"))
DOOR_C, DOOR_D = (unicodedata.normalize(form, "T\u00fcr") for form in ("NFC", "NFD"))
# In neither form: its second accent is composed, its first is not.
PARTLY = "u\u0308\u00e9"
KEY = OperatorKey(bytes(range(32)))
encrypted = pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "encrypted"])


def face(subject: str, seed: int = 0) -> NewFace:
    return NewFace(subject, vectors(1, seed=seed)[0])


def open_gallery(folder: Path) -> EmbeddedGallery:
    return EmbeddedGallery(folder, key=KEY)


@pytest.fixture
def gallery(tmp_path: Path) -> EmbeddedGallery:
    return open_gallery(tmp_path / "gallery")


def keys(gallery: EmbeddedGallery, limit: int = 100) -> list[str]:
    return sorted(subject.key for subject in gallery.subjects("doors", limit=limit))


def write_older(folder: Path, write: Callable[[EmbeddedGallery], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Write a gallery as a version does that does not normalise ids."""
    with monkeypatch.context() as patched:
        for module in (collection_records, subject_records, job_records):
            patched.setattr(module, "normalised", lambda id: id)
        patched.setattr(subject_records, "normalised_metadata", lambda metadata: metadata)
        gallery = open_gallery(folder)
        write(gallery)
        gallery.ledger.write(lambda db: db.execute("UPDATE collections SET normalised = 0").fetchall())
        gallery.close()


@encrypted
def test_both_forms_are_one_subject_for_every_method(gallery: EmbeddedGallery, encrypted: bool) -> None:
    gallery.create("doors", "e", "f", 4, encrypted=encrypted)
    (enrolled,) = gallery.enrol("doors", [face(D)], "f")
    assert enrolled.subject == C
    gallery.enrol("doors", [face(C, 1), face(D, 2)], "f")
    assert gallery.put_subject("doors", D, name=D).key == C
    assert keys(gallery) == [C]
    for form in (C, D):
        assert gallery.subject("doors", form).faces == 3
        assert len(gallery.faces("doors", form)) == 3
        assert Searches(gallery).compare("doors", form, vectors(1)[0])[0] is not None
        assert len(Feedback(gallery).add("doors", form, vectors(1, seed=9))) == 1
    assert len(Feedback(gallery).of_subject("doors", D)) == 2
    assert gallery.remove_subject("doors", D).faces == 3
    with pytest.raises(NotFoundError):
        gallery.remove_subject("doors", C)


@encrypted
def test_items_of_either_form_are_enrolled_and_erased(gallery: EmbeddedGallery, encrypted: bool) -> None:
    gallery.create("doors", "e", "f", 4, encrypted=encrypted)
    jobs, worker = JobQueue(gallery), BulkEnrolmentWorker(gallery)

    def send(*subjects: str) -> Job:
        job = jobs.begin("doors", {})
        data = vectors(1)[0].tobytes()
        jobs.append(job, [Item(n, key, "vector", data, Properties(key)) for n, key in enumerate(subjects)])
        jobs.ready(job)
        claimed = worker.claim()
        assert claimed is not None
        return claimed

    job = send(D, C)
    assert jobs.remove_subject("doors", D).subjects == 1
    assert jobs.counts(job) == {"erased": 2}
    worker.finish(job, "done")
    job = send(D, C)
    processed = [
        ProcessedItem(item, Outcome(item.number, "enrolled"), [face(item.subject)]) for item in worker.pending(job, 8)
    ]
    assert worker.enrol(job, processed, "f")
    worker.finish(job, "done")
    assert keys(gallery) == [C]
    assert (gallery.subject("doors", C).faces, gallery.subject("doors", C).name) == (2, C)
    with pytest.raises(NotFoundError):
        jobs.remove_subject("doors", "nobody")


def test_both_forms_are_one_collection(gallery: EmbeddedGallery) -> None:
    assert gallery.create(DOOR_D, "e", "f", 4).name == DOOR_C
    for form in (DOOR_C, DOOR_D):
        with pytest.raises(ConflictError):
            gallery.create(form, "e", "f", 4)
        assert gallery.collection(form).name == DOOR_C
        assert gallery.usage(form).faces == 0
    gallery.drop(DOOR_D)
    assert gallery.collections() == []


@encrypted
def test_filters_match_metadata_in_either_form(gallery: EmbeddedGallery, encrypted: bool) -> None:
    collection = gallery.create("doors", "e", "f", 4, encrypted=encrypted)
    for n, form in enumerate((C, D)):
        gallery.put_subject("doors", f"p{n}", metadata={form: form, "deep": {form: 1}})
        gallery.enrol("doors", [face(f"p{n}", n)], "f")
    assert gallery.subject("doors", "p1").metadata == {C: C, "deep": {D: 1}}
    for form in (C, D):
        where = {form: [form, "other"]}
        assert len(Searches(gallery).search("doors", vectors(1), where=where)[0]) == 2
        with gallery.ledger.snapshot() as db:
            assert selected_counts(db, collection.id, where) == (2, 2)


def test_normalised_values() -> None:
    assert normalised("eileen") == "eileen"
    assert [normalised(form) for form in (C, D, PARTLY)] == [C, C, "\u00fc\u00e9"]
    longer = "\u0958" * MAX_KEY  # two characters each in form C
    assert normalised(longer) == longer
    assert len(normalised(longer[:64])) == MAX_KEY
    assert normalised_metadata({C: 1, D: 2}) == {C: 1, D: 2}
    where: dict[str, list[Any]] = {C: [1], D: [D, True]}
    assert normalised_where(where) == {C: [1, C, True]}
    for same in ('{"a": 1}', json.dumps({C: C}), json.dumps({C: 1, D: 2}), '{"deep": {"\\u0308": 1}}'):
        assert normalised_json(same) is same
    assert json.loads(normalised_json(json.dumps({D: D}, ensure_ascii=False))) == {C: C}
    deep = 100_000
    for damaged in ("{" + D, f'"{D}"', f'["{D}"]', f'{{"{D}": {"[" * deep}{"]" * deep}}}'):
        assert normalised_json(damaged) is damaged


MARE_C, MARE_D = (unicodedata.normalize(form, "m\u00e4r") for form in ("NFC", "NFD"))
OTHER_C, OTHER_D = (unicodedata.normalize(form, PARTLY) for form in ("NFC", "NFD"))


@pytest.fixture(params=[False, True], ids=["plain", "encrypted"])
def older(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EmbeddedGallery:
    """A gallery of an older version with ids that clash, opened with this version."""

    def write(gallery: EmbeddedGallery) -> None:
        for name in ("doors", DOOR_D, MARE_D, MARE_C):
            gallery.create(name, "e", "f", 4, encrypted=request.param)
        gallery.put_subject("doors", D, name="first", metadata={D: D})
        gallery.put_subject("doors", C, name="second")
        gallery.put_subject("doors", "plain", metadata={D: 1})
        for n, key in enumerate((C, D, PARTLY, OTHER_D, "alone" + D)):
            gallery.enrol("doors", [face(key, n)], "f")
        jobs = JobQueue(gallery)
        job = jobs.begin("doors", {})
        sent = (C, D, "new" + D, "alone" + D, "plain")
        jobs.append(job, [Item(n, key, "vector", b"") for n, key in enumerate(sent)])
        jobs.ready(job)

    write_older(tmp_path / "g", write, monkeypatch)
    return open_gallery(tmp_path / "g")


def test_ids_of_older_versions_are_normalised_and_clashes_are_reported(older: EmbeddedGallery) -> None:
    assert keys(older) == sorted((C, D, OTHER_C, OTHER_D, "alone" + C, "plain"))
    assert [collection.name for collection in older.collections()] == sorted(("doors", DOOR_C, MARE_C, MARE_D))
    reader = older.ledger.reader()
    assert set(id_normalisation.clashes(reader)) == {Clash(MARE_D), Clash("doors", D), Clash("doors", OTHER_D)}
    assert id_normalisation.count_clashes(reader) == 2


def renamings(gallery: EmbeddedGallery) -> list[AuditEvent]:
    return [entry.event for entry in gallery.audit.read()[0] if entry.event.action == "normalise_id"]


def test_each_normalised_id_has_an_audit_event(older: EmbeddedGallery) -> None:
    """Ids that clash stay and have no event; nor has metadata."""
    reader = older.ledger.reader()
    doors = [older.collection(name).id for name in ("doors", DOOR_C)]
    subjects = [subject.id for subject in older.subjects("doors") if subject.key in (OTHER_C, "alone" + C)]
    events = renamings(older)
    assert sorted((event.collection, *event.subjects) for event in events) == sorted(
        [(doors[1],), *((doors[0], number) for number in subjects)]
    )
    assert all(event.at > 0 and event.actor is None and not event.faces for event in events)
    assert older.audit.verify() is None
    assert reader.execute("SELECT count(*) FROM acts").get == 0
    log = older.audit.path.read_text(encoding="utf-8")
    assert not any(name in log for name in (C, D, DOOR_C, "alone", json.dumps(C)[1:-1]))
    older.close()
    assert renamings(open_gallery(older.files.parent)) == events


def test_ids_and_their_audit_events_are_written_by_one_transaction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(gallery: EmbeddedGallery) -> None:
        gallery.create(DOOR_D, "e", "f", 4)
        gallery.put_subject(DOOR_D, D)

    def fail(*_: object) -> None:
        raise OSError("disk full")

    write_older(tmp_path / "g", write, monkeypatch)
    with monkeypatch.context() as patched:
        patched.setattr("index.embedded.audit.log.record", fail)
        with pytest.raises(OSError, match="disk full"):
            open_gallery(tmp_path / "g")
    with closing(apsw.Connection(str(tmp_path / "g" / "ledger.db"))) as connection:
        assert connection.execute("SELECT key FROM subjects").get == D
    with closing(open_gallery(tmp_path / "g")) as gallery:
        assert [subject.key for subject in gallery.subjects(DOOR_C)] == [C]
        assert len(renamings(gallery)) == 2


def test_subjects_that_clash_are_found_by_their_exact_ids(older: EmbeddedGallery) -> None:
    assert [older.subject("doors", key).name for key in (C, D)] == ["second", "first"]
    assert older.subject("doors", D).metadata == {C: C}
    assert older.subject("doors", "plain").metadata == {C: 1}
    assert older.subject("doors", "alone" + D).key == "alone" + C
    older.enrol("doors", [face(D, 7)], "f")
    assert [older.subject("doors", key).faces for key in (C, D)] == [1, 2]
    assert [older.collection(name).name for name in (DOOR_D, MARE_C, MARE_D)] == [DOOR_C, MARE_C, MARE_D]
    older.drop(MARE_C)
    assert older.collection(MARE_D).name == MARE_D
    with pytest.raises(ConflictError):
        older.create(MARE_D, "e", "f", 4)


def test_an_erasure_includes_all_forms_and_pending_items(older: EmbeddedGallery) -> None:
    jobs = JobQueue(older)
    assert jobs.remove_subject("doors", "new" + C).subjects == 1
    receipt = jobs.remove_subject("doors", C)
    assert (receipt.subjects, receipt.faces) == (2, 2)
    (job,) = jobs.list_jobs("doors", 0, 9)
    assert [outcome.status for outcome in jobs.outcomes(job, -1, 9)] == [
        "erased",
        "erased",
        "erased",
        "pending",
        "pending",
    ]
    assert older.remove_subject("doors", OTHER_D).subjects == 2
    assert id_normalisation.count_clashes(older.ledger.reader()) == 0
    assert keys(older) == sorted(("alone" + C, "plain"))


def test_an_encrypted_collection_is_normalised_with_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(gallery: EmbeddedGallery) -> None:
        gallery.create(DOOR_D, "e", "f", 4, encrypted=True)
        gallery.put_subject(DOOR_D, D)
        gallery.put_subject(DOOR_D, C)

    write_older(tmp_path / "g", write, monkeypatch)
    with closing(EmbeddedGallery(tmp_path / "g")) as locked:
        assert [collection.name for collection in locked.collections()] == [DOOR_C]
        assert list(id_normalisation.clashes(locked.ledger.reader())) == []
    with closing(open_gallery(tmp_path / "g")) as gallery:
        assert list(id_normalisation.clashes(gallery.ledger.reader())) == [Clash(DOOR_C, D)]
    with closing(EmbeddedGallery(tmp_path / "g")) as locked:
        assert id_normalisation.count_clashes(locked.ledger.reader()) == 1


@encrypted
def test_a_gallery_with_damaged_rows_can_be_opened(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    encrypted: bool,
) -> None:
    def write(gallery: EmbeddedGallery) -> None:
        gallery.create("doors", "e", "f", 4, encrypted=encrypted)
        for key in ("broken", "list", D):
            gallery.put_subject("doors", key)
        jobs = JobQueue(gallery)
        job = jobs.begin("doors", {})
        jobs.append(job, [Item(0, "broken", "vector", b""), Item(1, D, "vector", b"")])
        jobs.ready(job)
        ids = [row[0] for row in gallery.ledger.reader().execute("SELECT id FROM subjects ORDER BY id")]

        def damage(db: apsw.Connection) -> None:
            if encrypted:
                db.execute("UPDATE subjects SET sealed = x'00' WHERE id = ?", ids[:1])
                db.execute("UPDATE job_items SET sealed = x'00' WHERE number = 0")
            else:
                db.execute("DROP TRIGGER subjects_change_values")
                db.execute("UPDATE subjects SET metadata = '{\u00fc' WHERE id = ?", ids[:1])
                db.execute("UPDATE subjects SET metadata = '[\"\u00fc\"]' WHERE id = ?", ids[1:2])

        gallery.ledger.write(damage)

    write_older(tmp_path / "g", write, monkeypatch)
    with closing(open_gallery(tmp_path / "g")) as gallery:
        assert gallery.subject("doors", C).key == C
        assert JobQueue(gallery).remove_subject("doors", C).subjects == 1


def test_imported_files_are_normalised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(gallery: EmbeddedGallery) -> None:
        gallery.create("doors", "e", "f", 4)
        gallery.put_subject("doors", D, metadata={D: D})
        gallery.enrol("doors", [face(D)], "f")
        export_collection(EmbeddedTransfer(gallery), "doors", tmp_path / "one.parquet")
        gallery.enrol("doors", [face(C, 1)], "f")
        export_collection(EmbeddedTransfer(gallery), "doors", tmp_path / "both.parquet")

    write_older(tmp_path / "old", write, monkeypatch)
    gallery = open_gallery(tmp_path / "new")
    for enrolled in (1, 0):
        assert import_collection(EmbeddedTransfer(gallery), tmp_path / "one.parquet", DOOR_D).enrolled == enrolled
    subject = gallery.subject(DOOR_C, C)
    assert (subject.key, subject.metadata, subject.faces) == (C, {C: C}, 1)
    with pytest.raises(InvalidError, match="Unicode form"):
        import_collection(EmbeddedTransfer(gallery), tmp_path / "both.parquet")
    with pytest.raises(NotFoundError):
        gallery.collection("doors")
