"""Merges and moves in the embedded engine: files, other processes, backups, encryption, clashing ids, erasure."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from index.embedded.admin.backup import back_up, restore
from index.embedded.admin.verify import find_faults
from index.embedded.curation.curation import Curation
from index.embedded.gallery import EmbeddedGallery
from index.embedded.query.feedback import Feedback
from index.embedded.store import vector_records
from index.errors import LockedError, NotFoundError
from index.operator_key import OperatorKey
from index.types import NewFace
from tests.index.people import Clock, enrol, folder_bytes, maintain, vectors
from tests.soak.erasure import forms_of_text, forms_of_vector, search_elsewhere

KEY = OperatorKey(b"k" * 32)


def first_subjects(gallery: EmbeddedGallery, count: int = 20) -> list[str]:
    """Return the first match of each of the faces that `enrol` enrolled."""
    found = gallery.nearest_subjects("doors", vectors(count), 5)
    assert all(len({match.subject.id for match in matches}) == len(matches) for matches in found)
    return [matches[0].subject.key for matches in found]


def test_another_process_and_its_files_follow(gallery: EmbeddedGallery, tmp_path: Path, clock: Clock) -> None:
    enrol(gallery, "doors", 20)
    maintain(gallery)
    with closing(EmbeddedGallery(tmp_path / "gallery", clock=clock)) as other:
        assert first_subjects(other) == [f"p{n % 5}" for n in range(20)]
        merge = Curation(gallery).merge("doors", "p0", ["p1", "p2"])
        merged = ["p0", "p0", "p0", "p3", "p4"] * 4
        assert first_subjects(other) == first_subjects(gallery) == merged
        assert list(find_faults(gallery)) == []
        other.searchers.reload(other.collection("doors"))
        assert first_subjects(other) == merged
        maintain(gallery)
        assert first_subjects(other) == merged
        Curation(other).undo_merge("doors", merge.token)
        assert first_subjects(gallery) == [f"p{n % 5}" for n in range(20)]
        assert list(find_faults(gallery)) == []


def test_erased_face_stays_erased_when_its_subject_changes(gallery: EmbeddedGallery) -> None:
    faces = enrol(gallery, "doors", 20)
    maintain(gallery)
    first_subjects(gallery)
    gallery.remove_faces("doors", [faces[1].token, faces[19].token])
    Curation(gallery).merge("doors", "p0", ["p1", "p4"])
    assert gallery.size("doors") == 18
    found = gallery.nearest_subjects("doors", vectors(20)[[1, 19]], 5)
    assert all(matches[0].similarity < 0.9999 for matches in found)


def test_search_that_began_before_a_merge_returns_each_subject_once(gallery: EmbeddedGallery) -> None:
    enrol(gallery, "doors", 20)
    collection = gallery.collection("doors")
    searcher = gallery.searchers.get(collection)
    Curation(gallery).merge("doors", "p0", ["p1", "p2"])
    matches = gallery._matches(collection, searcher, vectors(20)[:1], 5, "best")
    assert sorted(match.subject.key for match in matches) == ["p0", "p3", "p4"]
    assert matches[0].subject.key == "p0"


def test_restored_backup_has_no_subject_that_was_erased_as_part_of_another(tmp_path: Path) -> None:
    folder, curation_of = tmp_path / "gallery", Curation
    with closing(EmbeddedGallery(folder)) as gallery:
        gallery.create("doors", "face-embedder", "f1", 4)
        enrol(gallery, "doors", 20)
        back_up(gallery, tmp_path / "before")
        curation_of(gallery).merge("doors", "p1", ["p2"])
        merge = curation_of(gallery).merge("doors", "p0", ["p1"])
        back_up(gallery, tmp_path / "after")
    restore(folder, tmp_path / "after")
    with closing(EmbeddedGallery(folder)) as gallery:
        assert first_subjects(gallery) == ["p0", "p0", "p0", "p3", "p4"] * 4
        curation_of(gallery).undo_merge("doors", merge.token)
        assert first_subjects(gallery) == ["p0", "p1", "p1", "p3", "p4"] * 4
        curation_of(gallery).merge("doors", "p0", ["p1"])
        gallery.remove_subject("doors", "p0")
    for backup in ("before", "after"):
        restore(folder, tmp_path / backup)
        with closing(EmbeddedGallery(folder)) as gallery:
            assert {subject.key for subject in gallery.subjects("doors")} == {"p3", "p4"}
            assert curation_of(gallery).merges("doors") == []
            maintain(gallery)
            assert list(find_faults(gallery)) == []


def test_subject_with_a_clashing_id_clashes_after_an_undo(gallery: EmbeddedGallery) -> None:
    form_c, form_d = "\u00e9", "e\u0301"
    gallery.put_subject("doors", form_c)
    gallery.put_subject("doors", "p0")
    other = gallery.put_subject("doors", "other")

    def clash(db: object) -> None:
        db.execute("UPDATE subjects SET key = ? WHERE id = ?", (form_d, other.id))  # type: ignore[attr-defined]
        collection = gallery.collection("doors").id
        db.execute("INSERT INTO clashes VALUES (?, ?, ?)", (other.id, collection, form_c))  # type: ignore[attr-defined]

    gallery.ledger.write(clash)
    curation = Curation(gallery)
    merge = curation.merge("doors", "p0", [form_d])
    assert merge.absorbed == (form_d,)
    curation.undo_merge("doors", merge.token)
    assert gallery.remove_subject("doors", form_c).subjects == 2


def test_encrypted_collection(tmp_path: Path, clock: Clock) -> None:
    names = [f"callers-own-id-of-{number}" for number in range(3)]
    (stranger,) = vectors(1, 16, seed=5)
    faces = vectors(9, 16)
    with closing(EmbeddedGallery(tmp_path / "gallery", key=KEY, clock=clock)) as gallery:
        gallery.create("doors", "face-embedder", "f1", 16, encrypted=True)
        gallery.enrol("doors", [NewFace(names[n % 3], faces[n], crop=b"crop") for n in range(9)], "f1")
        gallery.put_subject("doors", names[1], name="Ferdinandea Isabella", metadata={"note": "of nobody else"})
        before = {subject.key: subject for subject in gallery.subjects("doors")}
        Feedback(gallery).add("doors", names[1], np.stack([stranger, faces[0]]), [b"x", b"y"])
        curation = Curation(gallery)
        merge = curation.merge("doors", names[0], names[1:])
        assert (set(merge.absorbed), merge.faces) == (set(names[1:]), 6)
        assert len(Feedback(gallery).of_subject("doors", names[0])) == 1
        assert curation.face("doors", gallery.faces("doors", names[0])[1].token).subject.key == names[0]
        maintain(gallery)
        forms = {form for text in (*names, "Ferdinandea Isabella", "of nobody else") for form in forms_of_text(text)}
        forms |= {form for vector in (*faces, stranger) for form in forms_of_vector(vector)}
        assert search_elsewhere(sorted(forms), [tmp_path])[1] == []
        token = merge.token
    with closing(EmbeddedGallery(tmp_path / "gallery", clock=clock)) as locked:
        with pytest.raises(LockedError):
            Curation(locked).undo_merge("doors", token)
        clock.now = merge.undo_until - 1
    with closing(EmbeddedGallery(tmp_path / "gallery", key=KEY, clock=clock)) as gallery:
        Curation(gallery).undo_merge("doors", token)
        assert {subject.key: subject for subject in gallery.subjects("doors")} == before
        assert list(find_faults(gallery)) == []
        forgotten = Curation(gallery).merge("doors", names[0], names[1:])
        clock.now = forgotten.undo_until
    with closing(EmbeddedGallery(tmp_path / "gallery", clock=clock)) as locked:
        maintain(locked)  # needs no key
        assert locked.receipt(forgotten.token).subjects == 2


def test_forgotten_merge_is_in_no_file(gallery: EmbeddedGallery, tmp_path: Path, clock: Clock) -> None:
    (rejected,) = vectors(1)
    gallery.enrol("doors", [NewFace("keeper", rejected), NewFace("absorbed-own-id", vectors(2, seed=1)[0])], "f1")
    gallery.put_subject("doors", "absorbed-own-id", name="Ferdinandea Isabella", metadata={"note": "of nobody else"})
    Feedback(gallery).add("doors", "absorbed-own-id", rejected[None], [b"the crop of a contradicted rejection"])
    merge = Curation(gallery).merge("doors", "keeper", ["absorbed-own-id"])
    texts = ("absorbed-own-id", "Ferdinandea Isabella", "of nobody else", "the crop of a contradicted rejection")
    maintain(gallery)
    assert all(text.encode() in folder_bytes(tmp_path) for text in texts)
    clock.now = merge.undo_until
    maintain(gallery)
    assert gallery.receipt(merge.token).erased_at == clock.now
    assert not any(text.encode() in folder_bytes(tmp_path) for text in texts)
    with pytest.raises(NotFoundError):
        Curation(gallery).undo_merge("doors", merge.token)


def test_erasing_the_kept_subject_erases_the_merge_in_all_files(gallery: EmbeddedGallery, tmp_path: Path) -> None:
    gallery.put_subject("doors", "keeper")
    gallery.put_subject("doors", "absorbed-own-id", name="Ferdinandea Isabella", metadata={"note": "of nobody else"})
    Curation(gallery).merge("doors", "keeper", ["absorbed-own-id"])
    receipt = gallery.remove_subject("doors", "keeper")
    maintain(gallery)
    assert gallery.receipt(receipt.token).erased_at is not None
    content = folder_bytes(tmp_path)
    assert not any(text in content for text in (b"absorbed-own-id", b"Ferdinandea Isabella", b"of nobody else"))


def test_export_leaves_out_suspended_rejections(gallery: EmbeddedGallery) -> None:
    (rejected, stranger) = vectors(2)
    gallery.enrol("doors", [NewFace("p0", rejected), NewFace("p1", vectors(2, seed=1)[0])], "f1")
    Feedback(gallery).add("doors", "p1", np.stack([rejected, stranger]))
    Curation(gallery).merge("doors", "p0", ["p1"])
    with gallery.ledger.snapshot() as db:
        assert len(vector_records.rejection_records(db, gallery.collection("doors").id, 0, 10, 0.0)) == 1
