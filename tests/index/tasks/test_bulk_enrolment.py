"""Bulk jobs in files: what an ended job or an erased subject leaves there, and restored backups.

What holds for every engine is in tests/index/contract/test_jobs.py.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from index.embedded.admin.backup import back_up, restore
from index.embedded.gallery import EmbeddedGallery
from index.embedded.tasks import bulk_enrolment as module
from index.embedded.tasks.bulk_enrolment import BulkEnrolmentWorker, JobQueue
from index.embedded.tasks.maintenance import Maintenance
from index.types import Item, Outcome, ProcessedItem, Properties
from tests.index.bulk_jobs import VECTORS, claimed, enrolled, item, results, submit, work
from tests.index.people import folder_bytes


@pytest.fixture
def jobs(gallery: EmbeddedGallery) -> JobQueue:
    return JobQueue(gallery)


@pytest.fixture
def worker(gallery: EmbeddedGallery) -> BulkEnrolmentWorker:
    return BulkEnrolmentWorker(gallery)


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


def test_erased_pending_items_are_in_no_file(
    gallery: EmbeddedGallery, jobs: JobQueue, worker: BulkEnrolmentWorker
) -> None:
    submit(jobs, [item(0, "ferdinandea", SECRET), item(1, "grace")])
    receipt = jobs.remove_subject("doors", "ferdinandea")
    work(worker, claimed(worker))
    assert jobs.remove_subject("doors", "grace").faces == 1
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


def test_the_jobs_of_a_dropped_collection_leave_no_lease(
    gallery: EmbeddedGallery, jobs: JobQueue, worker: BulkEnrolmentWorker
) -> None:
    gallery.create("trains", "face-embedder", "f1", 4)
    submit(jobs, [item(0)])
    submit(jobs, [item(0)], "trains")
    gallery.drop("trains")
    assert claimed(worker).collection == "doors"
    assert gallery.ledger.reader().execute("SELECT count(*) FROM leases WHERE name LIKE 'job:%'").get == 1
