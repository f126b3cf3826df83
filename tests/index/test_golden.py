"""Golden files: a gallery, a backup and exports that commit 3efbd78 wrote are read, and unfinished work is finished.

Each collection exists twice: `open`, and `sealed`, which is encrypted.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index.audit_chain import LogHead
from index.embedded.admin.backup import restore
from index.embedded.admin.verify import find_faults
from index.embedded.encryption import cipher_of
from index.embedded.gallery import EmbeddedGallery
from index.embedded.query.feedback import Feedback
from index.embedded.query.search import Searches
from index.embedded.store import vector_records
from index.embedded.tasks.bulk_enrolment import BulkEnrolmentWorker, JobQueue
from index.embedded.tasks.reembedding import Reembeddings, ReembeddingWorker
from index.embedded.transfer.transfer import EmbeddedTransfer
from index.embedded.vectors.segment import Segment
from index.errors import NotFoundError
from index.operator_key import OperatorKey
from index.protocol import FIRST
from index.transfer.collection_file import import_collection
from index.types import Floats, Match, NewFace, Outcome, ProcessedItem
from tests.golden_files import GOLDEN, KEY, expected, fields, unpack, vector
from tests.index.people import maintain

WRITTEN = expected("gallery")
NOW = WRITTEN["now"]
NAMES = ("open", "sealed")
ALL_NAMES = ("open", "open-anew", "sealed", "sealed-anew")
# After the leases of the killed process have expired; after the subject `brief` has expired, too.
LATER, AFTER_EXPIRY = NOW + 300, NOW + 700


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return unpack("gallery", tmp_path / "gallery")


@pytest.fixture
def opened(folder: Path) -> Iterator[Callable[..., EmbeddedGallery]]:
    """Return a function that opens the gallery, by default with the operator's key."""
    galleries: list[EmbeddedGallery] = []

    def open_it(key: bytes | None = KEY, now: float = LATER) -> EmbeddedGallery:
        galleries.append(EmbeddedGallery(folder, key=OperatorKey(key) if key else None, clock=lambda: now))
        return galleries[-1]

    yield open_it
    for gallery in galleries:
        gallery.close()


@pytest.fixture
def gallery(opened: Callable[..., EmbeddedGallery]) -> EmbeddedGallery:
    return opened()


def numbers(count: int, dimensions: int, seed: int) -> Floats:
    """Return the vectors [count, dimensions] of length 1 of write_3efbd78.py."""
    values = np.random.default_rng(seed).normal(size=(count, dimensions)).astype(np.float32)
    return np.asarray(values / np.linalg.norm(values, axis=1, keepdims=True), np.float32)


def keys_and_faces(results: Sequence[Sequence[Match]]) -> list[list[tuple[str, str]]]:
    return [[(match.subject.key, match.face) for match in matches] for matches in results]


def faces_of(gallery: EmbeddedGallery, name: str) -> list[dict[str, Any]]:
    """Return every face with its crop and its vector."""
    collection = gallery.collection(name)
    with gallery.ledger.snapshot() as db:
        rows = vector_records.read(db, collection, 0)
    stored = dict(zip(rows.faces.tolist(), rows.vectors, strict=True))
    return [
        {**face.__dict__, "crop": gallery.crop(name, face.token).decode(), "vector": stored[face.id]}
        for subject in gallery.subjects(name)
        for face in gallery.faces(name, subject.key)
    ]


def assert_same_faces(actual: list[dict[str, Any]], wanted: list[dict[str, Any]], *, but: tuple[str, ...] = ()) -> None:
    """Compare faces with the stored ones, vectors bit by bit; fields in `but` may differ."""
    for face, stored in zip(actual, wanted, strict=True):
        assert np.array_equal(face["vector"], vector(stored["vector"]))
        compared = [key for key in stored if key not in ("vector", *but)]
        assert [face[key] for key in compared] == [stored[key] for key in compared]


def by_crop(face: dict[str, Any]) -> int:
    return int(face["crop"].split()[1])


def assert_same_results(gallery: EmbeddedGallery, name: str) -> None:
    """Repeat the searches of 3efbd78 and compare subjects, faces and similarities."""
    written = WRITTEN[name]
    queries = np.stack([vector(text) for text in written["queries"]])
    for asked, answer in written["search"].items():
        fusion, _, text = asked.partition(" ")
        results = Searches(gallery).search(name, queries, 4, fusion=fusion, where=json.loads(text))
        assert keys_and_faces(results) == [[(key, face) for key, face, _ in matches] for matches in answer]
        similarities = [[match.similarity for match in matches] for matches in results]
        for ours, theirs in zip(similarities, answer, strict=True):
            assert ours == pytest.approx([similarity for *_, similarity in theirs], abs=1e-6)


@pytest.mark.parametrize("name", ALL_NAMES)
def test_subjects_and_faces_are_read(gallery: EmbeddedGallery, name: str) -> None:
    written = WRITTEN[name]
    assert fields(gallery.collection(name), written["collection"]) == written["collection"]
    for subject, stored in zip(gallery.subjects(name), written["subjects"], strict=True):
        assert fields(subject, stored) == stored
    keys = {"p0", "p1", "p2", "p3", "brief", "nobody yet"}
    assert keys <= {subject.key for subject in gallery.subjects(name)}
    assert gallery.subject(name, "p0").name == "Zoë"
    assert gallery.subject(name, "p0").metadata == {"level": 2, "in": True, "note": "ä"}
    assert_same_faces(faces_of(gallery, name), written["faces"])


@pytest.mark.parametrize("name", ALL_NAMES)
def test_searches_return_the_same_results(gallery: EmbeddedGallery, name: str) -> None:
    assert not WRITTEN[name]["exact"]
    assert not gallery.usage(name).exact
    assert_same_results(gallery, name)
    queries = np.stack([vector(text) for text in WRITTEN[name]["queries"]])
    for query, (similarity, was_rejected) in zip([*queries, *numbers(2, 16, 6)], WRITTEN[name]["compare"], strict=True):
        match, rejected = Searches(gallery).compare(name, "p2", query)
        assert match is not None
        assert match.similarity == pytest.approx(similarity, abs=1e-6)
        assert rejected is was_rejected
    assert WRITTEN[name]["compare"][-1][1]  # a face that feedback rejected
    # The nearest face according to numpy.
    stored = WRITTEN[name]["faces"]
    similarities = queries @ np.stack([vector(face["vector"]) for face in stored]).T
    for matches, row in zip(gallery.nearest_subjects(name, queries, 1), similarities, strict=True):
        assert matches[0].face == stored[int(row.argmax())]["token"]
        assert matches[0].similarity == pytest.approx(row.max(), abs=1e-6)


def test_a_reembedded_collection_is_searched(gallery: EmbeddedGallery) -> None:
    moved = gallery.collection("moved")
    assert (moved.embedder, moved.fingerprint, moved.dimensions, moved.generation) == ("better", "f2", 8, 1)
    for number, query in enumerate(numbers(64, 8, 2)[:2]):
        (match, *_) = gallery.nearest_subjects("moved", query[None], 1)[0]
        assert match.subject.key == f"p{number}"
        assert match.similarity == pytest.approx(1, abs=1e-6)


def test_the_gallery_has_no_faults(gallery: EmbeddedGallery) -> None:
    assert list(find_faults(gallery)) == []


def test_the_audit_log_is_verified_and_continued(opened: Callable[..., EmbeddedGallery], folder: Path) -> None:
    lines = len((folder / "audit.log").read_bytes().splitlines())
    assert lines == 1 + len(WRITTEN["entries"])
    gallery = opened()
    heads = [LogHead(sequence, digest) for sequence, digest, _ in WRITTEN["entries"]]
    assert gallery.audit.verify(heads) is None
    entries, _ = gallery.audit.read(limit=1000)
    for entry, (sequence, digest, act) in zip(entries, WRITTEN["entries"], strict=False):
        assert (entry.sequence, entry.hash) == (sequence, digest)
        assert {**fields(entry.event, act), "subjects": [*entry.event.subjects], "faces": [*entry.event.faces]} == act
    actions = {act["action"] for _, _, act in WRITTEN["entries"]}
    assert actions == {"enrol", "search", "erase", "restore", "reembed"}
    # Events that the killed process had not flushed.
    since = [entry.event for entry in entries[len(WRITTEN["entries"]) :]]
    assert [(act.action, act.actor) for act in since] == 2 * [("enrol", "b-key"), ("erase", "b-key")]
    gallery.remove_subject("sealed", "p3", actor="c-key")
    assert gallery.audit.verify(heads) is None
    assert gallery.audit.head().sequence == len(entries) + 1
    fault = gallery.audit.verify([LogHead(3, "0" * 64)])
    assert fault is not None
    assert fault.sequence == 3


def test_receipts_are_read_and_erasures_finished(opened: Callable[..., EmbeddedGallery], folder: Path) -> None:
    gallery = opened()
    for receipt in [receipt for kind in WRITTEN["receipts"].values() for receipt in kind]:
        assert fields(gallery.receipt(receipt["token"]), receipt) == receipt
    removed = [seq[3] for seq in WRITTEN["removals"][-2:]]
    gallery.close()
    gallery = opened(now=AFTER_EXPIRY)
    maintain(gallery)
    for receipt in WRITTEN["receipts"]["scrubbing"]:
        assert gallery.receipt(receipt["token"]).erased_at == AFTER_EXPIRY
    for name in ALL_NAMES:
        with pytest.raises(NotFoundError):  # it has expired
            gallery.subject(name, "brief")
        with gallery.ledger.snapshot() as db:
            number = gallery.collection(name).id
            cipher, segments = cipher_of(db, number), vector_records.segments(db, number)
        for segment in segments:
            assert not set(Segment.open(gallery.files / segment.file, cipher).faces.tolist()) & set(removed)
    assert list(find_faults(gallery)) == []


@pytest.mark.parametrize("name", NAMES)
def test_an_unfinished_bulk_job_is_finished(gallery: EmbeddedGallery, name: str) -> None:
    jobs, worker, tokens = JobQueue(gallery), BulkEnrolmentWorker(gallery), WRITTEN["jobs"][name]
    done = jobs.job(name, tokens["done"])
    assert (done.state, done.settings["max_faces"], jobs.counts(done)) == ("done", 1, {"enrolled": 2, "failed": 1})
    outcomes = jobs.outcomes(done, -1, 10)
    assert [face for outcome in outcomes for face in outcome.result.get("faces", ())] == [
        face.token for face in gallery.faces(name, f"{name} j0")
    ]
    assert outcomes[-1] == Outcome(2, "failed", {"problem": {"status": 400, "detail": "no image"}})
    half = jobs.job(name, tokens["half"])
    assert (half.state, jobs.counts(half)) == ("running", {"enrolled": 3, "pending": 5, "failed": 1})

    sent = numbers(16, 16, 1)
    waiting = worker.pending(jobs.job(name, tokens["waiting"]), 1)
    assert [(item.number, item.subject, item.kind) for item in waiting] == [
        (n, f"{name} j2", "vector") for n in range(3)
    ]
    assert [item.data for item in waiting] == [row.tobytes() for row in sent[10:13]]
    other_jobs = []
    while (job := worker.claim()) is not None:
        if job.collection != name:
            other_jobs.append(job)
            worker.finish(job, "cancelled")
            continue
        while items := worker.pending(job, 1):
            faces = [NewFace(item.subject, np.frombuffer(item.data, "<f4"), {}, b"kept") for item in items]
            results = [
                ProcessedItem(item, Outcome(item.number, "enrolled"), [face])
                for item, face in zip(items, faces, strict=True)
            ]
            assert worker.enrol(job, results, "f1")
        worker.finish(job, "done")
    assert len(other_jobs) == 2
    assert jobs.counts(jobs.job(name, tokens["half"])) == {"enrolled": 8, "failed": 1}
    assert jobs.counts(jobs.job(name, tokens["waiting"])) == {"enrolled": 3, "failed": 1}
    with pytest.raises(NotFoundError):  # its upload was not completed
        jobs.job(name, tokens["receiving"])
    for subject, first, count in ((f"{name} j1", 2, 8), (f"{name} j2", 10, 3)):
        info = gallery.subject(name, subject)
        assert (info.name, info.metadata, info.expires_at) == (f"Called {subject}", {"level": 9}, 5e9)
        assert info.faces == count
        for query in sent[first : first + count]:
            (match,) = gallery.nearest_subjects(name, query[None], 1)[0]
            assert match.subject.key == subject
            assert match.similarity == pytest.approx(1, abs=1e-6)
    assert list(find_faults(gallery)) == []


@pytest.mark.parametrize("name", ["open-anew", "sealed-anew"])
def test_an_unfinished_reembedding_is_finished(gallery: EmbeddedGallery, name: str) -> None:
    reembeddings, worker = Reembeddings(gallery), ReembeddingWorker(gallery)
    progress = reembeddings.progress(name)
    reembedding = progress.reembedding
    assert (reembedding.token, reembedding.embedder, reembedding.fingerprint) == (
        WRITTEN[f"{name} reembedding"],
        "better",
        "f2",
    )
    assert (reembedding.dimensions, reembedding.actor, reembedding.problem) == (8, "a-key", None)
    assert (progress.state, progress.faces, progress.done) == ("queued", 46, 20)
    assert (progress.feedback, progress.lost) == (2, 1)
    assert worker.claim(reembedding)
    new = numbers(64, 8, 2)
    after, seen = FIRST, []
    while items := worker.pending(reembedding, after, 7):
        after = items[-1].id
        seen += items
        assert worker.stage(reembedding, {item.id: new[int(item.crop.split()[1]) % 64] for item in items})
    assert len(seen) == 26  # the killed process staged the others
    assert worker.switch(reembedding) == 0
    collection = gallery.collection(name)
    pipeline = collection.embedder, collection.fingerprint, collection.dimensions
    assert (*pipeline, collection.generation) == ("better", "f2", 8, 1)
    old = {face["token"]: face for face in WRITTEN[name]["faces"]}
    for face in faces_of(gallery, name):
        assert face["crop"] == old[face["token"]]["crop"]
        assert np.array_equal(face["vector"], new[int(face["crop"].split()[1]) % 64])
    (match,) = gallery.nearest_subjects(name, new[7][None], 1)[0]
    assert match.subject.key == "p2"
    assert match.similarity == pytest.approx(1, abs=1e-6)
    assert len(Feedback(gallery).of_subject(name, "p2")) == 1
    assert Searches(gallery).compare(name, "p2", new[200 % 64])[1]
    assert gallery.receipt(reembedding.token).faces == 1
    maintain(gallery)
    assert list(find_faults(gallery)) == []


def test_the_backup_is_restored_into_a_new_folder(tmp_path: Path) -> None:
    unpack("backup", tmp_path / "backup")
    result = restore(tmp_path / "new", tmp_path / "backup", clock=lambda: LATER, gap=lambda: 1000)
    assert not result.remembered
    assert (result.manifest.version, result.manifest.collections, result.manifest.faces) == (1, 5, 185)
    with closing(EmbeddedGallery(tmp_path / "new", key=OperatorKey(KEY), clock=lambda: LATER)) as gallery:
        assert gallery.subject("dropped", "someone").faces == 1
        for name in NAMES:
            # The backup precedes all erasures; the copy of the collection still has the same faces.
            wanted = sorted(WRITTEN[f"{name}-anew"]["faces"], key=by_crop)
            assert len(wanted) == 46
            assert_same_faces(sorted(faces_of(gallery, name), key=by_crop), wanted, but=("id", "token"))
        assert list(find_faults(gallery)) == []


def test_the_backup_is_restored_and_erasures_are_repeated(tmp_path: Path, folder: Path) -> None:
    unpack("backup", tmp_path / "backup")
    result = restore(folder, tmp_path / "backup", clock=lambda: LATER, gap=lambda: 1000)
    assert result.remembered
    assert (result.erased_collections, result.erased_subjects, result.erased_faces) == (1, 3, 21)
    with closing(EmbeddedGallery(folder, key=OperatorKey(KEY), clock=lambda: LATER)) as gallery:
        for name in NAMES:
            kept = [subject.key for subject in gallery.subjects(name)]
            assert sorted(kept) == ["brief", "nobody yet", "p0", "p1", "p2", "p3"]
            assert len(faces_of(gallery, name)) == 36
        with pytest.raises(NotFoundError):
            gallery.collection("dropped")
        heads = [LogHead(sequence, digest) for sequence, digest, _ in WRITTEN["entries"]]
        assert gallery.audit.verify(heads) is None
        assert list(find_faults(gallery)) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_parquet_file_is_imported(tmp_path: Path, name: str) -> None:
    path = Path(shutil.copy(GOLDEN / f"{name}.parquet", tmp_path))
    wanted = WRITTEN[f"{name}.parquet"]
    with closing(EmbeddedGallery(tmp_path / "new", key=OperatorKey(KEY), clock=lambda: LATER)) as gallery:
        result = import_collection(EmbeddedTransfer(gallery), path, key=OperatorKey(KEY))
        assert (result.collection, result.enrolled, result.present) == (name, len(wanted), 0)
        collection = WRITTEN[name]["collection"]
        assert {**fields(gallery.collection(name), collection), "id": collection["id"]} == collection
        assert_same_faces(sorted(faces_of(gallery, name), key=by_crop), sorted(wanted, key=by_crop), but=("id",))
        assert gallery.subject(name, "p0").metadata == {"level": 2, "in": True, "note": "ä"}
        assert import_collection(EmbeddedTransfer(gallery), path, key=OperatorKey(KEY)).present == len(wanted)
