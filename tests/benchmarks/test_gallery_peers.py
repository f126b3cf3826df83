"""Galleries side by side: clustered vectors, exact answers, engines in processes of their own, ingest."""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from benchmarks import tables
from benchmarks.gallery.child import Job
from benchmarks.gallery.clustered import BLOCK, DIMENSIONS, Clustered, Questions, nearest, questions, recall
from benchmarks.gallery.engines import Engine, Faiss, Vestibule
from benchmarks.gallery.ingest import measure
from benchmarks.gallery.peers import cli
from benchmarks.gallery.worker import Bounds, EngineError, Worker
from tests.benchmarks.conftest import invoke

SMALL = Clustered(4000)


def test_clustered_vectors_are_unit_repeatable_and_the_same_in_chunks() -> None:
    data = Clustered(BLOCK + 500)
    chunks = list(data.chunks())
    assert [first for first, _ in chunks] == [0, BLOCK]
    whole = np.concatenate([vectors for _, vectors in chunks])
    assert whole.shape == (data.rows, DIMENSIONS)
    np.testing.assert_allclose(np.linalg.norm(whole, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(data.slice(BLOCK - 7, BLOCK + 5), whole[BLOCK - 7 : BLOCK + 5])
    np.testing.assert_array_equal(SMALL.slice(3, 4000), whole[3:4000])
    assert not np.isclose(replace(SMALL, seed=1).slice(0, 4000), whole[:4000]).all(axis=1).any()
    queries, _ = data.queries(20, strangers=0.5)
    np.testing.assert_array_equal(nearest(data, queries, 7), np.argsort(-(queries @ whole.T), axis=1)[:, :7])
    subjects = SMALL.subjects(np.arange(SMALL.rows))
    cosines, same = whole[:4000] @ whole[:4000].T, subjects[:, None] == subjects[None]
    assert cosines[same & ~np.eye(4000, dtype=bool)].mean() == pytest.approx(0.61, abs=0.02)
    assert (cosines[~same].mean(), cosines[~same].std()) == pytest.approx((0, 0.175), abs=0.02)


def test_questions_are_of_enrolled_people_and_of_strangers(tmp_path: Path) -> None:
    queries, subjects = SMALL.queries(400, strangers=0.25)
    rows, enrolled = nearest(SMALL, queries, 1)[:, 0], subjects >= 0
    assert enrolled.sum() == 300
    assert (SMALL.subjects(rows)[enrolled] == subjects[enrolled]).mean() > 0.95
    similarities = (SMALL.slice(0, SMALL.rows)[rows] * queries).sum(axis=1)
    assert similarities[enrolled].mean() > similarities[~enrolled].mean() + 0.1
    assert similarities.max() < 0.999  # no question is an enrolled face itself
    stored = Questions.load(questions(SMALL, 30, 0.5, tmp_path))
    np.testing.assert_array_equal(stored.truth, nearest(SMALL, stored.queries, 10))


@pytest.mark.parametrize("k", [1, 3, 10])
def test_recall_is_that_of_a_plain_loop(k: int) -> None:
    random = np.random.default_rng(0)
    found, truth = (np.array([random.permutation(14)[:10] for _ in range(50)], np.int64) for _ in range(2))
    hits = 0
    for one, other in zip(found.tolist(), truth.tolist(), strict=True):
        hits += len(set(one[:k]) & set(other[:k]))
    assert recall(found, truth, k) == pytest.approx(hits / (50 * k))


@pytest.mark.parametrize("engine", [Vestibule, Faiss])
def test_an_engine_finds_what_it_was_given(engine: type[Engine], tmp_path: Path) -> None:
    asked = Questions.load(questions(SMALL, 40, 0.5, tmp_path))
    folder = tmp_path / "engine"
    folder.mkdir()
    first = Job(engine(), folder, asked, SMALL)
    assert set(first.build()) == {"load_s", "build_s"}
    first.close()
    again = Job(engine(), folder, asked, SMALL)
    assert again.open() == {"tries": 1}
    answer = again.recall(60)
    assert answer["recall_1"] > 0.8
    assert answer["answered"] == 30
    timed = again.searches(35, 10, 8, 60)
    assert len(timed["ms"]) == 10
    again.close()


def test_a_gallery_is_paired_with_its_own_index(tmp_path: Path) -> None:
    asked = Questions.load(questions(SMALL, 20, 0.5, tmp_path))
    job = Job(Vestibule(), tmp_path / "gallery", asked, SMALL)
    job.build()
    times = job.pair(60)
    assert {name: len(found) for name, found in times.items()} == {"vestibule_ms": 20, "raw_ms": 20, "index_ms": 20}
    raw = Faiss()
    raw.borrow(job.folder, next(job.folder.glob("files/*.ivf")), SMALL)
    for query in asked.queries:
        assert raw.search(query, 10) == list(job.engine.rows(query, 10))
    job.close()


def test_ingest_measures_what_is_durable_and_searches_go_on(tmp_path: Path) -> None:
    rows = measure(SMALL, tmp_path, 0.3, "a desk")
    found = {row.measure: row for row in rows}
    assert len(found) == len(rows)
    assert found["bulk enrolment, one thread"].value > 0
    assert found["single enrolments, 8 threads"].value > 0
    for when in ("first build", "after 1/4 more"):
        assert found[f"{when}: searches meanwhile"].value >= 1
        assert found[f"{when}: errors meanwhile"].value == found[f"{when}: errors afterwards"].value == 0
        assert found[f"{when}: a search afterwards, p50"].value <= found[f"{when}: a search afterwards, p99"].value


@pytest.mark.parametrize(
    ("engine", "bounds", "reason"),
    [
        ("hnswlib", Bounds(60, 10_000), "not installed: hnswlib"),
        ("faiss", Bounds(0, 10_000), "not done in 0 s"),
        ("faiss", Bounds(60, 1), "more than 0.001 GB of memory"),
    ],
)
def test_an_engine_that_cannot_build_says_why(engine: str, bounds: Bounds, reason: str, tmp_path: Path) -> None:
    if engine == "hnswlib" and find_spec(engine):
        pytest.skip("it is installed here")
    worker = Worker(sys.executable, engine, tmp_path, questions(SMALL, 20, 0.5, tmp_path), SMALL, bounds)
    with pytest.raises(EngineError, match=f"build: {reason}"):
        worker.ask("build")
    worker.end()


def test_a_run_has_a_row_for_every_engine(tmp_path: Path) -> None:
    results = tmp_path / "peers.csv"
    options = ("--vectors", "4000", "--queries", "20", "--results", results, "--work", tmp_path, "--seconds", "5")
    ran = invoke(cli, "run", "--engines", "vestibule,qdrant", *options)
    assert ran.exit_code == 0, ran.output
    ours, qdrant = tables.read(results)
    assert (ours["engine"], ours["status"], int(ours["searches"])) == ("vestibule", "ok", 20)
    assert float(ours["p50_ms"]) <= float(ours["p99_ms"])
    assert float(ours["over_raw_ms"]) == pytest.approx(float(ours["pair_ms"]) - float(ours["pair_raw_ms"]), abs=1e-3)
    assert bool(find_spec("qdrant_client")) or qdrant["status"] == "start: not installed: qdrant_client"
    assert invoke(cli, "run", "--engines", "vestibule,oracle").exit_code == 2
