"""A gallery, a backup and exports that commit 3efbd78 wrote: all of it is read, and unfinished work is finished.

Each collection is there twice: `open`, and `sealed`, which is encrypted.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import apsw
import numpy as np
import pytest

from index.embedded.admin import parquet as transfer
from index.embedded.admin import repair as upkeep
from index.embedded.admin.backup import restore
from index.embedded.admin.verify import faults
from index.embedded.audit.log import Head
from index.embedded.encryption.aead import OperatorKey
from index.embedded.encryption.data_keys import cipher_of
from index.embedded.gallery import EmbeddedGallery
from index.embedded.query.feedback import Feedback
from index.embedded.query.search import compare, search
from index.embedded.store import vector_records
from index.embedded.store.migrations import STEPS
from index.embedded.tasks.bulk_enrolment import Jobs, Worker
from index.embedded.tasks.compaction import Limits, Maintenance
from index.embedded.tasks.reembedding import FIRST, Reembeddings
from index.embedded.tasks.reembedding import Worker as Reembedder
from index.embedded.vectors.ivf import Ivf
from index.embedded.vectors.segment import Segment
from index.errors import LockedError, NotFoundError
from index.types import Floats, Match, NewFace, Outcome, ProcessedItem
from tests.golden_files import GOLDEN, KEY, expected, fields, unpack, vector

WRITTEN = expected("gallery")
NOW = WRITTEN["now"]
NAMES = ("open", "sealed")
ALL_NAMES = ("open", "open-anew", "sealed", "sealed-anew")
LIMITS = Limits(segment=8, exact_below=16, growth=2.0)
# The leases of the killed process are over. The subject `brief` has expired at the second time only.
LATER, AFTER_EXPIRY = NOW + 300, NOW + 700


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return unpack("gallery", tmp_path / "gallery")


@pytest.fixture
def opened(folder: Path) -> Iterator[Callable[..., EmbeddedGallery]]:
    """Opens the gallery; by default with the operator's key."""
    galleries: list[EmbeddedGallery] = []

    def open_it(key: bytes | None = KEY, now: float = LATER) -> EmbeddedGallery:
        made = EmbeddedGallery(folder, key=OperatorKey(key) if key else None, clock=lambda: now)
        galleries.append(made)
        return made

    yield open_it
    for gallery in galleries:
        gallery.close()


@pytest.fixture
def gallery(opened: Callable[..., EmbeddedGallery]) -> EmbeddedGallery:
    return opened()


def maintain(gallery: EmbeddedGallery) -> None:
    maintenance = Maintenance(gallery, LIMITS)
    assert maintenance.run()
    maintenance.release()


def numbers(count: int, dimensions: int, seed: int) -> Floats:
    """Vectors [count, dimensions] of length 1, as write_3efbd78.py makes them."""
    made = np.random.default_rng(seed).normal(size=(count, dimensions)).astype(np.float32)
    return np.asarray(made / np.linalg.norm(made, axis=1, keepdims=True), np.float32)


def told(found: Sequence[Sequence[Match]]) -> list[list[tuple[str, str]]]:
    return [[(match.subject.key, match.face) for match in matches] for matches in found]


def faces_of(gallery: EmbeddedGallery, name: str) -> list[dict[str, Any]]:
    """Every face with its crop and its vector, which the ledger, segments or both hold."""
    found = gallery.collection(name)
    with gallery.ledger.snapshot() as db:
        rows = vector_records.read(db, found.id, found.dimensions, 0)
    stored = dict(zip(rows.faces.tolist(), rows.vectors, strict=True))
    return [
        {**face.__dict__, "crop": gallery.crop(name, face.token).decode(), "vector": stored[face.id]}
        for subject in gallery.subjects(name)
        for face in gallery.faces(name, subject.key)
    ]


def same_faces(actual: list[dict[str, Any]], wanted: list[dict[str, Any]], *, but: tuple[str, ...] = ()) -> None:
    """The stored faces again, vectors bit for bit; what is named in `but` may differ."""
    for face, stored in zip(actual, wanted, strict=True):
        assert np.array_equal(face["vector"], vector(stored["vector"]))
        compared = [key for key in stored if key not in ("vector", *but)]
        assert [face[key] for key in compared] == [stored[key] for key in compared]


def by_crop(face: dict[str, Any]) -> int:
    return int(face["crop"].split()[1])


def same_answers(gallery: EmbeddedGallery, name: str) -> None:
    """The searches of 3efbd78 find the same subjects and faces, as like as they were."""
    written = WRITTEN[name]
    queries = np.stack([vector(text) for text in written["queries"]])
    for asked, answer in written["search"].items():
        fusion, _, text = asked.partition(" ")
        found = search(gallery, name, queries, 4, fusion=fusion, where=json.loads(text))
        assert told(found) == [[(key, face) for key, face, _ in matches] for matches in answer]
        similarities = [[match.similarity for match in matches] for matches in found]
        for ours, theirs in zip(similarities, answer, strict=True):
            assert ours == pytest.approx([similarity for *_, similarity in theirs], abs=1e-6)


def test_every_table_of_the_golden_ledger_holds_something(folder: Path) -> None:
    assert (folder / "ledger.db-wal").stat().st_size > 0
    with closing(apsw.Connection(str(folder / "ledger.db"))) as db:
        assert db.pragma("user_version") == 9 <= len(STEPS)
        tables = [row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        assert len(tables) == 21
        assert [name for name in tables if not db.execute(f"SELECT count(*) FROM {name}").get] == []
        kept = [row[0] for row in db.execute("SELECT DISTINCT substr(name, 1, instr(name || ':', ':')) FROM leases")]
        states = [row[0] for row in db.execute("SELECT DISTINCT state FROM jobs")]
        statuses = [row[0] for row in db.execute("SELECT DISTINCT status FROM job_items")]
    assert sorted(kept) == ["job:", "maintenance", "reembed:"]
    assert sorted(states) == ["done", "queued", "receiving", "running"]
    assert sorted(statuses) == ["enrolled", "failed", "pending"]
    for suffix in ("seg", "ivf"):
        assert {path.name[0] for path in (folder / "files").glob(f"*.{suffix}")} == {"1", "2", "3", "4"}


@pytest.mark.parametrize("name", ALL_NAMES)
def test_who_is_enrolled_is_read(gallery: EmbeddedGallery, name: str) -> None:
    written = WRITTEN[name]
    assert fields(gallery.collection(name), written["collection"]) == written["collection"]
    for subject, stored in zip(gallery.subjects(name), written["subjects"], strict=True):
        assert fields(subject, stored) == stored
    keys = {"p0", "p1", "p2", "p3", "brief", "nobody yet"}
    assert keys <= {subject.key for subject in gallery.subjects(name)}
    assert gallery.subject(name, "p0").name == "Zoë"
    assert gallery.subject(name, "p0").metadata == {"level": 2, "in": True, "note": "ä"}
    same_faces(faces_of(gallery, name), written["faces"])


@pytest.mark.parametrize("name", ALL_NAMES)
def test_searches_answer_as_they_did(gallery: EmbeddedGallery, name: str) -> None:
    assert not WRITTEN[name]["exact"]
    assert not gallery.usage(name).exact
    same_answers(gallery, name)
    queries = np.stack([vector(text) for text in WRITTEN[name]["queries"]])
    for query, (similarity, denied) in zip([*queries, *numbers(2, 16, 6)], WRITTEN[name]["compare"], strict=True):
        match, contradicted = compare(gallery, name, "p2", query)
        assert match is not None
        assert match.similarity == pytest.approx(similarity, abs=1e-6)
        assert contradicted is denied
    assert WRITTEN[name]["compare"][-1][1]  # what was said not to be p2, is not
    # Against plain numpy: without feedback and filters, the nearest face of all.
    stored = WRITTEN[name]["faces"]
    similarities = queries @ np.stack([vector(face["vector"]) for face in stored]).T
    for matches, row in zip(gallery.search(name, queries, 1), similarities, strict=True):
        assert matches[0].face == stored[int(row.argmax())]["token"]
        assert matches[0].similarity == pytest.approx(row.max(), abs=1e-6)


@pytest.mark.parametrize("name", ALL_NAMES)
def test_segments_and_inverted_files_are_read(gallery: EmbeddedGallery, name: str) -> None:
    found = gallery.collection(name)
    with gallery.ledger.snapshot() as db:
        cipher, sealed, indexed = (
            cipher_of(db, found.id),
            vector_records.segments(db, found.id),
            vector_records.inverted_file(db, found.id),
        )
    assert indexed is not None
    stored = {face["id"]: vector(face["vector"]) for face in WRITTEN[name]["faces"]}
    faces: list[int] = []
    for one in sealed:
        segment = Segment.open(gallery.files / one.file, cipher)
        segment.verify()
        faces += segment.faces.tolist()
        for face, its_vector in zip(segment.faces.tolist(), segment.unsealed().vectors, strict=True):
            if face in stored:  # else it was removed since
                assert np.array_equal(its_vector, stored[face])
    ivf = Ivf.read(gallery.files / indexed.file, cipher)
    assert sorted(ivf.ids.tolist()) == faces
    assert len(set(faces) & stored.keys()) >= 31
    query = stored[faces[0]]
    assert ivf.search(query[None], 1, ivf.lists)[0][0] == faces[0]


def test_a_collection_that_was_embedded_anew_is_searched(gallery: EmbeddedGallery) -> None:
    found = gallery.collection("moved")
    assert (found.embedder, found.fingerprint, found.dimensions, found.generation) == ("better", "f2", 8, 1)
    for number, query in enumerate(numbers(64, 8, 2)[:2]):
        (match, *_) = gallery.search("moved", query[None], 1)[0]
        assert match.subject.key == f"p{number}"
        assert match.similarity == pytest.approx(1, abs=1e-6)


def test_all_is_as_it_was_written(gallery: EmbeddedGallery) -> None:
    assert list(faults(gallery)) == []


def test_the_audit_log_is_verified_and_goes_on(opened: Callable[..., EmbeddedGallery], folder: Path) -> None:
    lines = len((folder / "audit.log").read_bytes().splitlines())
    assert lines == 1 + len(WRITTEN["entries"])
    gallery = opened()
    heads = [Head(sequence, digest) for sequence, digest, _ in WRITTEN["entries"]]
    assert gallery.audit.verify(heads) is None
    entries, _ = gallery.audit.read(limit=1000)
    for entry, (sequence, digest, act) in zip(entries, WRITTEN["entries"], strict=False):
        assert (entry.sequence, entry.hash) == (sequence, digest)
        assert {**fields(entry.act, act), "subjects": [*entry.act.subjects], "faces": [*entry.act.faces]} == act
    actions = {act["action"] for _, _, act in WRITTEN["entries"]}
    assert actions == {"enrol", "search", "erase", "restore", "reembed"}
    # What the killed process had not written there yet.
    since = [entry.act for entry in entries[len(WRITTEN["entries"]) :]]
    assert [(act.action, act.actor) for act in since] == 2 * [("enrol", "b-key"), ("erase", "b-key")]
    gallery.remove_subject("sealed", "p3", actor="c-key")
    assert gallery.audit.verify(heads) is None
    assert gallery.audit.head().sequence == len(entries) + 1
    fault = gallery.audit.verify([Head(3, "0" * 64)])
    assert fault is not None
    assert fault.sequence == 3


def test_tombstones_are_read_and_go_on(gallery: EmbeddedGallery) -> None:
    def removals() -> list[list[int]]:
        told = gallery.tombstones.read()
        assert told is not None
        return [[one.seq, one.collection_id, one.subject_id, one.face_id] for one in told[1]]

    assert removals() == WRITTEN["removals"]
    assert any(face < 0 for *_, face in WRITTEN["removals"])  # feedback that was taken back
    assert [5, 0, 0] in [row[1:] for row in WRITTEN["removals"]]  # a whole collection
    gallery.remove_subject("open", "p3")
    assert len(removals()) > len(WRITTEN["removals"])


def test_receipts_are_read_and_erasures_finished(opened: Callable[..., EmbeddedGallery], folder: Path) -> None:
    gallery = opened()
    for receipt in [one for kind in WRITTEN["receipts"].values() for one in kind]:
        assert fields(gallery.receipt(receipt["token"]), receipt) == receipt
    removed = [seq[3] for seq in WRITTEN["removals"][-2:]]
    gallery.close()
    gallery = opened(now=AFTER_EXPIRY)
    maintain(gallery)
    for receipt in WRITTEN["receipts"]["scrubbing"]:
        assert gallery.receipt(receipt["token"]).erased_at == AFTER_EXPIRY
    for name in ALL_NAMES:
        with pytest.raises(NotFoundError):  # whose time was over
            gallery.subject(name, "brief")
        with gallery.ledger.snapshot() as db:
            found = gallery.collection(name)
            cipher = cipher_of(db, found.id)
            held = [
                face
                for one in vector_records.segments(db, found.id)
                for face in Segment.open(gallery.files / one.file, cipher).faces.tolist()
            ]
        assert not set(held) & set(removed)
    assert list(faults(gallery)) == []


@pytest.mark.parametrize("name", NAMES)
def test_an_unfinished_bulk_job_is_finished(gallery: EmbeddedGallery, name: str) -> None:
    jobs, worker, tokens = Jobs(gallery), Worker(gallery), WRITTEN["jobs"][name]
    done = jobs.job(name, tokens["done"])
    assert (done.state, done.settings["max_faces"], jobs.counts(done)) == ("done", 1, {"enrolled": 2, "failed": 1})
    outcomes = jobs.outcomes(done, -1, 10)
    assert [face for one in outcomes for face in one.result.get("faces", ())] == [
        face.token for face in gallery.faces(name, f"{name} j0")
    ]
    assert outcomes[-1] == Outcome(2, "failed", {"problem": {"status": 400, "detail": "no image"}})
    half = jobs.job(name, tokens["half"])
    assert (half.state, jobs.counts(half)) == ("running", {"enrolled": 3, "pending": 5, "failed": 1})

    sent = numbers(16, 16, 1)
    waiting = worker.pending(jobs.job(name, tokens["waiting"]), 1)
    assert [(one.number, one.subject, one.kind) for one in waiting] == [(n, f"{name} j2", "vector") for n in range(3)]
    assert [one.data for one in waiting] == [vector.tobytes() for vector in sent[10:13]]
    others = []
    while (job := worker.claim()) is not None:
        if job.collection != name:
            others.append(job)
            worker.finish(job, "cancelled")
            continue
        while items := worker.pending(job, 1):
            faces = [NewFace(one.subject, np.frombuffer(one.data, "<f4"), {}, b"kept") for one in items]
            made = [
                ProcessedItem(one, Outcome(one.number, "enrolled"), [face])
                for one, face in zip(items, faces, strict=True)
            ]
            assert worker.enrol(job, made, "f1")
        worker.finish(job, "done")
    assert len(others) == 2
    assert jobs.counts(jobs.job(name, tokens["half"])) == {"enrolled": 8, "failed": 1}
    assert jobs.counts(jobs.job(name, tokens["waiting"])) == {"enrolled": 3, "failed": 1}
    with pytest.raises(NotFoundError):  # it was not sent to its end
        jobs.job(name, tokens["receiving"])
    for subject, first, count in ((f"{name} j1", 2, 8), (f"{name} j2", 10, 3)):
        info = gallery.subject(name, subject)
        assert (info.name, info.metadata, info.expires_at) == (f"Called {subject}", {"level": 9}, 5e9)
        assert info.faces == count
        for query in sent[first : first + count]:
            (match,) = gallery.search(name, query[None], 1)[0]
            assert match.subject.key == subject
            assert match.similarity == pytest.approx(1, abs=1e-6)
    assert list(faults(gallery)) == []


@pytest.mark.parametrize("name", ["open-anew", "sealed-anew"])
def test_an_unfinished_reembedding_is_finished(gallery: EmbeddedGallery, name: str) -> None:
    reembeddings, worker = Reembeddings(gallery), Reembedder(gallery)
    progress = reembeddings.progress(name)
    begun = progress.reembedding
    assert (begun.token, begun.embedder, begun.fingerprint) == (WRITTEN[f"{name} reembedding"], "better", "f2")
    assert (begun.dimensions, begun.actor, begun.problem) == (8, "a-key", None)
    assert (progress.state, progress.faces, progress.done) == ("queued", 46, 20)
    assert (progress.feedback, progress.lost) == (2, 1)
    assert worker.claim(begun)
    new = numbers(64, 8, 2)
    after, seen = FIRST, []
    while items := worker.pending(begun, after, 7):
        after = items[-1].id
        seen += items
        assert worker.stage(begun, {one.id: new[int(one.crop.split()[1]) % 64] for one in items})
    assert len(seen) == 26  # the others' vectors are those of the process that was killed
    assert worker.switch(begun) == 0
    found = gallery.collection(name)
    assert (found.embedder, found.fingerprint, found.dimensions, found.generation) == ("better", "f2", 8, 1)
    old = {face["token"]: face for face in WRITTEN[name]["faces"]}
    for face in faces_of(gallery, name):
        assert face["crop"] == old[face["token"]]["crop"]
        assert np.array_equal(face["vector"], new[int(face["crop"].split()[1]) % 64])
    (match,) = gallery.search(name, new[7][None], 1)[0]
    assert match.subject.key == "p2"
    assert match.similarity == pytest.approx(1, abs=1e-6)
    assert len(Feedback(gallery).of_subject(name, "p2")) == 1
    _, denied = compare(gallery, name, "p2", new[200 % 64])
    assert denied
    assert gallery.receipt(begun.token).faces == 1
    maintain(gallery)
    assert list(faults(gallery)) == []


@pytest.mark.parametrize("name", NAMES)
def test_it_enrols_searches_and_seals_more(gallery: EmbeddedGallery, name: str) -> None:
    more = numbers(20, 16, 50)
    gallery.enrol(name, [NewFace(f"new {n % 3}", one, {}, b"kept") for n, one in enumerate(more)], "f1")
    for _ in range(2):  # in memory, then in segments and an inverted file
        for number, query in enumerate(more):
            assert gallery.search(name, query[None], 1)[0][0].subject.key == f"new {number % 3}"
        maintain(gallery)
    assert list(faults(gallery)) == []


def test_without_the_key_what_is_not_encrypted_is_read(opened: Callable[..., EmbeddedGallery]) -> None:
    gallery = opened(None)
    for name in ("open", "open-anew"):
        same_faces(faces_of(gallery, name), WRITTEN[name]["faces"])
        same_answers(gallery, name)
    for name in ("sealed", "sealed-anew"):
        assert fields(gallery.collection(name), WRITTEN[name]["collection"]) == WRITTEN[name]["collection"]
        with pytest.raises(LockedError, match=OperatorKey(KEY).id):
            gallery.subjects(name)
    assert gallery.audit.verify() is None


def test_the_operator_s_key_is_changed(opened: Callable[..., EmbeddedGallery]) -> None:
    gallery, other = opened(), b"o" * 32
    assert upkeep.rekey(gallery, OperatorKey(other)) == 2
    gallery.close()
    gallery = opened(other)
    same_faces(faces_of(gallery, "sealed"), WRITTEN["sealed"]["faces"])
    same_answers(gallery, "sealed-anew")


def test_the_backup_is_put_back_where_there_is_nothing(tmp_path: Path) -> None:
    unpack("backup", tmp_path / "backup")
    done = restore(tmp_path / "new", tmp_path / "backup", clock=lambda: LATER, gap=lambda: 1000)
    assert not done.remembered
    assert (done.manifest.version, done.manifest.collections, done.manifest.faces) == (1, 5, 185)
    with closing(EmbeddedGallery(tmp_path / "new", key=OperatorKey(KEY), clock=lambda: LATER)) as gallery:
        assert gallery.subject("dropped", "someone").faces == 1
        for name in NAMES:
            # The backup is older than all erasures; the other collection of the kind still holds the same faces.
            wanted = sorted(WRITTEN[f"{name}-anew"]["faces"], key=by_crop)
            assert len(wanted) == 46
            same_faces(sorted(faces_of(gallery, name), key=by_crop), wanted, but=("id", "token"))
        assert list(faults(gallery)) == []


def test_the_backup_is_put_back_and_what_was_erased_since_is_erased_again(tmp_path: Path, folder: Path) -> None:
    unpack("backup", tmp_path / "backup")
    done = restore(folder, tmp_path / "backup", clock=lambda: LATER, gap=lambda: 1000)
    assert done.remembered
    assert (done.erased_collections, done.erased_subjects, done.erased_faces) == (1, 3, 21)
    with closing(EmbeddedGallery(folder, key=OperatorKey(KEY), clock=lambda: LATER)) as gallery:
        for name in NAMES:
            kept = [subject.key for subject in gallery.subjects(name)]
            assert sorted(kept) == ["brief", "nobody yet", "p0", "p1", "p2", "p3"]
            assert len(faces_of(gallery, name)) == 36
        with pytest.raises(NotFoundError):
            gallery.collection("dropped")
        heads = [Head(sequence, digest) for sequence, digest, _ in WRITTEN["entries"]]
        assert gallery.audit.verify(heads) is None
        assert list(faults(gallery)) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_parquet_file_is_imported(tmp_path: Path, name: str) -> None:
    path = Path(shutil.copy(GOLDEN / f"{name}.parquet", tmp_path))
    wanted = WRITTEN[f"{name}.parquet"]
    with closing(EmbeddedGallery(tmp_path / "new", key=OperatorKey(KEY), clock=lambda: LATER)) as gallery:
        done = transfer.import_collection(gallery, path)
        assert (done.collection, done.enrolled, done.present) == (name, len(wanted), 0)
        collection = WRITTEN[name]["collection"]
        assert {**fields(gallery.collection(name), collection), "id": collection["id"]} == collection
        same_faces(sorted(faces_of(gallery, name), key=by_crop), sorted(wanted, key=by_crop), but=("id",))
        assert gallery.subject(name, "p0").metadata == {"level": 2, "in": True, "note": "ä"}
        assert transfer.import_collection(gallery, path).present == len(wanted)


def test_an_encrypted_parquet_file_needs_the_key(tmp_path: Path) -> None:
    path = Path(shutil.copy(GOLDEN / "sealed.parquet", tmp_path))
    for key in (None, OperatorKey(b"o" * 32)):
        with (
            closing(EmbeddedGallery(tmp_path / f"new-{key and key.id}", key=key)) as gallery,
            pytest.raises(LockedError),
        ):
            transfer.import_collection(gallery, path)
