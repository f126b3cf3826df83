"""The plans of a search: which faces are compared, and whether PostgreSQL uses the approximate indexes."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import psycopg
import pytest
from psycopg import sql

from index.errors import ConflictError, NotFoundError
from index.postgres import hnsw, search
from index.postgres.feedback import PostgresFeedback
from index.postgres.gallery import PostgresGallery
from index.postgres.search import PostgresSearches, Search
from index.postgres.store import face_tables
from index.postgres.store.database import Connection, Database
from index.types import Floats, NewFace, Where
from tests.index.people import Clock, vectors

PEOPLE, EACH, D = 60, 4, 8
FACES = vectors(PEOPLE * EACH, D)


@pytest.fixture
def gallery(database: Database) -> PostgresGallery:
    """The collection `doors`: face n is of the subject n // EACH."""
    gallery = PostgresGallery(database)
    gallery.create("doors", "face-embedder", "f1", D)
    gallery.enrol("doors", [NewFace(f"p{n // EACH:02}", vector) for n, vector in enumerate(FACES)], "f1")
    for n in range(PEOPLE):
        gallery.put_subject("doors", f"p{n:02}", metadata={"half": n % 2, "floor": n // 6})
    return gallery


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The attempts of all searches: `index`, `near` (the nearest of all faces), `all` or `chosen`."""
    attempts: list[str] = []
    statement = Search._statement

    def record(self: Search, candidates: sql.Composed) -> sql.Composed:
        text = candidates.as_string()
        is_index, is_near, is_all = "halfvec" in text, "AS nearest" in text, "OFFSET 0" in text
        attempts.append("index" if is_index else "near" if is_near else "all" if is_all else "chosen")
        return statement(self, candidates)

    monkeypatch.setattr(Search, "_statement", record)
    return attempts


def index(gallery: PostgresGallery, exact_below: int = 16) -> None:
    hnsw.update(gallery.database, gallery.collection("doors"), exact_below)


def expected(query: Floats, k: int, mean: bool, where: Where) -> list[str]:
    similarities = (FACES.astype(np.float64) @ query).reshape(PEOPLE, EACH)
    values = similarities.mean(axis=1) if mean else similarities.max(axis=1)
    order = [
        n
        for n in np.argsort(-values)
        if n % 2 in where.get("half", (0, 1)) and n // 6 in where.get("floor", range(PEOPLE))
    ]
    return [f"p{n:02}" for n in order[:k]]


def keys(
    gallery: PostgresGallery, query: Floats, k: int, *, mean: bool = False, where: Where | None = None
) -> list[str]:
    fusion = "mean" if mean else "best"
    (matches,) = PostgresSearches(gallery).search("doors", query[None], k, fusion=fusion, where=where)  # type: ignore[arg-type]
    return [match.subject.key for match in matches]


def test_plans_without_an_index(gallery: PostgresGallery, plans: list[str]) -> None:
    query = vectors(1, D, seed=8)[0]
    for mean, where, plan in (
        (False, {}, ["near"]),
        (True, {}, ["all"]),
        (False, {"floor": [3]}, ["chosen"]),
        (True, {"floor": [3]}, ["chosen"]),
        (False, {"half": [1]}, ["near"]),
        (True, {"half": [1]}, ["all"]),
        (False, {"half": [1], "floor": [3, 4]}, ["chosen"]),
    ):
        assert keys(gallery, query, 3, mean=mean, where=where) == expected(query, 3, mean, where)
        assert plans == plan
        plans.clear()


def test_plans_with_an_index(gallery: PostgresGallery, plans: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    index(gallery)
    query = vectors(1, D, seed=8)[0]
    for mean, where, compared, plan in (
        (False, {}, 100, "index"),
        (True, {}, 100, "index"),
        (False, {"half": [1]}, 30, "chosen"),
        (False, {"half": [1]}, 29, "index"),
        (True, {"half": [1]}, 29, "index"),
    ):
        monkeypatch.setattr(search, "COMPARED_SUBJECTS", compared)
        # An index may miss the highest mean, unless all subjects are wanted.
        k = len(expected(query, PEOPLE, mean, where)) if mean else 3
        assert keys(gallery, query, k, mean=mean, where=where) == expected(query, k, mean, where)
        assert set(plans) == {plan}
        plans.clear()


def test_a_search_continues_until_enough_subjects_remain(
    gallery: PostgresGallery, plans: list[str], monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    """Nearest are one subject with many faces, one that feedback rules out, and some that have expired."""
    query = vectors(1, D, seed=8)[0]
    order = expected(query, PEOPLE, False, {})
    near = np.asarray(query + 0.01 * vectors(60, D, seed=9), np.float32)
    gallery.enrol("doors", [NewFace(order[0], vector) for vector in near], "f1")
    PostgresFeedback(gallery).add("doors", order[1], query[None])
    for key in order[2:30]:
        gallery.put_subject("doors", key, expires_at=clock.now + 1)
    clock.now += 1
    right = [order[0], *order[30:]]
    assert keys(gallery, query, 3) == right[:3]
    assert plans == ["near", "all"]
    plans.clear()
    assert keys(gallery, query, 31) == right
    assert plans == ["near", "all"]
    plans.clear()
    index(gallery)
    monkeypatch.setattr(search, "EF_SEARCH", 10)  # so that the scan of a partition is continued
    assert keys(gallery, query, 3) == right[:3]
    assert plans == ["index", "index", "index"]
    plans.clear()
    monkeypatch.setattr(search, "MAX_SHORTLIST", 60)
    assert keys(gallery, query, 3) == right[:3]
    assert plans == ["index", "index", "all"]
    plans.clear()
    monkeypatch.setattr(search, "COMPARED_SUBJECTS", 1)
    where: Where = {"half": [0, 1]}
    remaining = [key for key in right if key in order[30:] or key == order[0]]
    assert keys(gallery, query, 3, where=where) == remaining[:3]
    assert plans == ["index", "index", "chosen"]


def test_postgresql_uses_the_index_of_every_partition(gallery: PostgresGallery, database: Database) -> None:
    index(gallery)
    collection = gallery.collection("doors")
    with database.snapshot() as db:
        assert search.begin(db, collection) == (PEOPLE, True)
        planned = Search(db, collection, 5, "best", None, True, False, PEOPLE, 0.0)
        candidates, count = next(planned._attempts())
        statement = sql.SQL("EXPLAIN ") + planned._statement(candidates)
        plan = "\n".join(row[0] for row in db.execute(statement, planned._values(FACES[0], count), prepare=False))
    for partition in face_tables.partitions(face_tables.name(collection.id)):
        assert f"Index Scan using {partition}_hnsw" in plan, plan
    assert f"Seq Scan on {partition}" not in plan


def test_chosen_subjects_are_looked_up(gallery: PostgresGallery, database: Database) -> None:
    """Runtime pruning: a lookup of a subject scans the index of its partition only."""
    gallery.enrol("doors", [NewFace(f"p{n:02}", vector) for n, vector in enumerate(vectors(60, D, seed=3))], "f1")
    with database.autocommit() as db:
        db.execute("ANALYZE")
    where: Where = {"floor": [3]}
    with gallery.reading("doors") as (db, collection):
        matching = search.Filter(db, collection.id, where)
        planned = Search(db, collection, 3, "best", matching, False, True, PEOPLE, 0.0)
        ((candidates, count),) = list(planned._attempts())[:1]
        statement = sql.SQL("EXPLAIN (ANALYZE, COSTS off) ") + planned._statement(candidates)
        plan = "\n".join(row[0] for row in db.execute(statement, planned._values(FACES[0], count), prepare=False))
    assert "never executed" in plan  # of some partition, by runtime pruning


def test_faces_that_are_enrolled_and_erased_after_the_build_take_effect(gallery: PostgresGallery) -> None:
    index(gallery)
    (new,) = vectors(1, D, seed=12)
    (face,) = gallery.enrol("doors", [NewFace("new", new)], "f1")
    assert keys(gallery, new, 1) == ["new"]
    gallery.remove_faces("doors", [face.token])
    assert keys(gallery, new, 1) == expected(new, 1, False, {})
    gallery.remove_subject("doors", "p07")
    assert "p07" not in keys(gallery, FACES[7 * EACH], PEOPLE)
    assert len(keys(gallery, new, PEOPLE)) == PEOPLE - 1


def test_an_index_is_built_and_dropped_with_hysteresis(gallery: PostgresGallery, database: Database) -> None:
    def is_indexed() -> bool:
        with database.snapshot() as db:
            return hnsw.is_indexed(db, gallery.collection("doors").id)

    index(gallery, 241)
    assert not is_indexed()
    index(gallery, 240)
    assert is_indexed()
    assert not gallery.usage("doors").exact
    index(gallery, 480)
    assert is_indexed()
    index(gallery, 482)
    assert not is_indexed()
    assert gallery.usage("doors").exact


def test_an_incomplete_index_is_built_again(gallery: PostgresGallery, database: Database) -> None:
    """A build whose connection ends leaves an invalid index, which searches do not use."""
    index(gallery)
    collection = gallery.collection("doors")
    with database.autocommit() as db:
        db.execute(
            "UPDATE pg_index SET indisvalid = false WHERE indexrelid = %s::regclass",
            (f"{face_tables.partitions(face_tables.name(collection.id))[1]}_hnsw",),
        )
    with database.snapshot() as db:
        assert not hnsw.is_indexed(db, collection.id)
    index(gallery)
    with database.snapshot() as db:
        assert hnsw.is_indexed(db, collection.id)
        assert db.execute("SELECT count(*) FROM pg_index WHERE NOT indisvalid").fetchone() == (0,)


def test_one_connection_builds_at_a_time(gallery: PostgresGallery, database: Database) -> None:
    collection = gallery.collection("doors")
    with database.autocommit() as db, hnsw._lock(db, collection.id) as is_locked:
        assert is_locked
        index(gallery)
        assert not hnsw.is_indexed(db, collection.id)
    index(gallery)
    with database.snapshot() as db:
        assert hnsw.is_indexed(db, collection.id)


def test_a_build_leaves_the_connections_settings(gallery: PostgresGallery, database: Database) -> None:
    def settings(db: Connection) -> list[object]:
        names = ("maintenance_work_mem", "max_parallel_maintenance_workers")
        return [db.execute("SELECT current_setting(%s)", (name,)).fetchone() for name in names]

    with database.autocommit() as db:
        before = settings(db)
        with hnsw._settings(db, 4_000_000, 192):
            assert settings(db)[0] == ("938MB",)
        assert settings(db) == before
        with pytest.raises(psycopg.errors.DivisionByZero), hnsw._settings(db, 10**9, 192):
            db.execute("SELECT 1 / (current_setting('maintenance_work_mem') <> '4GB')::int")
        assert settings(db) == before


def test_a_dropped_collection_has_no_index(database: Database) -> None:
    gallery = PostgresGallery(database)
    dropped = gallery.create("dropped", "face-embedder", "f1", D)
    gallery.drop("dropped")
    hnsw.update(database, dropped, 0)
    with database.snapshot() as db:
        assert not hnsw.is_indexed(db, dropped.id)


@pytest.fixture
def erasing(gallery: PostgresGallery) -> Iterator[threading.Thread]:
    """A thread that drops the collection."""
    thread = threading.Thread(target=gallery.drop, args=("doors",))
    yield thread
    thread.join(10)


def test_a_search_is_of_one_moment(
    gallery: PostgresGallery, erasing: threading.Thread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a search runs, other subjects come and go without an effect, and dropping the collection waits."""
    run = Search.run
    right = expected(FACES[9], 5, False, {})

    def change_and_run(self: Search, query: Floats) -> object:
        if not erasing.is_alive():
            gallery.enrol("doors", [NewFace("new", query)], "f1")
            gallery.remove_subject("doors", right[0])
            erasing.start()
        return run(self, query)

    monkeypatch.setattr(Search, "run", change_and_run)
    (matches,) = PostgresSearches(gallery).search("doors", FACES[9:10])
    assert [match.subject.key for match in matches] == right
    erasing.join(10)
    with pytest.raises(NotFoundError):
        keys(gallery, FACES[9], 5)


def test_another_pipelines_queries_are_refused(gallery: PostgresGallery) -> None:
    with pytest.raises(ConflictError):
        PostgresSearches(gallery).search("doors", FACES[:1], fingerprint="f2")
