"""An encrypted collection behaves like one that is not, stores no plain text, and without its key blocks no other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import apsw
import pytest

from index.embedded.admin import repair
from index.embedded.admin.backup import back_up
from index.embedded.admin.verify import find_faults
from index.embedded.encryption import PLAINTEXT, cipher_of
from index.embedded.gallery import EmbeddedGallery
from index.embedded.query.feedback import Feedback
from index.embedded.query.search import Searches, selected_counts, selected_subjects
from index.embedded.sightings.sightings import Sightings
from index.embedded.store import collection_records
from index.embedded.tasks import bulk_enrolment, reembedding
from index.embedded.tasks.reembedding import Reembeddings
from index.embedded.transfer.transfer import EmbeddedTransfer
from index.embedded.vectors.ivf import Ivf
from index.embedded.vectors.segment import Segment
from index.errors import ConflictError, CorruptError, InvalidError, LockedError, NotFoundError
from index.operator_key import OperatorKey
from index.protocol import FIRST
from index.sightings import NewSighting, SightingFilter, SightingSettings, UnknownFace
from index.transfer.collection_file import export_collection, import_collection
from index.types import Collection, Item, NewFace, Outcome, Properties
from tests.index.people import Clock, folder_bytes, maintain, vectors
from tests.soak.erasure import forms_of_text, forms_of_vector, search_elsewhere

KEY, OTHER = OperatorKey(b"k" * 32), OperatorKey(b"o" * 32)
DIMENSIONS = 16
FACES = vectors(40, DIMENSIONS)
CROP = b"a crop that is long enough to be found"
# Texts that occur nowhere else.
NAMES = [f"callers-own-id-of-{number}" for number in range(5)]
CALLED, NOTE, SEEN = "Ferdinandea Isabella Zoë", "metadata that nobody else has", "measured of nobody else"
PROBLEM = "the problem of a refused item"


def filled(folder: Path, clock: Clock, *names: str) -> EmbeddedGallery:
    """A gallery whose collections have the same content; `doors` is encrypted."""
    gallery = EmbeddedGallery(folder, key=KEY, clock=clock)
    for name in names:
        gallery.create(name, "face-embedder", "f1", DIMENSIONS, encrypted=name == "doors", keep_crops=True)
        faces = [NewFace(NAMES[n % 5], vector, {"n": SEEN} if n % 2 else {}, CROP) for n, vector in enumerate(FACES)]
        gallery.enrol(name, faces, "f1")
        gallery.put_subject(
            name, NAMES[0], name=CALLED, metadata={"note": NOTE, "level": 2, "in": True}, expires_at=5e9
        )
        gallery.put_subject(name, NAMES[1], metadata={"level": 2.0, "in": 1, "many": ["x"]})
    return gallery


@pytest.fixture
def gallery(tmp_path: Path, clock: Clock) -> Iterator[EmbeddedGallery]:
    """`doors` is encrypted, `open` is not; both have the same content."""
    gallery = filled(tmp_path / "gallery", clock, "doors", "open")
    yield gallery
    gallery.close()


def comparable(matches: list[Any]) -> list[tuple[Any, ...]]:
    """The matches without what differs between two collections."""
    return [(m.subject.key, m.subject.name, m.subject.metadata, round(m.similarity, 5)) for m in matches]


def test_results_equal_those_of_a_plaintext_collection(gallery: EmbeddedGallery) -> None:
    feedback = Feedback(gallery)
    wheres: list[dict[str, Any]] = [{"level": [2]}, {"in": [True]}, {"in": [1]}, {"note": [NOTE, "x"], "level": [2.0]}]
    wheres += [{"many": ["x"]}, {"none": ["x"]}]
    answers: dict[str, list[Any]] = {"doors": [], "open": []}
    for name in ("doors", "open"):
        answer = answers[name]
        feedback.add(name, NAMES[2], FACES[2:3], [CROP], "f1")
        for _ in range(2):  # in memory, then by segments and an inverted file
            for fusion in ("best", "mean"):
                answer += map(comparable, gallery.nearest_subjects(name, FACES[:3], 4, fusion))
                for where in (None, *wheres):
                    answer += map(comparable, Searches(gallery).search(name, FACES[:3], 4, fusion=fusion, where=where))
            match, denied = Searches(gallery).compare(name, NAMES[2], FACES[2])
            answer += [comparable([match]), denied]
            maintain(gallery)
        with gallery.ledger.snapshot() as db:
            number = collection_records.find(db, name).id
            answer += [selected_counts(db, number, where) for where in wheres]
            answer += [len(selected_subjects(db, number, where, 1)) for where in wheres]
            chosen = selected_subjects(db, number, {"level": [2]})
            assert selected_subjects(db, number, {"level": [2]}, among=[*chosen[1:], 999]) == chosen[1:]
        for key in NAMES:
            subject = gallery.subject(name, key)
            answer += [(subject.key, subject.name, subject.metadata, subject.expires_at, subject.faces)]
            faces = gallery.faces(name, key)
            answer += [(face.subject, face.details, gallery.crop(name, face.token)) for face in faces]
        with pytest.raises(NotFoundError):
            gallery.subject(name, "nobody")
    assert answers["doors"] == answers["open"]
    assert not gallery.usage("doors").exact
    assert list(find_faults(gallery)) == []
    assert gallery.collection("doors").encrypted


def test_pages_list_each_subject_once(gallery: EmbeddedGallery) -> None:
    keys: list[str] = []
    while page := gallery.subjects("doors", after=keys[-1] if keys else "", limit=2):
        keys += [subject.key for subject in page]
    assert sorted(keys) == NAMES
    gallery.put_subject("doors", "without a face")
    assert gallery.faces("doors", "without a face") == []


def sighting(gallery: EmbeddedGallery, **more: Any) -> NewSighting:
    now = gallery.clock()
    return NewSighting("north", now - 5, now, 3, crop=CROP, **more)


def fill_all_tables(gallery: EmbeddedGallery) -> None:
    """Put the data into every table and file: jobs, feedback, re-embeddings, sightings, segments, indexes."""
    pseudonyms: dict[str, list[str | None]] = {}
    bulk = bulk_enrolment.JobQueue(gallery)
    for name in (collection.name for collection in gallery.collections()):
        job = bulk.begin(name, {"fingerprint": "f1"})
        bulk.append(job, [Item(0, NAMES[3], "picture", CROP, Properties(CALLED, {"note": NOTE}))])
        bulk.append(job, [Outcome(1, "failed", {"problem": PROBLEM})])
        bulk.ready(job)
        Feedback(gallery).add(name, NAMES[2], FACES[2:3], [CROP], "f1")
        Reembeddings(gallery).begin(name, "face-embedder", "f2", DIMENSIONS)
        seen = Sightings(gallery)
        seen.put_settings(name, SightingSettings(pseudonyms=True))
        for number in (3, 4, 3):
            unknown = UnknownFace(FACES[number], "f1", lambda count: 0.99)
            pseudonyms.setdefault(name, []).append(seen.add(name, sighting(gallery, face=unknown)).pseudonym)
        assert seen.crop(seen.add(name, sighting(gallery, subject=NAMES[1])).token) == CROP
    for first, second, again in pseudonyms.values():
        assert first == again != second
    worker = reembedding.ReembeddingWorker(gallery)
    for task in worker.waiting():
        assert worker.claim(task)
        items = [*worker.pending(task, FIRST, 1), *worker.pending(task, 0, 9)]
        assert {item.crop for item in items} == {CROP}
        assert worker.stage(task, {item.id: FACES[n] for n, item in enumerate(items)})
    maintain(gallery)


def test_no_file_contains_plain_text(tmp_path: Path) -> None:
    """Searched as in tests/soak/erasure.py."""
    galleries = [filled(tmp_path / name, Clock(1000.0), name) for name in ("doors", "open")]
    indexes = []
    for gallery, name in zip(galleries, ("doors", "open"), strict=True):
        fill_all_tables(gallery)
        back_up(gallery, tmp_path / name / "backup")
        assert export_collection(EmbeddedTransfer(gallery), name, tmp_path / name / "faces.parquet", KEY) == 40
        indexes += [Ivf.read(path, cipher_of(gallery.ledger.reader(), 1)) for path in gallery.files.glob("*.ivf")]
    assert len(indexes) == 2
    forms = {form for vector in FACES for form in forms_of_vector(vector, indexes)} | {CROP}
    forms |= {form for text in (*NAMES, CALLED, NOTE, SEEN, PROBLEM) for form in forms_of_text(text)}
    size, lines = search_elsewhere(sorted(forms), [tmp_path])
    assert size > 500_000
    assert {Path(line.partition(": ")[0]).relative_to(tmp_path).parts[0] for line in lines} == {"open"}
    for where in ("ledger.db-wal", "backup/ledger.db", ".seg", ".ivf", "faces.parquet"):
        assert any(f"{where}: " in line for line in lines), where
    for gallery in galleries:
        gallery.close()


@pytest.mark.parametrize("key", [None, OTHER], ids=["no key", "another key"])
def test_without_the_key_the_collection_is_locked_and_others_work(
    gallery: EmbeddedGallery, tmp_path: Path, clock: Clock, key: OperatorKey | None
) -> None:
    fill_all_tables(gallery)
    (face, *_) = gallery.faces("doors", NAMES[1])
    (seen, *_) = Sightings(gallery).page("doors", SightingFilter(unknown=True))
    gallery.put_subject("doors", NAMES[2], expires_at=2000.0)
    with closing(EmbeddedGallery(tmp_path / "gallery", key=key, clock=clock)) as locked:
        for call in (
            lambda: locked.nearest_subjects("doors", FACES[:1]),
            lambda: locked.enrol("doors", [NewFace("x", FACES[0])], "f1"),
            lambda: locked.subject("doors", NAMES[0]),
            lambda: locked.subjects("doors"),
            lambda: locked.put_subject("doors", "x"),
            lambda: locked.crop("doors", face.token),
            lambda: locked.remove_subject("doors", NAMES[0]),
            lambda: export_collection(EmbeddedTransfer(locked), "doors", tmp_path / "doors.parquet", key),
            lambda: repair.rekey(locked, OperatorKey(b"n" * 32)),
            lambda: Sightings(locked).add("doors", sighting(locked)),
            lambda: Sightings(locked).page("doors"),
            lambda: Sightings(locked).sighting(seen.token),
            lambda: Sightings(locked).crop(seen.token),
        ):
            with pytest.raises(LockedError, match=rf"needs the operator's key {KEY.id}|without an operator's key"):
                call()
        if key is None:
            with pytest.raises(LockedError, match="without an operator's key"):
                locked.create("more", "e", "f1", 4, encrypted=True)
            assert [collection.name for collection in locked.collections()] == ["doors", "open"]
        assert not (tmp_path / "doors.parquet").exists()
        assert locked.nearest_subjects("open", FACES[:1])[0]
        job = bulk_enrolment.BulkEnrolmentWorker(locked).claim()
        assert job is not None
        assert job.collection == "open"
        clock.now += 60  # leases have expired
        assert [task.collection for task in reembedding.ReembeddingWorker(locked).waiting()] == ["open"]
        # Erasing a face, a sighting, an expired subject or the whole collection needs no key.
        assert Sightings(locked).remove(seen.token).sightings == 1
        clock.now = 2000.0
        assert locked.remove_faces("doors", [face.token]).faces == 1
        other = locked.remove_subject("open", NAMES[0]).token
        maintain(locked)
        assert locked.receipt(other).erased_at is not None
        assert locked.usage("doors").subjects == 4
        assert [line for line in find_faults(locked) if "the rest cannot be read" in line and KEY.id in line]
        token = locked.drop("doors").token
        maintain(locked)
        assert locked.receipt(token).erased_at is not None


def swap(table: str, column: str, key: str) -> str:
    """SQL that swaps the values of two rows."""
    first, second = (f"(SELECT {key} FROM {table} ORDER BY {key} LIMIT 1 OFFSET {n})" for n in (0, 1))
    other = (
        f"(SELECT {column} FROM {table} AS b WHERE b.{key} = CASE a.{key} WHEN {first} THEN {second} ELSE {first} END)"
    )
    return f"UPDATE {table} AS a SET {column} = {other} WHERE {key} IN ({first}, {second})"


@pytest.mark.parametrize(
    "change",
    [
        swap("subjects", "sealed", "id"),
        swap("vectors", "data", "face_id"),
        swap("crops", "data", "face_id"),
        "UPDATE faces SET sealed = (SELECT sealed FROM faces WHERE id = 2) WHERE id = 4",
        "UPDATE subjects SET sealed = NULL WHERE id = 1",
        "UPDATE crops SET data = X'00' WHERE face_id = 1",
    ],
)
def test_moved_and_changed_values_are_detected(gallery: EmbeddedGallery, change: str) -> None:
    gallery.drop("open")
    gallery.ledger.write(lambda db: db.execute(change).fetchall())
    (line,) = list(find_faults(gallery))
    assert line.startswith("doors: the rest cannot be read: the encrypted ")


def test_rekey_replaces_the_operators_key(gallery: EmbeddedGallery, tmp_path: Path) -> None:
    gallery.nearest_subjects("doors", FACES[:1])
    with gallery.ledger.snapshot() as db:
        wrapped = bytes(db.execute("SELECT wrapped FROM collection_keys").get)
    assert repair.rekey(gallery, OTHER) == 1
    assert repair.rekey(gallery, OTHER) == 0
    assert gallery.nearest_subjects("doors", FACES[:1])[0]  # its cipher is cached
    with pytest.raises(LockedError, match=KEY.id):
        repair.rekey(gallery, OperatorKey(b"n" * 32))
    assert not (tmp_path / "gallery" / "ledger.db-wal").stat().st_size
    gallery.close()
    assert wrapped not in folder_bytes(tmp_path / "gallery")
    with (
        closing(EmbeddedGallery(tmp_path / "gallery", key=KEY)) as old,
        pytest.raises(LockedError, match=rf"needs the operator's key {OTHER.id}, but the key that is set is {KEY.id}"),
    ):
        old.nearest_subjects("doors", FACES[:1])
    with closing(EmbeddedGallery(tmp_path / "gallery", key=OTHER)) as new:
        assert new.subject("doors", NAMES[0]).name == CALLED


def test_a_lost_data_key_is_reported(gallery: EmbeddedGallery) -> None:
    gallery.ledger.write(lambda db: db.execute("DELETE FROM collection_keys").fetchall())
    for call in (partial(gallery.subject, "doors", NAMES[0]), partial(gallery.put_subject, "doors", "x")):
        with pytest.raises(LockedError, match="data key of 'doors' is gone"):
            call()
    assert cipher_of(gallery.ledger.reader(), 999) is PLAINTEXT  # a dropped collection


def test_a_rolled_back_creation_leaves_no_key(gallery: EmbeddedGallery) -> None:
    """The next collection gets the same id."""

    def make(db: apsw.Connection, encrypted: bool, fail: bool) -> bool:
        collection = collection_records.insert(db, Collection(0, "new", "e", "f1", 4, {}, 0.0, encrypted=encrypted))
        is_encrypted = cipher_of(db, collection.id).encrypted
        if fail:
            raise ConflictError("undone")
        return is_encrypted

    with pytest.raises(ConflictError, match="undone"):
        gallery.ledger.write(partial(make, encrypted=True, fail=True))
    assert gallery.ledger.write(partial(make, encrypted=False, fail=False)) is False


@pytest.fixture
def file(gallery: EmbeddedGallery, tmp_path: Path) -> Path:
    export_collection(EmbeddedTransfer(gallery), "doors", tmp_path / "doors.parquet", KEY)
    return tmp_path / "doors.parquet"


def test_an_encrypted_file_is_imported(gallery: EmbeddedGallery, file: Path, tmp_path: Path) -> None:
    with closing(EmbeddedGallery(tmp_path / "target", key=KEY)) as target:
        assert import_collection(EmbeddedTransfer(target), file, key=KEY).enrolled == 40
        assert import_collection(EmbeddedTransfer(target), file, key=KEY).present == 40
        assert target.collection("doors").encrypted
        assert target.subject("doors", NAMES[0]).name == CALLED
        imported = [(face.token, face.details) for face in target.faces("doors", NAMES[1])]
        assert imported == [(face.token, face.details) for face in gallery.faces("doors", NAMES[1])]
        target.create("open", "face-embedder", "f1", DIMENSIONS)
        with pytest.raises(ConflictError, match="the file is encrypted, and 'open' is not"):
            import_collection(EmbeddedTransfer(target), file, "open", KEY)
        assert list(find_faults(target)) == []


def test_a_plaintext_file_is_imported_into_an_encrypted_collection(gallery: EmbeddedGallery, tmp_path: Path) -> None:
    export_collection(EmbeddedTransfer(gallery), "open", tmp_path / "open.parquet")
    with closing(EmbeddedGallery(tmp_path / "target", key=KEY)) as target:
        target.create("closed", "face-embedder", "f1", DIMENSIONS, encrypted=True)
        assert import_collection(EmbeddedTransfer(target), tmp_path / "open.parquet", "closed").enrolled == 40
    content = folder_bytes(tmp_path / "target")
    assert not [text for text in (CROP, *map(str.encode, NAMES)) if text in content]


@pytest.mark.parametrize("key", [None, OTHER], ids=["no key", "another key"])
def test_a_file_is_refused_without_its_key(file: Path, tmp_path: Path, key: OperatorKey | None) -> None:
    with closing(EmbeddedGallery(tmp_path / "target", key=key)) as target:
        with pytest.raises(LockedError, match=f"the file needs the operator's key {KEY.id}"):
            import_collection(EmbeddedTransfer(target), file, key=key)
        assert target.collections() == []


def test_a_damaged_file_is_refused(file: Path, tmp_path: Path) -> None:
    whole = file.read_bytes()
    place = whole.index(b'wrappedDEK":"') + len(b'wrappedDEK":"')
    for at, byte in ((place, b"!"), (place + 2, b"/" if whole[place + 2 : place + 3] != b"/" else b"a"), (200, b"x")):
        file.write_bytes(whole[:at] + byte + whole[at + 1 :])
        with closing(EmbeddedGallery(tmp_path / "target", key=KEY)) as target:
            with pytest.raises((InvalidError, LockedError)):
                import_collection(EmbeddedTransfer(target), file, key=KEY)
            assert target.collections() == []


def test_misplaced_files_are_rebuilt(gallery: EmbeddedGallery) -> None:
    """Swapped segments, and files with another name."""
    gallery.drop("open")
    maintain(gallery)
    first, second, third, *_ = sorted(gallery.files.glob("*.seg"))
    with gallery.ledger.snapshot() as db:
        cipher = cipher_of(db, 1)
    a, b = first.read_bytes(), second.read_bytes()
    first.write_bytes(b)
    second.write_bytes(a)
    with pytest.raises(CorruptError, match="damaged or misplaced"):
        Segment.open(first, cipher).load()
    with pytest.raises(CorruptError, match="is encrypted and its collection is not"):
        Segment.open(third)
    with closing(EmbeddedGallery(gallery.files.parent, key=KEY)) as other:
        (matches,) = other.nearest_subjects("doors", FACES[:1], 1)
        assert matches[0].similarity == pytest.approx(1, abs=1e-5)
        assert [line for line in find_faults(other) if "the encrypted content is damaged or misplaced" in line]
    maintain(gallery)
    assert list(find_faults(gallery)) == []
    (index,) = gallery.files.glob("*.ivf")
    index.with_name("other.ivf").write_bytes(index.read_bytes())
    with pytest.raises(CorruptError):
        Ivf.read(index.with_name("other.ivf"), cipher)
    with pytest.raises(CorruptError):
        Ivf.read(index)
