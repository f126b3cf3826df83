"""Bulk jobs of several workers and processes on one database."""

from __future__ import annotations

import random
import sys
import threading
import time
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector
from subprocess import PIPE, Popen

import psycopg
import pytest

from index.errors import UnavailableError
from index.factory import open_storage
from index.postgres import jobs as module
from index.postgres.gallery import PostgresGallery
from index.postgres.jobs import PostgresJobQueue, PostgresJobWorker
from index.postgres.maintenance import PostgresMaintenance
from index.postgres.store import collection_records, job_records
from index.postgres.store.database import Connection, Database
from index.protocol import JobQueue, JobWorker
from index.types import Job, Properties
from tests.index.bulk_jobs import enrolled, item, results, submit

INTERFACES: tuple[type[JobQueue], type[JobWorker]] = (PostgresJobQueue, PostgresJobWorker)  # mypy checks them

PROJECT = Path(__file__).resolve().parents[3]
WORKER = """
import sys, time
import numpy as np
from index.postgres import jobs
from index.postgres.gallery import PostgresGallery
from index.postgres.store import job_records
from index.postgres.store.database import Database
from index.types import NewFace, Outcome, ProcessedItem
job_records.LEASE_S, jobs.MAX_ROWS = 1.0, 4
worker = jobs.PostgresJobWorker(PostgresGallery(Database(sys.argv[1])))
while (job := worker.claim()) is None:
    time.sleep(0.05)
print("claimed", flush=True)
while items := worker.pending(job, 1):
    worker.enrol(job, [ProcessedItem(item, Outcome(item.number, "enrolled"),
                 [NewFace(item.subject, np.frombuffer(item.data, "<f4"))]) for item in items], "f1")
    print(len(items), flush=True)
    sys.stdin.readline()
worker.finish(job, "done")
print("done", flush=True)
"""


@pytest.fixture
def gallery(database: Database) -> PostgresGallery:
    gallery = PostgresGallery(database)
    gallery.create("doors", "face-embedder", "f1", 4)
    return gallery


def waits_for_a_lock(gallery: PostgresGallery) -> bool:
    with gallery.database.snapshot() as db:
        return db.execute("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'").fetchone() is not None


def until_blocked(gallery: PostgresGallery) -> None:
    end = time.monotonic() + 10
    while not waits_for_a_lock(gallery):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_ids_increase_in_the_order_of_commits(gallery: PostgresGallery) -> None:
    """A job that is begun while another transaction has an id, but has not committed, waits for it."""
    jobs = PostgresJobQueue(gallery)
    begun, commit = threading.Event(), threading.Event()

    def slow(db: Connection) -> Job:
        job = job_records.insert(db, collection_records.find(db, "doors").id, {}, "somebody", 1000.0, None)
        begun.set()
        assert commit.wait(10)
        return job

    first = gallery.database.submit(slow)
    assert begun.wait(10)
    second = jobs.begin.planned("doors", {}).submit()
    until_blocked(gallery)
    gallery.create("trains", "face-embedder", "f1", 4)
    other = jobs.begin("trains", {})  # of another collection: waits for nothing
    assert jobs.list_jobs("doors", 0, 10) == []
    commit.set()
    ids = [first.result(10).id, second.result(10).id]
    assert ids == sorted(ids)
    assert [job.id for job in jobs.list_jobs("doors", 0, 10)] == ids
    assert [job.id for job in jobs.list_jobs("trains", 0, 10)] == [other.id]


def test_a_job_that_another_worker_is_taking_is_skipped(gallery: PostgresGallery) -> None:
    first, second = submit(PostgresJobQueue(gallery), [item(0)]), submit(PostgresJobQueue(gallery), [item(1)])
    one, other = PostgresJobWorker(gallery), PostgresJobWorker(gallery)
    taken, commit = threading.Event(), threading.Event()

    def slow(db: Connection) -> None:
        assert job_records.take_oldest(db, [first.id, second.id], one.holder, 1000.0) == first
        taken.set()
        assert commit.wait(10)

    future = gallery.database.submit(slow)
    assert taken.wait(10)
    assert other.claim({second.id}) is None
    claimed = other.claim()
    assert claimed is not None
    assert claimed.token == second.token
    commit.set()
    future.result(10)


def test_the_storage_of_a_database_has_jobs(database_url: str) -> None:
    with closing(open_storage(Path("unused"), database=database_url)) as storage:
        storage.gallery.create("doors", "face-embedder", "f1", 4)
        job = storage.jobs.ready(storage.jobs.begin("doors", {}))
        assert storage.job_worker.claim() == replace(job, state="running")
    assert not Path("unused").exists()


def test_many_workers_enrol_each_item_once(gallery: PostgresGallery, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also workers that often lose their leases, because these are shorter than the work takes."""
    monkeypatch.setattr(job_records, "LEASE_S", 0.02)
    monkeypatch.setattr(module, "MAX_ROWS", 8)
    job = submit(PostgresJobQueue(gallery), [item(number, f"p{number % 5}", Properties("Ada")) for number in range(40)])

    chance = random.Random(1)

    def work() -> None:
        worker = PostgresJobWorker(gallery)
        while PostgresJobQueue(gallery).counts(job).get("pending"):
            if claimed := worker.claim():
                items = worker.pending(claimed, 1)
                time.sleep(chance.choice((0, 0, 0.03)))
                worker.enrol(claimed, results(items), "f1")

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert enrolled(gallery) == {f"p{number}": 8 for number in range(5)}
    assert PostgresJobQueue(gallery).counts(job) == {"enrolled": 40}


def test_an_erasure_waits_for_an_enrolment_of_the_subjects_items(gallery: PostgresGallery) -> None:
    """It then erases the subject that did not exist when it began."""
    job = submit(PostgresJobQueue(gallery), [item(0)])
    worker = PostgresJobWorker(gallery)
    assert worker.claim() is not None
    under_way = results(worker.pending(job, 1))
    enrolling, commit = threading.Event(), threading.Event()

    def hold(done: bool) -> bool:
        enrolling.set()
        assert commit.wait(10)
        return done

    enrolment = worker.enrol.planned(job, under_way, "f1").then(hold).submit()
    assert enrolling.wait(10)
    erasure = PostgresJobQueue(gallery).remove_subject.planned("doors", "p0").submit()
    until_blocked(gallery)
    commit.set()
    assert enrolment.result(10)
    assert erasure.result(10).faces == 1
    assert enrolled(gallery) == {}
    assert PostgresJobQueue(gallery).counts(job) == {"enrolled": 1}


def test_an_enrolment_whose_connection_is_lost_is_undone_and_can_be_repeated(gallery: PostgresGallery) -> None:
    job = submit(PostgresJobQueue(gallery), [item(0), item(1)])
    worker = PostgresJobWorker(gallery)
    assert worker.claim() is not None
    under_way = results(worker.pending(job, 1))

    def lose(done: bool) -> bool:
        with gallery.database.snapshot() as db:
            idle = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE state = 'idle in transaction'"
            db.execute(idle + " AND datname = current_database()")
        return done

    with pytest.raises(UnavailableError):
        worker.enrol.planned(job, under_way, "f1").then(lose).submit().result(10)
    assert enrolled(gallery) == {}
    assert PostgresJobQueue(gallery).counts(job) == {"pending": 2}
    assert worker.enrol(job, under_way, "f1")
    assert enrolled(gallery) == {"p0": 1, "p1": 1}


def test_the_job_of_a_killed_process_is_taken_over(database_url: str) -> None:
    """By another process once the lease has ended: every item is enrolled once."""
    with closing(Database(database_url)) as database, ExitStack() as stack, DefaultSelector() as selector:
        gallery = PostgresGallery(database)
        gallery.create("doors", "face-embedder", "f1", 4)
        job = submit(PostgresJobQueue(gallery), [item(number) for number in range(12)])
        command = [sys.executable, "-c", WORKER, database_url]
        processes = [
            stack.enter_context(Popen(command, stdin=PIPE, stdout=PIPE, text=True, cwd=PROJECT)) for _ in range(2)
        ]
        for process in processes:
            stack.callback(process.kill)
            selector.register(process.stdout or 0, EVENT_READ, process)
        (ready, _), *others = selector.select(60)
        assert others == []
        first = ready.data
        (second,) = (process for process in processes if process is not first)
        assert [first.stdout.readline() for _ in range(2)] == ["claimed\n", "4\n"]
        first.kill()
        killed_at = time.monotonic()
        assert second.stdout is not None
        output, _ = second.communicate("\n\n", timeout=60)
        assert output == "claimed\n4\n4\ndone\n"
        assert time.monotonic() - killed_at > 0.5  # not before the lease ended
        assert enrolled(gallery) == {f"p{number}": 1 for number in range(12)}
        assert PostgresJobQueue(gallery).job("doors", job.token).state == "done"


def end_job(gallery: PostgresGallery, job: Job, end: str) -> None:
    """End a job that was received, or erase the subjects of its first items."""
    jobs, worker = PostgresJobQueue(gallery), PostgresJobWorker(gallery)
    if end == "abandoned":
        jobs.abandon(job)
    elif end == "dropped":
        gallery.drop("doors")
    elif end == "cancelled":
        jobs.cancel("doors", job.token)
    elif end == "erased":
        for number in range(5):
            jobs.remove_subject("doors", f"p{number}")
    else:
        assert worker.claim() is not None
        assert worker.enrol(job, results(worker.pending(job, 1)), "f1")
        worker.finish(job, "done")


@pytest.mark.parametrize("end", ["enrolled", "cancelled", "erased", "abandoned", "dropped"])
def test_the_keys_of_ended_items_are_in_no_page(gallery: PostgresGallery, database_url: str, end: str) -> None:
    """The data of an item is encrypted. After maintenance, the key is not in the file of the table any more."""
    jobs = PostgresJobQueue(gallery)
    with psycopg.connect(database_url, autocommit=True) as connection:

        def pages() -> bytes:
            row = connection.execute("SELECT current_setting('data_directory'), pg_relation_filepath('job_items')")
            folder, path = row.fetchall()[0]
            connection.execute("CHECKPOINT")
            return Path(folder, path).read_bytes()

        job = jobs.begin("doors", {})
        jobs.append(job, [item(number) for number in range(40)])
        if end != "abandoned":
            jobs.ready(job)
        rows = connection.execute("SELECT seal FROM job_items WHERE number < %s", (5 if end == "erased" else 40,))
        keys = [row[0] for row in rows]
        assert all(key in pages() for key in keys)
        end_job(gallery, job, end)
        maintenance = PostgresMaintenance(gallery)
        for _ in range(3):
            maintenance.run()
        maintenance.release()
        assert not any(key in pages() for key in keys)
