"""Re-embedding while other transactions erase, search and build indexes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial

import pytest

from index.errors import NotFoundError, UnavailableError
from index.postgres import hnsw
from index.postgres import reembedding as module
from index.postgres.feedback import PostgresFeedback
from index.postgres.gallery import PostgresGallery
from index.postgres.reembedding import PostgresReembeddings, PostgresReembeddingWorker
from index.postgres.search import PostgresSearches, Search
from index.postgres.store import erasure_records, face_tables
from index.postgres.store.database import Connection, Database
from index.protocol import FIRST
from index.types import Face, Floats, Match, NewFace, Reembedding
from tests.index.people import Clock, vectors
from tests.index.postgres.test_erasure import maintain, where_found

OLD, NEW = vectors(10, 16, seed=1), vectors(10, 24, seed=2)


@pytest.fixture
def gallery(database: Database) -> PostgresGallery:
    gallery = PostgresGallery(database)
    gallery.create("doors", "face-embedder", "f1", 16)
    return gallery


@pytest.fixture
def faces(gallery: PostgresGallery) -> list[Face]:
    return gallery.enrol("doors", [NewFace(f"p{n}", OLD[n], crop=bytes([n])) for n in range(4)], "f1")


@pytest.fixture
def worker(gallery: PostgresGallery, faces: list[Face]) -> PostgresReembeddingWorker:
    return PostgresReembeddingWorker(gallery)


@pytest.fixture
def reembedding(gallery: PostgresGallery, worker: PostgresReembeddingWorker) -> Reembedding:
    reembedding = PostgresReembeddings(gallery).begin("doors", "better", "f2", 24).reembedding
    assert worker.claim(reembedding)
    return reembedding


def new_vectors(worker: PostgresReembeddingWorker, reembedding: Reembedding) -> dict[int, Floats]:
    return {item.id: NEW[item.crop[0]] for item in worker.pending(reembedding, FIRST, 99)}


def waits_for_a_lock(database: Database) -> Callable[[], bool]:
    """Return a function that returns whether a transaction waits for another one."""

    def waits() -> bool:
        with database.autocommit() as db:
            statement = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            row = db.execute(statement).fetchone()
        return row is not None and row[0] > 0

    return waits


def until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("nothing waits")


def test_an_erasure_finds_the_copy_that_is_made_at_the_same_time(
    database: Database, gallery: PostgresGallery, faces: list[Face],
    worker: PostgresReembeddingWorker, reembedding: Reembedding,
) -> None:  # fmt: skip
    copied, erase = threading.Event(), threading.Event()

    def stage(db: Connection) -> None:
        change = worker.stage.planned(reembedding, new_vectors(worker, reembedding))
        assert change.write(db)
        copied.set()
        assert erase.wait(10)

    staging = database.submit(stage)
    assert copied.wait(10)
    with ThreadPoolExecutor(1) as pool:
        erasing = pool.submit(gallery.remove_faces, "doors", [faces[0].token])
        until(waits_for_a_lock(database))
        erase.set()
        staging.result(10)
        assert erasing.result(10).faces == 1
    assert worker.switch(reembedding) == 0
    assert gallery.faces("doors", "p0") == []
    assert len(PostgresSearches(gallery).search("doors", NEW[:1], 9)[0]) == 3


def test_a_copy_does_not_revive_a_face_that_is_erased_at_the_same_time(
    database: Database, gallery: PostgresGallery, faces: list[Face],
    worker: PostgresReembeddingWorker, reembedding: Reembedding,
) -> None:  # fmt: skip
    erased, commit = threading.Event(), threading.Event()

    def erase(db: Connection) -> None:
        collection = gallery.collection("doors")
        erasure_records.remove_faces(db, collection, [faces[0].id], subjects=0, now=0.0)
        erased.set()
        assert commit.wait(10)

    pending = new_vectors(worker, reembedding)
    erasing = database.submit(erase)
    assert erased.wait(10)
    with ThreadPoolExecutor(1) as pool:
        staging: Future[bool] = pool.submit(worker.stage, reembedding, pending)
        until(waits_for_a_lock(database))
        commit.set()
        erasing.result(10)
        assert staging.result(10)
    assert PostgresReembeddings(gallery).progress("doors").done == 3
    assert worker.switch(reembedding) == 0
    assert len(PostgresSearches(gallery).search("doors", NEW[:1], 9)[0]) == 3


def test_a_switch_waits_for_searches_and_they_see_one_pipeline(
    database: Database, gallery: PostgresGallery, worker: PostgresReembeddingWorker, reembedding: Reembedding,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    worker.stage(reembedding, new_vectors(worker, reembedding))
    searching, search = threading.Event(), threading.Event()
    run = Search.run

    def wait_and_run(self: Search, query: Floats) -> list[Match]:
        searching.set()
        assert search.wait(10)
        return run(self, query)

    monkeypatch.setattr(Search, "run", wait_and_run)
    find = partial(PostgresSearches(gallery).search, "doors", OLD[2:3], 1)
    with ThreadPoolExecutor(2) as pool:
        before = pool.submit(find)
        assert searching.wait(10)
        switching = pool.submit(worker.switch, reembedding)
        until(waits_for_a_lock(database))
        search.set()
        ((match,),) = before.result(10)
        assert match.subject.key == "p2"
        assert match.similarity == pytest.approx(1)
        assert switching.result(10) == 0
    ((match,),) = PostgresSearches(gallery).search("doors", NEW[2:3], 1, fingerprint="f2")
    assert match.subject.key == "p2"
    assert match.similarity == pytest.approx(1)


def test_a_switch_is_given_up_if_it_waits_too_long(
    gallery: PostgresGallery, worker: PostgresReembeddingWorker, reembedding: Reembedding,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(module, "LOCK_TIMEOUT", "100ms")
    worker.stage(reembedding, new_vectors(worker, reembedding))
    with gallery.reading("doors"), pytest.raises(UnavailableError):
        worker.switch(reembedding)
    assert gallery.collection("doors").fingerprint == "f1"
    assert worker.switch(reembedding) == 0


def test_the_old_table_is_gone_and_the_new_one_has_its_name(
    database: Database, gallery: PostgresGallery, worker: PostgresReembeddingWorker, reembedding: Reembedding
) -> None:
    def tables() -> set[str]:
        statement = "SELECT relname, oid FROM pg_class WHERE relkind IN ('r', 'p') AND relname ~ '^(faces|reembedded)_'"
        with database.snapshot() as db:
            return {f"{name} {oid}" for name, oid in db.execute(statement)}

    before = tables()
    assert len(before) == 2 * (1 + face_tables.PARTITIONS)
    worker.stage(reembedding, new_vectors(worker, reembedding))
    assert worker.switch(reembedding) == 0
    after = tables()
    new = {row.replace("reembedded", "faces") for row in before if row.startswith("reembedded")}
    assert after == new
    PostgresReembeddings(gallery).begin("doors", "best", "f3", 8)  # whose names do not clash with the first one's
    assert len(tables()) == 2 * (1 + face_tables.PARTITIONS)
    gallery.drop("doors")
    assert tables() == set()
    with database.snapshot() as db:
        assert db.execute("SELECT count(*) FROM leases").fetchone() == (0,)


def test_old_vectors_are_in_no_file_once_the_receipt_is_erased(
    database: Database, gallery: PostgresGallery, worker: PostgresReembeddingWorker
) -> None:
    for n in (5, 6):
        PostgresFeedback(gallery).add("doors", "p0", OLD[n : n + 1], [bytes([n]) if n == 5 else None])
    maintain(gallery, exact_below=1)
    assert not gallery.usage("doors").exact
    old = [OLD[n].astype(form).tobytes() for n in (0, 1, 2, 3, 5, 6) for form in ("<f4", "<f2")]
    assert where_found(database, old)
    reembedding = PostgresReembeddings(gallery).begin("doors", "better", "f2", 24).reembedding
    assert worker.claim(reembedding)
    worker.stage(reembedding, new_vectors(worker, reembedding))
    assert worker.switch(reembedding) == 0
    assert gallery.receipt(reembedding.token).erased_at is None
    maintain(gallery, exact_below=1)
    assert gallery.receipt(reembedding.token).erased_at is not None
    assert where_found(database, old) == []
    for n in (0, 3, 5):
        assert where_found(database, [NEW[n].tobytes()])


def test_an_ended_reembedding_has_no_pending_crops(
    gallery: PostgresGallery, worker: PostgresReembeddingWorker, reembedding: Reembedding
) -> None:
    assert len(worker.pending(reembedding, FIRST, 99)) == 4
    PostgresReembeddings(gallery).cancel("doors")
    assert worker.pending(reembedding, FIRST, 99) == []
    PostgresReembeddings(gallery).begin("doors", "better", "f2", 24)
    assert worker.pending(reembedding, FIRST, 99) == []
    gallery.drop("doors")
    assert worker.pending(reembedding, FIRST, 99) == []
    assert worker.switch(reembedding) is None


def test_pending_crops_are_paged_in_the_order_of_their_ids(
    gallery: PostgresGallery, worker: PostgresReembeddingWorker, reembedding: Reembedding, faces: list[Face]
) -> None:
    rejections = PostgresFeedback(gallery).add("doors", "p0", OLD[5:8], [b"\x05", None, b"\x07"])
    with_crop = [rejections[0].id, rejections[2].id]
    ids, after = [], FIRST
    while page := worker.pending(reembedding, after, 1):
        ids.append(page[0].id)
        after = page[0].id
    assert ids == [*sorted(-number for number in with_crop), *(face.id for face in faces)]
    assert [item.id for item in worker.pending(reembedding, FIRST, 3)] == ids[:3]


def test_a_subject_that_is_erased_leaves_no_new_vector(
    database: Database, gallery: PostgresGallery, worker: PostgresReembeddingWorker, reembedding: Reembedding
) -> None:
    PostgresFeedback(gallery).add("doors", "p1", OLD[5:6], [b"\x05"])
    worker.stage(reembedding, new_vectors(worker, reembedding))
    gallery.remove_subject("doors", "p1")
    table = face_tables.reembedded(reembedding.collection_id).as_string()
    with database.snapshot() as db:
        for relation, count in ((table, 3), ("rejections", 0)):
            assert db.execute(f"SELECT count(*) FROM {relation}").fetchone() == (count,)


def test_a_lease_is_by_the_databases_time(database_url: str, faces: list[Face], reembedding: Reembedding) -> None:
    """A worker whose database has another clock than the holder's takes the lease when it ends by that clock."""
    with closing(Database(database_url, Clock(2000.0))) as database:
        assert PostgresReembeddingWorker(PostgresGallery(database)).waiting() == [reembedding]


def test_cancelling_what_does_not_exist(gallery: PostgresGallery) -> None:
    with pytest.raises(NotFoundError):
        PostgresReembeddings(gallery).cancel("doors")


def test_the_index_of_new_vectors_is_built_before_the_switch(gallery: PostgresGallery, faces: list[Face]) -> None:
    worker, reembeddings = PostgresReembeddingWorker(gallery, exact_below=4), PostgresReembeddings(gallery)
    hnsw.update(gallery.database, gallery.collection("doors"), 4)
    assert not gallery.usage("doors").exact
    for fingerprint, dimensions in (("f2", 24), ("f3", 16)):
        reembedding = reembeddings.begin("doors", "better", fingerprint, dimensions).reembedding
        assert worker.claim(reembedding)
        worker.prepare(reembedding)  # there are too few vectors yet
        new = NEW if dimensions == 24 else OLD
        crops = worker.pending(reembedding, FIRST, 99)
        assert worker.stage(reembedding, {item.id: new[item.crop[0]] for item in crops})
        for _ in range(2):
            worker.prepare(reembedding)
        assert worker.switch(reembedding) == 0
        assert not gallery.usage("doors").exact
        (matches,) = PostgresSearches(gallery).search("doors", new[2:3], 1)
        assert matches[0].subject.key == "p2"
    reembedding = reembeddings.begin("doors", "better", "f4", 24).reembedding
    reembeddings.cancel("doors")
    worker.prepare(reembedding)
    with gallery.database.autocommit() as db, hnsw._lock(db, reembedding.collection_id):
        worker.prepare(reembedding)  # another connection builds indexes of the collection
