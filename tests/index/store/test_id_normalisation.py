"""Ids and metadata in Unicode form C: every way in, galleries from before, and ids that would clash."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import numpy as np
import pytest

from index.embedded.admin.parquet import export_collection, import_collection
from index.embedded.audit.entries import Act
from index.embedded.encryption.aead import OperatorKey
from index.embedded.gallery import EmbeddedGallery
from index.embedded.query import metadata_filter
from index.embedded.query.feedback import Feedback
from index.embedded.query.search import compare, search
from index.embedded.store import id_normalisation, job_records, ledger, records
from index.embedded.store.id_normalisation import Clash
from index.embedded.store.job_records import Found, Item, Outcome, Properties
from index.embedded.store.migrations import STEPS
from index.embedded.store.records import NewFace
from index.embedded.tasks.bulk_enrolment import Jobs, Worker
from index.errors import ConflictError, InvalidError, NotFoundError
from index.unicode_forms import LONGEST, normalised, normalised_json, normalised_metadata, normalised_where
from tests.index.people import vectors

C, D = (unicodedata.normalize(form, "m\u00fcller") for form in ("NFC", "NFD"))
DOOR_C, DOOR_D = (unicodedata.normalize(form, "T\u00fcr") for form in ("NFC", "NFD"))
# Neither form: its second accent is composed, its first is not.
PARTLY = "u\u0308\u00e9"
KEY = OperatorKey(bytes(range(32)))
encrypted = pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "encrypted"])


def face(subject: str, seed: int = 0) -> NewFace:
    return NewFace(subject, vectors(1, seed=seed)[0])


def opened(folder: Path) -> EmbeddedGallery:
    return EmbeddedGallery(folder, key=KEY)


@pytest.fixture
def gallery(tmp_path: Path) -> EmbeddedGallery:
    return opened(tmp_path / "gallery")


def keys(gallery: EmbeddedGallery, collection: str = "doors") -> list[str]:
    return sorted(subject.key for subject in gallery.subjects(collection))


def written_before(folder: Path, write: Callable[[EmbeddedGallery], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """A gallery as a version wrote it that did not normalise ids."""
    with monkeypatch.context() as patched:
        for module in (records, job_records):
            patched.setattr(module, "normalised", lambda id: id)
        patched.setattr(records, "normalised_metadata", lambda metadata: metadata)
        gallery = opened(folder)
        write(gallery)
        gallery.ledger.write(lambda db: db.execute("UPDATE collections SET normalised = 0").fetchall())
        gallery.close()


@encrypted
def test_both_forms_are_one_subject_at_every_way_in(gallery: EmbeddedGallery, encrypted: bool) -> None:
    gallery.create("doors", "e", "f", 4, encrypted=encrypted)
    (enrolled,) = gallery.enrol("doors", [face(D)], "f")
    assert enrolled.subject == C
    gallery.enrol("doors", [face(C, 1), face(D, 2)], "f")
    assert gallery.put_subject("doors", D, name=D).key == C
    assert keys(gallery) == [C]
    for form in (C, D):
        assert gallery.subject("doors", form).faces == 3
        assert len(gallery.faces("doors", form)) == 3
        assert compare(gallery, "doors", form, vectors(1)[0])[0] is not None
        assert len(Feedback(gallery).add("doors", form, vectors(1, seed=9))) == 1
    assert len(Feedback(gallery).of_subject("doors", D)) == 2
    assert gallery.remove_subject("doors", D).faces == 3
    with pytest.raises(NotFoundError):
        gallery.remove_subject("doors", C)


@encrypted
def test_bulk_items_of_either_form_are_enrolled_and_erased(gallery: EmbeddedGallery, encrypted: bool) -> None:
    gallery.create("doors", "e", "f", 4, encrypted=encrypted)
    jobs, worker = Jobs(gallery), Worker(gallery)

    def send(*subjects: str) -> job_records.Job:
        job = jobs.begin("doors", {})
        data = vectors(1)[0].tobytes()
        jobs.append(job, [Item(n, who, "vector", data, Properties(who)) for n, who in enumerate(subjects)])
        jobs.ready(job)
        claimed = worker.claim()
        assert claimed is not None
        return claimed

    job = send(D, C)
    assert jobs.remove_subject("doors", D).subjects == 1
    assert jobs.counts(job) == {"erased": 2}
    worker.finish(job, "done")
    job = send(D, C)
    found = [Found(one, Outcome(one.number, "enrolled"), [face(one.subject)]) for one in worker.pending(job, 8)]
    assert worker.enrol(job, found, "f")
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
def test_subjects_are_chosen_by_metadata_in_either_form(gallery: EmbeddedGallery, encrypted: bool) -> None:
    found = gallery.create("doors", "e", "f", 4, encrypted=encrypted)
    for n, form in enumerate((C, D)):
        gallery.put_subject("doors", f"p{n}", metadata={form: form, "deep": {form: 1}})
        gallery.enrol("doors", [face(f"p{n}", n)], "f")
    assert gallery.subject("doors", "p1").metadata == {C: C, "deep": {D: 1}}
    for form in (C, D):
        where = {form: [form, "other"]}
        assert len(search(gallery, "doors", vectors(1), where=where)[0]) == 2
        with gallery.ledger.snapshot() as db:
            assert metadata_filter.counts(db, found.id, where) == (2, 2)


def test_normalised_values() -> None:
    assert normalised("eileen") == "eileen"
    assert [normalised(form) for form in (C, D, PARTLY)] == [C, C, "\u00fc\u00e9"]
    longer = "\u0958" * LONGEST  # two characters each in form C
    assert normalised(longer) == longer
    assert len(normalised(longer[:64])) == LONGEST
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
def before(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EmbeddedGallery:
    """A gallery with ids that clash, as this version opens it."""

    def write(gallery: EmbeddedGallery) -> None:
        for name in ("doors", DOOR_D, MARE_D, MARE_C):
            gallery.create(name, "e", "f", 4, encrypted=request.param)
        gallery.put_subject("doors", D, name="first", metadata={D: D})
        gallery.put_subject("doors", C, name="second")
        gallery.put_subject("doors", "plain", metadata={D: 1})
        for n, who in enumerate((C, D, PARTLY, OTHER_D, "alone" + D)):
            gallery.enrol("doors", [face(who, n)], "f")
        jobs = Jobs(gallery)
        job = jobs.begin("doors", {})
        sent = (C, D, "new" + D, "alone" + D, "plain")
        jobs.append(job, [Item(n, who, "vector", b"") for n, who in enumerate(sent)])
        jobs.ready(job)

    written_before(tmp_path / "g", write, monkeypatch)
    return opened(tmp_path / "g")


def test_ids_from_before_are_normalised_and_clashes_are_reported(before: EmbeddedGallery) -> None:
    assert keys(before) == sorted((C, D, OTHER_C, OTHER_D, "alone" + C, "plain"))
    assert [found.name for found in before.collections()] == sorted(("doors", DOOR_C, MARE_C, MARE_D))
    reader = before.ledger.reader()
    assert set(id_normalisation.clashes(reader)) == {Clash(MARE_D), Clash("doors", D), Clash("doors", OTHER_D)}
    assert id_normalisation.count_clashes(reader) == 2


def renamed(gallery: EmbeddedGallery) -> list[Act]:
    return [entry.act for entry in gallery.audit.read()[0] if entry.act.action == "normalise_id"]


def test_each_renamed_id_has_a_line_in_the_audit_log(before: EmbeddedGallery) -> None:
    """Those that clash keep their ids and have none; nor has metadata."""
    reader = before.ledger.reader()
    doors = [before.collection(name).id for name in ("doors", DOOR_C)]
    renamed_subjects = [found.id for found in before.subjects("doors") if found.key in (OTHER_C, "alone" + C)]
    assert sorted((act.collection, *act.subjects) for act in renamed(before)) == sorted(
        [(doors[1],), *((doors[0], number) for number in renamed_subjects)]
    )
    assert all(act.at > 0 and act.actor is None and not act.faces for act in renamed(before))
    assert before.audit.verify() is None
    assert reader.execute("SELECT count(*) FROM acts").get == 0
    log = before.audit.path.read_text(encoding="utf-8")
    assert not any(name in log for name in (C, D, DOOR_C, "alone", json.dumps(C)[1:-1]))
    count, folder = len(renamed(before)), before.files.parent
    before.close()
    assert len(renamed(opened(folder))) == count


def test_ids_are_not_renamed_without_their_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are one transaction."""

    def write(gallery: EmbeddedGallery) -> None:
        gallery.create(DOOR_D, "e", "f", 4)
        gallery.put_subject(DOOR_D, D)

    def failing(*_: object) -> None:
        raise OSError("disk full")

    written_before(tmp_path / "g", write, monkeypatch)
    with monkeypatch.context() as patched:
        patched.setattr("index.embedded.audit.log.note", failing)
        with pytest.raises(OSError, match="disk full"):
            opened(tmp_path / "g")
    connection = apsw.Connection(str(tmp_path / "g" / "ledger.db"))
    assert connection.execute("SELECT key FROM subjects").get == D
    connection.close()
    gallery = opened(tmp_path / "g")
    assert (keys(gallery, DOOR_C), len(renamed(gallery))) == ([C], 2)
    gallery.close()


def test_each_of_two_that_clash_is_reached_by_exactly_its_id(before: EmbeddedGallery) -> None:
    assert [before.subject("doors", who).name for who in (C, D)] == ["second", "first"]
    assert before.subject("doors", D).metadata == {C: C}
    assert before.subject("doors", "plain").metadata == {C: 1}
    assert before.subject("doors", "alone" + D).key == "alone" + C
    before.enrol("doors", [face(D, 7)], "f")
    assert [before.subject("doors", who).faces for who in (C, D)] == [1, 2]
    assert [before.collection(name).name for name in (DOOR_D, MARE_C, MARE_D)] == [DOOR_C, MARE_C, MARE_D]
    before.drop(MARE_C)
    assert before.collection(MARE_D).name == MARE_D
    with pytest.raises(ConflictError):
        before.create(MARE_D, "e", "f", 4)


def test_an_erasure_finds_all_forms_and_what_waits_in_jobs(before: EmbeddedGallery) -> None:
    jobs = Jobs(before)
    assert jobs.remove_subject("doors", "new" + C).subjects == 1
    receipt = jobs.remove_subject("doors", C)
    assert (receipt.subjects, receipt.faces) == (2, 2)
    (job,) = jobs.list_jobs("doors", 0, 9)
    assert [one.status for one in jobs.outcomes(job, -1, 9)] == ["erased", "erased", "erased", "pending", "pending"]
    assert before.remove_subject("doors", OTHER_D).subjects == 2
    assert id_normalisation.count_clashes(before.ledger.reader()) == 0
    assert keys(before) == sorted(("alone" + C, "plain"))


def test_an_encrypted_collection_waits_for_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(gallery: EmbeddedGallery) -> None:
        gallery.create(DOOR_D, "e", "f", 4, encrypted=True)
        gallery.put_subject(DOOR_D, D)
        gallery.put_subject(DOOR_D, C)

    written_before(tmp_path / "g", write, monkeypatch)
    locked = EmbeddedGallery(tmp_path / "g")
    assert [found.name for found in locked.collections()] == [DOOR_C]
    assert list(id_normalisation.clashes(locked.ledger.reader())) == []
    locked.close()
    gallery = opened(tmp_path / "g")
    assert list(id_normalisation.clashes(gallery.ledger.reader())) == [Clash(DOOR_C, D)]
    gallery.close()
    locked = EmbeddedGallery(tmp_path / "g")
    assert id_normalisation.count_clashes(locked.ledger.reader()) == 1
    locked.close()


@encrypted
def test_damaged_rows_do_not_keep_a_gallery_from_opening(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    encrypted: bool,
) -> None:
    def write(gallery: EmbeddedGallery) -> None:
        gallery.create("doors", "e", "f", 4, encrypted=encrypted)
        for who in ("broken", "list", D):
            gallery.put_subject("doors", who)
        jobs = Jobs(gallery)
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

    written_before(tmp_path / "g", write, monkeypatch)
    gallery = opened(tmp_path / "g")
    assert gallery.subject("doors", C).key == C
    assert Jobs(gallery).remove_subject("doors", C).subjects == 1
    gallery.close()


def test_a_ledger_of_the_version_before_is_migrated(tmp_path: Path) -> None:
    folder = tmp_path / "g"
    folder.mkdir()
    connection = apsw.Connection(str(folder / "ledger.db"))
    ledger.migrate(connection, STEPS[:9])
    connection.execute(
        "INSERT INTO collections (name, embedder, fingerprint, dimensions, settings, created_at)"
        " VALUES ('doors', 'e', 'f', 4, '{}', 0)"
    )
    for number, who in enumerate((C, D, "x" + D)):
        connection.execute(
            "INSERT INTO subjects (collection_id, key, metadata, created_at) VALUES (1, ?, '{}', ?)", (who, number)
        )
    connection.close()
    gallery = opened(folder)
    assert keys(gallery) == sorted((C, D, "x" + C))
    assert list(id_normalisation.clashes(gallery.ledger.reader())) == [Clash("doors", D)]
    gallery.close()


def test_files_are_imported_in_form_c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(gallery: EmbeddedGallery) -> None:
        gallery.create("doors", "e", "f", 4)
        gallery.put_subject("doors", D, metadata={D: D})
        gallery.enrol("doors", [face(D)], "f")
        export_collection(gallery, "doors", tmp_path / "one.parquet")
        gallery.enrol("doors", [face(C, 1)], "f")
        export_collection(gallery, "doors", tmp_path / "both.parquet")

    written_before(tmp_path / "old", write, monkeypatch)
    gallery = opened(tmp_path / "new")
    for enrolled in (1, 0):
        assert import_collection(gallery, tmp_path / "one.parquet", DOOR_D).enrolled == enrolled
    found = gallery.subject(DOOR_C, C)
    assert (found.key, found.metadata, found.faces) == (C, {C: C}, 1)
    with pytest.raises(InvalidError, match="Unicode form"):
        import_collection(gallery, tmp_path / "both.parquet")
    with pytest.raises(NotFoundError):
        gallery.collection("doors")


def test_thousands_of_ids_are_looked_through_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(gallery: EmbeddedGallery) -> None:
        gallery.create("doors", "e", "f", 4)
        numbers = np.random.default_rng(0).permutation(2000)
        gallery.enrol("doors", [NewFace(f"{D if n % 2 else C}{n}", vectors(1)[0]) for n in numbers], "f")

    written_before(tmp_path / "g", write, monkeypatch)
    gallery = opened(tmp_path / "g")
    found: list[Any] = gallery.subjects("doors", limit=-1)
    assert sorted(subject.key for subject in found) == sorted(f"{C}{n}" for n in range(2000))
