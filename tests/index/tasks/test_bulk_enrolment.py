"""Bulk jobs: each item is enrolled once, also after a crash, and leaves no data behind when the job ends."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from index.embedded.admin.backup import back_up, restore
from index.embedded.gallery import EmbeddedGallery
from index.embedded.tasks import bulk_enrolment as module
from index.embedded.tasks.bulk_enrolment import KEEP_S, BulkEnrolmentWorker, JobQueue
from index.embedded.tasks.maintenance import Maintenance
from index.errors import ConflictError, NotFoundError
from index.protocol import LEASE_S
from index.types import Item, Job, NewFace, Outcome, ProcessedItem, Properties
from tests.index.people import Clock, folder_bytes, vectors

VECTORS = vectors(12)


@pytest.fixture
def jobs(gallery: EmbeddedGallery) -> JobQueue:
    return JobQueue(gallery)


@pytest.fixture
def worker(gallery: EmbeddedGallery) -> BulkEnrolmentWorker:
    return BulkEnrolmentWorker(gallery)


def item(number: int, subject: str = "", properties: Properties | None = None) -> Item:
    return Item(number, subject or f"p{number}", "vector", VECTORS[number].tobytes(), properties)


def submit(jobs: JobQueue, items: Sequence[Item | Outcome], collection: str = "doors") -> Job:
    job = jobs.begin(collection, {"max_faces": 1})
    jobs.append(job, items)
    return jobs.ready(job)


def results(items: Sequence[Item]) -> list[ProcessedItem]:
    return [
        ProcessedItem(item, Outcome(item.number, "enrolled"), [NewFace(item.subject, np.frombuffer(item.data, "<f4"))])
        for item in items
    ]


def work(worker: BulkEnrolmentWorker, job: Job) -> None:
    while items := worker.pending(job, 1):
        assert worker.enrol(job, results(items), "f1")
    worker.finish(job, "done")


def enrolled(gallery: EmbeddedGallery) -> dict[str, int]:
    return {subject.key: subject.faces for subject in gallery.subjects("doors")}


def claimed(worker: BulkEnrolmentWorker) -> Job:
    job = worker.claim()
    assert job is not None
    return job


def test_each_item_is_enrolled_and_has_an_outcome(
    gallery: EmbeddedGallery, jobs: JobQueue, worker: BulkEnrolmentWorker
) -> None:
    properties = Properties("Ada", {"floor": 3}, 2_000_000.0)
    refused = Outcome(2, "failed", {"problem": {"status": 400}})
    sent = submit(jobs, [item(0, "ada", properties), item(1, "ada"), refused])
    assert (sent.state, sent.settings, sent.collection) == ("queued", {"max_faces": 1}, "doors")
    assert jobs.counts(sent) == {"pending": 2, "failed": 1}
    job = claimed(worker)
    assert job.state == "running"
    work(worker, job)
    subject = gallery.subject("doors", "ada")
    assert (subject.name, subject.metadata, subject.expires_at) == ("Ada", {"floor": 3}, 2_000_000.0)
    faces = [face.token for face in gallery.faces("doors", "ada")]
    assert jobs.outcomes(job, -1, 10) == [
        Outcome(0, "enrolled", {"faces": faces[:1]}),
        Outcome(1, "enrolled", {"faces": faces[1:]}),
        refused,
    ]
    assert jobs.outcomes(job, 0, 1) == [Outcome(1, "enrolled", {"faces": faces[1:]})]
    assert jobs.counts(job) == {"enrolled": 2, "failed": 1}
    finished = jobs.job("doors", job.token)
    assert (finished.state, finished.finished_at) == ("done", 1000.0)
    assert worker.claim() is None
    (match,) = gallery.nearest_subjects("doors", VECTORS[1:2], 1)[0]
    assert (match.subject.key, match.face) == ("ada", faces[1])


def test_an_item_without_a_face_creates_no_subject(
    gallery: EmbeddedGallery, jobs: JobQueue, worker: BulkEnrolmentWorker
) -> None:
    submit(jobs, [item(0, properties=Properties("Ada"))])
    job = claimed(worker)
    (pending,) = worker.pending(job, 1)
    assert worker.enrol(job, [ProcessedItem(pending, Outcome(0, "rejected", {"reasons": ["BLURRED"]}))], "f1")
    assert jobs.outcomes(job, -1, 1) == [Outcome(0, "rejected", {"reasons": ["BLURRED"], "faces": []})]
    assert enrolled(gallery) == {}


def test_a_batch_has_items_of_one_kind_and_a_limited_size(
    gallery: EmbeddedGallery, jobs: JobQueue, worker: BulkEnrolmentWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = [Item(number, "p", "picture", bytes(100)) for number in range(4, 9)]
    submit(jobs, [item(0), item(1), *pictures, item(9)])
    job = claimed(worker)

    def numbers(count: int) -> list[int]:
        batch = worker.pending(job, 3)
        assert worker.enrol(job, [ProcessedItem(item, Outcome(item.number, "failed")) for item in batch[:count]], "f1")
        return [item.number for item in batch]

    assert numbers(2) == [0, 1]
    assert numbers(1) == [4, 5, 6]
    monkeypatch.setattr(module, "MAX_BYTES", 150)
    assert numbers(2) == [5, 6]
    monkeypatch.setattr(module, "MAX_ROWS", 1)
    assert numbers(2) == [7, 8]
    assert numbers(1) == [9]
    assert numbers(1) == []


def test_another_worker_continues_after_a_crash_and_enrols_no_face_twice(
    gallery: EmbeddedGallery, jobs: JobQueue, worker: BulkEnrolmentWorker, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_ROWS", 4)
    submit(jobs, [item(number) for number in range(10)])
    job = claimed(worker)
    assert worker.enrol(job, results(worker.pending(job, 1)), "f1")
    under_way = results(worker.pending(job, 1))
    other = BulkEnrolmentWorker(gallery)
    assert other.claim() is None
    clock.now += LEASE_S - 1
    assert worker.keep(job)
    clock.now += LEASE_S - 1
    assert other.claim() is None
    clock.now += 2
    theirs = claimed(other)
    assert theirs.token == job.token
    assert not worker.enrol(job, under_way, "f1")
    assert not worker.keep(job)
    worker.finish(job, "failed")
    worker.release(job)
    assert other.enrol(theirs, under_way, "f1")
    assert other.enrol(theirs, under_way, "f1")  # a repeated call
    work(other, theirs)
    assert enrolled(gallery) == {f"p{number}": 1 for number in range(10)}
    assert jobs.job("doors", job.token).state == "done"


def test_postponed_jobs_are_not_claimed_and_released_ones_are(jobs: JobQueue, worker: BulkEnrolmentWorker) -> None:
    first, second = (submit(jobs, [item(number)]) for number in range(2))
    job = worker.claim({first.id})
    assert job is not None
    assert job.token == second.token
    assert worker.claim({first.id, second.id}) is None
    assert claimed(worker).token == first.token
    worker.release(job)
    assert claimed(BulkEnrolmentWorker(worker.gallery)).token == second.token


def test_incomplete_uploads_are_deleted(
    gallery: EmbeddedGallery, jobs: JobQueue, worker: BulkEnrolmentWorker, clock: Clock
) -> None:
    broken, dead = jobs.begin("doors", {}), jobs.begin("doors", {})
    jobs.append(broken, [item(0)])
    jobs.append(dead, [item(1)])
    assert worker.claim() is None  # the upload continues
    jobs.abandon(broken)
    with pytest.raises(NotFoundError):
        jobs.append(broken, [item(2)])
    with pytest.raises(NotFoundError):
        jobs.ready(broken)
    clock.now += LEASE_S
    later = submit(jobs, [item(3)])
    assert claimed(worker).token == later.token
    assert [job.token for job in jobs.list_jobs("doors", 0, 10)] == [later.token]
    assert gallery.ledger.reader().execute("SELECT count(*) FROM job_items").get == 1


def test_a_cancelled_job_stops_enrolling(
    gallery: EmbeddedGallery, jobs: JobQueue, worker: BulkEnrolmentWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_ROWS", 1)
    submit(jobs, [item(0), item(1)])
    job = claimed(worker)
    assert worker.enrol(job, results(worker.pending(job, 1)), "f1")
    under_way = results(worker.pending(job, 1))
    assert jobs.cancel("doors", job.token).state == "cancelled"
    assert not worker.enrol(job, under_way, "f1")
    worker.finish(job, "done")
    again = jobs.cancel("doors", job.token)
    assert (again.state, jobs.counts(again)) == ("cancelled", {"enrolled": 1, "cancelled": 1})
    assert enrolled(gallery) == {"p0": 1}
    assert worker.claim() is None


def test_vectors_of_another_pipeline_are_refused(
    gallery: EmbeddedGallery, jobs: JobQueue, worker: BulkEnrolmentWorker
) -> None:
    submit(jobs, [item(0)])
    job = claimed(worker)
    with pytest.raises(ConflictError, match="f1"):
        worker.enrol(job, results(worker.pending(job, 1)), "f2")
    worker.finish(job, "failed", "another pipeline")
    failed = jobs.job("doors", job.token)
    assert (failed.state, failed.problem, jobs.counts(failed)) == ("failed", "another pipeline", {"failed": 1})


def test_jobs_belong_to_their_collection(gallery: EmbeddedGallery, jobs: JobQueue, worker: BulkEnrolmentWorker) -> None:
    gallery.create("trains", "face-embedder", "f1", 4)
    first, second = submit(jobs, [item(0)]), submit(jobs, [item(0)])
    other = submit(jobs, [item(0)], "trains")
    assert [job.token for job in jobs.list_jobs("doors", 0, 10)] == [first.token, second.token]
    assert [job.token for job in jobs.list_jobs("doors", first.id, 10)] == [second.token]
    for use in (
        partial(jobs.job, "doors", other.token),
        partial(jobs.cancel, "doors", other.token),
        partial(jobs.job, "x", first.token),
        partial(jobs.list_jobs, "x", 0, 1),
        partial(jobs.begin, "x", {}),
    ):
        with pytest.raises(NotFoundError):
            use()
    gallery.drop("trains")
    assert [claimed(worker).token, claimed(worker).token] == [first.token] * 2  # the worker keeps its lease
    leases = gallery.ledger.reader().execute("SELECT count(*) FROM leases WHERE name LIKE 'job:%'").get
    assert leases == 2


def test_outcomes_are_kept_for_a_week(jobs: JobQueue, worker: BulkEnrolmentWorker, clock: Clock) -> None:
    submit(jobs, [item(0)])
    job = claimed(worker)
    work(worker, job)
    clock.now += KEEP_S - 1
    assert worker.claim() is None
    assert jobs.counts(job) == {"enrolled": 1}
    clock.now += 1
    assert worker.claim() is None
    assert jobs.counts(job) == {}
    with pytest.raises(NotFoundError):
        jobs.job("doors", job.token)


SECRET = Properties("Ferdinandea Isabella Quartz", {"pass": "Quartz-7781"})


def test_a_subject_erased_meanwhile_is_not_enrolled_and_in_no_file(
    gallery: EmbeddedGallery, jobs: JobQueue, worker: BulkEnrolmentWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_ROWS", 1)
    gallery.create("trains", "face-embedder", "f1", 4)
    other = submit(jobs, [item(5, "ferdinandea")], "trains")
    submit(jobs, [item(0, "ferdinandea", SECRET), item(1, "ferdinandea", SECRET), item(2, "grace")])
    assert claimed(worker).token == other.token
    work(worker, other)
    job = claimed(worker)
    assert worker.enrol(job, results(worker.pending(job, 1)), "f1")
    under_way = results(worker.pending(job, 1))
    receipt = gallery.remove_subject("doors", "ferdinandea")
    assert worker.enrol(job, under_way, "f1")
    assert jobs.counts(job) == {"enrolled": 1, "erased": 1, "pending": 1}
    work(worker, job)
    assert enrolled(gallery) == {"grace": 1}
    assert gallery.subject("trains", "ferdinandea").faces == 1
    gallery.remove_subject("trains", "ferdinandea")
    Maintenance(gallery).run()
    assert gallery.receipt(receipt.token).erased_at is not None
    content = folder_bytes(gallery.files.parent)
    for secret in (b"ferdinandea", b"Ferdinandea", b"Quartz", *(VECTORS[n].tobytes() for n in (0, 1, 5))):
        assert secret not in content


def test_pending_items_of_a_subject_are_erased(
    gallery: EmbeddedGallery, jobs: JobQueue, worker: BulkEnrolmentWorker
) -> None:
    submit(jobs, [item(0, "ferdinandea", SECRET), item(1, "grace")])
    receipt = jobs.remove_subject("doors", "ferdinandea")
    assert (receipt.subjects, receipt.faces) == (1, 0)
    for key in ("ferdinandea", "nobody"):
        with pytest.raises(NotFoundError):
            jobs.remove_subject("doors", key)
    job = claimed(worker)
    work(worker, job)
    assert jobs.counts(job) == {"enrolled": 1, "erased": 1}
    assert enrolled(gallery) == {"grace": 1}
    assert jobs.remove_subject("doors", "grace").faces == 1
    assert enrolled(gallery) == {}
    Maintenance(gallery).run()
    assert gallery.receipt(receipt.token).erased_at is not None
    content = folder_bytes(gallery.files.parent)
    for secret in (b"ferdinandea", b"Quartz", VECTORS[0].tobytes()[:16], VECTORS[1].tobytes()[:16]):
        assert secret not in content


@pytest.mark.parametrize("how", ["done", "cancelled", "abandoned", "dropped"])
def test_an_ended_job_leaves_no_item_in_any_file(
    gallery: EmbeddedGallery, jobs: JobQueue, worker: BulkEnrolmentWorker, how: str
) -> None:
    sent = jobs.begin("doors", {})
    picture = Item(0, "ferdinandea", "picture", VECTORS[0].tobytes() * 5000, SECRET)
    jobs.append(sent, [picture])
    if how == "abandoned":
        jobs.abandon(sent)
    else:
        jobs.ready(sent)
        job = claimed(worker)
        if how == "done":
            assert worker.enrol(job, [ProcessedItem(picture, Outcome(0, "rejected"))], "f1")
            worker.finish(job, "done")
        elif how == "cancelled":
            jobs.cancel("doors", job.token)
        else:
            gallery.drop("doors")
    assert gallery.ledger.scrub()
    content = folder_bytes(gallery.files.parent)
    for secret in (b"ferdinandea", b"Quartz", VECTORS[0].tobytes()):
        assert secret not in content


def test_pending_jobs_of_a_restored_ledger_fail(
    gallery: EmbeddedGallery, jobs: JobQueue, worker: BulkEnrolmentWorker, tmp_path: Path
) -> None:
    job = submit(jobs, [item(0), item(1)])
    back_up(gallery, tmp_path / "backup")
    work(worker, claimed(worker))
    gallery.remove_subject("doors", "p0")
    gallery.close()
    restore(tmp_path / "gallery", tmp_path / "backup")
    with closing(EmbeddedGallery(tmp_path / "gallery")) as restored:
        jobs = JobQueue(restored)
        assert BulkEnrolmentWorker(restored).claim() is None
        failed = jobs.job("doors", job.token)
        assert (failed.state, jobs.counts(failed)) == ("failed", {"failed": 2})
        assert "restored" in (failed.problem or "")
        assert enrolled(restored) == {}
        assert restored.ledger.scrub()
        assert VECTORS[0].tobytes() not in folder_bytes(tmp_path / "gallery")


@pytest.mark.parametrize(
    ("others", "state"),
    [
        ([], "failed"),
        ([Outcome(1, "failed")], "failed"),
        ([Outcome(1, "rejected")], "done"),
        ([item(1)], "done"),
    ],
)
def test_a_job_fails_if_all_its_items_failed(
    jobs: JobQueue, worker: BulkEnrolmentWorker, others: list[Item | Outcome], state: str
) -> None:
    job = submit(jobs, [Outcome(0, "failed", {"problem": {"status": 400}}), *others])
    work(worker, claimed(worker))
    finished = jobs.job("doors", job.token)
    assert (finished.state, finished.problem is None) == (state, state == "done")
