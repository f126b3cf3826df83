"""Bulk jobs of every engine: each item is enrolled once, also after a crash."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest

from index.embedded.curation.curation import Curation as EmbeddedCuration
from index.embedded.gallery import EmbeddedGallery
from index.embedded.tasks import bulk_enrolment
from index.embedded.tasks.bulk_enrolment import BulkEnrolmentWorker
from index.embedded.tasks.bulk_enrolment import JobQueue as EmbeddedJobQueue
from index.errors import ConflictError, InvalidError, NotFoundError
from index.postgres import jobs as postgres_jobs
from index.postgres.curation.curation import PostgresCuration
from index.postgres.gallery import PostgresGallery
from index.postgres.jobs import PostgresJobQueue, PostgresJobWorker
from index.postgres.store.database import Database
from index.protocol import LEASE_S, Curation, Gallery, JobQueue, JobWorker
from index.protocol.jobs import KEEP_S
from index.types import Item, NewFace, Outcome, ProcessedItem, Properties
from tests.index.bulk_jobs import VECTORS, claimed, enrolled, item, results, submit, work
from tests.index.people import Clock


@dataclass
class Engine:
    """`limits`: the module with the limits of a batch. `stored_items`: return the number of items of all jobs."""

    gallery: Gallery
    curation: Curation
    jobs: JobQueue
    new_worker: Callable[[], JobWorker]
    limits: ModuleType
    stored_items: Callable[[], object]


def embedded(folder: Path, clock: Clock) -> Iterator[Engine]:
    with closing(EmbeddedGallery(folder, clock=clock)) as gallery:
        reader = gallery.ledger.reader()
        yield Engine(
            gallery,
            EmbeddedCuration(gallery),
            EmbeddedJobQueue(gallery),
            partial(BulkEnrolmentWorker, gallery),
            bulk_enrolment,
            lambda: reader.execute("SELECT count(*) FROM job_items").get,
        )


def postgres(url: str, clock: Clock) -> Iterator[Engine]:
    with closing(Database(url, clock)) as database:

        def stored_items() -> object:
            with database.snapshot() as db:
                return db.execute("SELECT count(*) FROM job_items").fetchall()[0][0]

        gallery = PostgresGallery(database)
        jobs, new_worker = PostgresJobQueue(gallery), partial(PostgresJobWorker, gallery)
        yield Engine(gallery, PostgresCuration(gallery), jobs, new_worker, postgres_jobs, stored_items)


@pytest.fixture(params=["embedded", "postgres"])
def engine(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Iterator[Engine]:
    """An engine with the collection `doors` of 4 dimensions."""
    name = request.param
    opened = (
        embedded(tmp_path, clock) if name == "embedded" else postgres(request.getfixturevalue("database_url"), clock)
    )
    for engine in opened:
        engine.gallery.create("doors", "face-embedder", "f1", 4)
        yield engine


@pytest.fixture
def gallery(engine: Engine) -> Gallery:
    return engine.gallery


@pytest.fixture
def jobs(engine: Engine) -> JobQueue:
    return engine.jobs


@pytest.fixture
def worker(engine: Engine) -> JobWorker:
    return engine.new_worker()


def test_each_item_is_enrolled_and_has_an_outcome(gallery: Gallery, jobs: JobQueue, worker: JobWorker) -> None:
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


def test_an_item_without_a_face_creates_no_subject(gallery: Gallery, jobs: JobQueue, worker: JobWorker) -> None:
    submit(jobs, [item(0, properties=Properties("Ada"))])
    job = claimed(worker)
    (pending,) = worker.pending(job, 1)
    assert worker.enrol(job, [ProcessedItem(pending, Outcome(0, "rejected", {"reasons": ["BLURRED"]}))], "f1")
    assert jobs.outcomes(job, -1, 1) == [Outcome(0, "rejected", {"reasons": ["BLURRED"], "faces": []})]
    assert enrolled(gallery) == {}


def test_a_batch_has_items_of_one_kind_and_a_limited_size(
    engine: Engine, gallery: Gallery, jobs: JobQueue, worker: JobWorker, monkeypatch: pytest.MonkeyPatch
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
    monkeypatch.setattr(engine.limits, "MAX_BYTES", 150)
    assert numbers(2) == [5, 6]
    monkeypatch.setattr(engine.limits, "MAX_ROWS", 1)
    assert numbers(2) == [7, 8]
    assert numbers(1) == [9]
    assert numbers(1) == []


def test_another_worker_continues_after_a_crash_and_enrols_no_face_twice(
    engine: Engine, gallery: Gallery, jobs: JobQueue, worker: JobWorker, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.limits, "MAX_ROWS", 4)
    submit(jobs, [item(number) for number in range(10)])
    job = claimed(worker)
    assert worker.enrol(job, results(worker.pending(job, 1)), "f1")
    under_way = results(worker.pending(job, 1))
    other = engine.new_worker()
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


def test_postponed_jobs_are_not_claimed_and_released_ones_are(
    engine: Engine, jobs: JobQueue, worker: JobWorker
) -> None:
    first, second = (submit(jobs, [item(number)]) for number in range(2))
    job = worker.claim({first.id})
    assert job is not None
    assert job.token == second.token
    assert worker.claim({first.id, second.id}) is None
    assert claimed(worker).token == first.token
    worker.release(job)
    assert claimed(engine.new_worker()).token == second.token


def test_incomplete_uploads_are_deleted(
    engine: Engine, gallery: Gallery, jobs: JobQueue, worker: JobWorker, clock: Clock
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
    assert engine.stored_items() == 1


def test_a_cancelled_job_stops_enrolling(
    engine: Engine, gallery: Gallery, jobs: JobQueue, worker: JobWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.limits, "MAX_ROWS", 1)
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


def test_vectors_of_another_pipeline_are_refused(gallery: Gallery, jobs: JobQueue, worker: JobWorker) -> None:
    submit(jobs, [item(0)])
    job = claimed(worker)
    with pytest.raises(ConflictError, match="f1"):
        worker.enrol(job, results(worker.pending(job, 1)), "f2")
    worker.finish(job, "failed", "another pipeline")
    failed = jobs.job("doors", job.token)
    assert (failed.state, failed.problem, jobs.counts(failed)) == ("failed", "another pipeline", {"failed": 1})


def test_jobs_belong_to_their_collection(gallery: Gallery, jobs: JobQueue, worker: JobWorker) -> None:
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


def test_outcomes_are_kept_for_a_week(jobs: JobQueue, worker: JobWorker, clock: Clock) -> None:
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


def test_pending_items_of_a_subject_are_erased(gallery: Gallery, jobs: JobQueue, worker: JobWorker) -> None:
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
    jobs: JobQueue, worker: JobWorker, others: list[Item | Outcome], state: str
) -> None:
    job = submit(jobs, [Outcome(0, "failed", {"problem": {"status": 400}}), *others])
    work(worker, claimed(worker))
    finished = jobs.job("doors", job.token)
    assert (finished.state, finished.problem is None) == (state, state == "done")


def test_ids_are_normalised_and_invalid_items_and_actors_refused(
    gallery: Gallery, jobs: JobQueue, worker: JobWorker
) -> None:
    with pytest.raises(InvalidError):
        jobs.begin("doors", {}, actor="a person's name")
    job = jobs.begin("doors", {}, actor="k1")
    with pytest.raises(InvalidError):
        jobs.append(job, [item(0, "a/b")])
    jobs.append(job, [item(0, "jose\u0301"), item(1, "jos\u00e9")])
    assert jobs.ready(job).actor == "k1"
    work(worker, claimed(worker))
    assert enrolled(gallery) == {"jos\u00e9": 2}


def test_a_new_subject_begins_where_the_old_one_has_expired(
    gallery: Gallery, jobs: JobQueue, worker: JobWorker, clock: Clock
) -> None:
    gallery.put_subject("doors", "p0", name="Ada", expires_at=clock.now + 1)
    gallery.enrol("doors", [NewFace("p0", VECTORS[3])], "f1")
    submit(jobs, [item(0), item(1)])
    clock.now += 1
    work(worker, claimed(worker))
    subject = gallery.subject("doors", "p0")
    assert (subject.name, subject.faces, subject.expires_at) == (None, 1, None)


def test_an_erased_subject_leaves_no_pending_item(
    engine: Engine, gallery: Gallery, jobs: JobQueue, worker: JobWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.limits, "MAX_ROWS", 1)
    submit(jobs, [item(0, "ferdinandea", SECRET), item(1, "ferdinandea", SECRET), item(2, "grace")])
    job = claimed(worker)
    assert worker.enrol(job, results(worker.pending(job, 1)), "f1")
    under_way = results(worker.pending(job, 1))
    gallery.remove_subject("doors", "ferdinandea")
    assert worker.enrol(job, under_way, "f1")
    assert jobs.counts(job) == {"enrolled": 1, "erased": 1, "pending": 1}
    work(worker, job)
    assert enrolled(gallery) == {"grace": 1}


def test_a_job_of_a_dropped_collection_is_gone(gallery: Gallery, jobs: JobQueue, worker: JobWorker) -> None:
    sent = jobs.begin("doors", {})
    submit(jobs, [item(0)])
    job = claimed(worker)
    under_way = results(worker.pending(job, 1))
    gallery.drop("doors")
    gallery.create("doors", "face-embedder", "f1", 4)
    with pytest.raises(NotFoundError):
        jobs.append(sent, [item(1)])
    assert not worker.enrol(job, under_way, "f1")
    assert not worker.keep(job)
    assert worker.pending(job, 1) == []
    assert enrolled(gallery) == {}


def test_pending_items_of_an_absorbed_subject_create_it_again(
    engine: Engine, jobs: JobQueue, worker: JobWorker, gallery: Gallery
) -> None:
    gallery.enrol("doors", [NewFace("p0", VECTORS[0]), NewFace("p1", VECTORS[1])], "f1")
    submit(jobs, [item(2, "p1"), item(3, "p1")])
    job = worker.claim()
    assert job is not None
    merge = engine.curation.merge("doors", "p0", ["p1"])
    items = worker.pending(job, 8)
    assert len(items) == 2
    assert worker.enrol(job, results(items), "f1")
    assert {subject.key: subject.faces for subject in gallery.subjects("doors")} == {"p0": 2, "p1": 2}
    engine.curation.undo_merge("doors", merge.token)
    assert {subject.key: subject.faces for subject in gallery.subjects("doors")} == {"p0": 1, "p1": 3}
