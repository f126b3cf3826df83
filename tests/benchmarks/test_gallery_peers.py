"""The clustered vectors, the exact answers and the report of the comparison with other engines."""

from __future__ import annotations

import itertools
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks import tables
from benchmarks.gallery import peers
from benchmarks.gallery.child import Job
from benchmarks.gallery.clustered import BLOCK, DIMENSIONS, Clustered, Ints, Questions, nearest, questions, recall
from benchmarks.gallery.engines import Engine, Faiss, Vestibule
from benchmarks.gallery.group import Row
from benchmarks.gallery.ingest import Ingest, measure
from benchmarks.gallery.peers import cli
from benchmarks.gallery.report import ingest_table, peers_table
from benchmarks.gallery.worker import Bounds, EngineError, Worker
from benchmarks.tables import merge

SMALL = Clustered(4000)


def test_vectors_have_length_1_and_are_the_same_again() -> None:
    vectors = SMALL.slice(0, SMALL.rows)
    assert vectors.shape == (4000, DIMENSIONS)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(Clustered(4000).slice(0, 4000), vectors)
    assert not np.isclose(replace(SMALL, seed=1).slice(0, 4000), vectors).all(axis=1).any()


def test_chunks_are_the_whole() -> None:
    data = Clustered(BLOCK + 1000)
    chunks = list(data.chunks())
    assert [first for first, _ in chunks] == [0, BLOCK]
    whole = np.concatenate([vectors for _, vectors in chunks])
    assert len(whole) == data.rows
    np.testing.assert_array_equal(data.slice(BLOCK - 7, BLOCK + 5), whole[BLOCK - 7 : BLOCK + 5])
    np.testing.assert_array_equal(data.slice(3, 4000), SMALL.slice(3, 4000))
    assert len(data.slice(5, 5)) == 0


def test_subjects_have_four_or_five_faces_in_turn() -> None:
    subjects = SMALL.subjects(np.arange(SMALL.rows)).tolist()
    counts = [len(list(faces)) for _, faces in itertools.groupby(subjects)]
    assert counts[:6] == [5, 4, 5, 4, 5, 4]
    assert list(dict.fromkeys(subjects)) == list(range(len(counts)))


def test_faces_are_near_their_subject_subjects_near_a_direction() -> None:
    vectors = SMALL.slice(0, SMALL.rows)
    subjects = SMALL.subjects(np.arange(SMALL.rows))
    cosines = vectors @ vectors.T
    same = subjects[:, None] == subjects[None]
    assert cosines[same & ~np.eye(len(vectors), dtype=bool)].mean() == pytest.approx(0.61, abs=0.02)
    strangers = cosines[~same]
    assert abs(strangers.mean()) < 0.01
    assert strangers.std() == pytest.approx(0.175, abs=0.02)
    crowded = replace(SMALL, coarse=2).slice(0, SMALL.rows)
    assert (crowded @ crowded.T)[~same].mean() > 0.1


def test_questions_are_faces_of_who_is_there_and_of_strangers() -> None:
    queries, subjects = SMALL.queries(400, strangers=0.25)
    assert (subjects < 0).sum() == 100
    assert subjects.max() < SMALL.subjects(np.array([SMALL.rows - 1]))[0] + 1
    rows = nearest(SMALL, queries, 1)[:, 0]
    there = subjects >= 0
    assert (SMALL.subjects(rows)[there] == subjects[there]).mean() > 0.95
    vectors = SMALL.slice(0, SMALL.rows)[rows]
    similarities = (vectors * queries).sum(axis=1)
    assert similarities[there].mean() > similarities[~there].mean() + 0.1
    assert similarities.max() < 0.999  # no question is an enrolled face itself


def test_the_nearest_are_those_of_sorting_all() -> None:
    data = Clustered(BLOCK + 500)
    queries, _ = data.queries(20, strangers=0.5)
    similarities = queries @ data.slice(0, data.rows).T
    np.testing.assert_array_equal(nearest(data, queries, 7), np.argsort(-similarities, axis=1)[:, :7])
    np.testing.assert_array_equal(nearest(Clustered(3), queries, 5)[:, 3:], np.full((20, 2), -1))


@pytest.mark.parametrize("k", [1, 3, 10])
def test_recall_is_that_of_a_plain_loop(k: int) -> None:
    random = np.random.default_rng(0)
    found, truth = (np.array([random.permutation(14)[:10] for _ in range(50)], np.int64) for _ in range(2))
    hits = 0
    for one, other in zip(found.tolist(), truth.tolist(), strict=True):
        hits += len(set(one[:k]) & set(other[:k]))
    assert recall(found, truth, k) == pytest.approx(hits / (50 * k))


def test_a_row_that_is_missing_is_no_hit() -> None:
    truth: Ints = np.array([[1, 2], [3, 4]])
    assert recall(np.array([[1, -1], [-1, -1]]), truth, 2) == 0.25


def test_questions_are_kept_in_a_file_of_their_own_parameters(tmp_path: Path) -> None:
    path = questions(SMALL, 30, 0.5, tmp_path)
    written = path.stat().st_mtime_ns
    assert questions(SMALL, 30, 0.5, tmp_path).stat().st_mtime_ns == written
    assert questions(replace(SMALL, coarse=5), 30, 0.5, tmp_path) != path
    found = Questions.load(path)
    np.testing.assert_array_equal(found.truth, nearest(SMALL, found.queries, 10))
    np.testing.assert_array_equal(nearest(SMALL, found.known_vectors, 1)[:, 0], found.known)


def test_no_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        Clustered(0)


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


def test_what_is_not_installed_says_so(tmp_path: Path) -> None:
    if find_spec("hnswlib"):
        pytest.skip("it is installed here")
    worker = Worker(sys.executable, "hnswlib", tmp_path, questions(SMALL, 20, 0.5, tmp_path), SMALL, Bounds(60, 10_000))
    with pytest.raises(EngineError, match="build: not installed: hnswlib"):
        worker.ask("build")
    worker.end()


@pytest.mark.parametrize(
    ("bounds", "reason"), [(Bounds(0, 10_000), "not done in 0 s"), (Bounds(60, 1), "more than 0.001 GB of memory")]
)
def test_what_takes_too_much_is_ended_and_says_why(bounds: Bounds, reason: str, tmp_path: Path) -> None:
    worker = Worker(sys.executable, "faiss", tmp_path, questions(SMALL, 20, 0.5, tmp_path), SMALL, bounds)
    with pytest.raises(EngineError, match=f"build: {reason}"):
        worker.ask("build")
    worker.end()


def test_a_run_has_a_row_for_every_engine_and_the_page_is_written_from_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "peers.csv"
    asked = ["run", "--vectors", "4000", "--queries", "20", "--engines", "vestibule,qdrant", "--results", str(results)]
    ran = CliRunner().invoke(cli, [*asked, "--work", str(tmp_path), "--seconds", "5"])
    assert ran.exit_code == 0, ran.output
    ours, qdrant = tables.read(results)
    assert (ours["engine"], ours["status"], int(ours["searches"])) == ("vestibule", "ok", 20)
    assert float(ours["p50_ms"]) <= float(ours["p99_ms"])
    assert float(ours["over_raw_ms"]) == pytest.approx(float(ours["pair_ms"]) - float(ours["pair_raw_ms"]), abs=1e-3)
    assert qdrant["engine"] == "qdrant"
    assert bool(find_spec("qdrant_client")) or qdrant["status"] == "start: not installed: qdrant_client"
    for name, path in (("RESULTS", results), ("INGEST", tmp_path / "none.csv"), ("PAGE", tmp_path / "page.md")):
        monkeypatch.setattr(peers, name, path)
    assert CliRunner().invoke(cli, ["report"]).exit_code == 0
    assert peers_table([ours, qdrant]) in (tmp_path / "page.md").read_text()


def test_an_unknown_engine_is_refused() -> None:
    assert CliRunner().invoke(cli, ["run", "--engines", "vestibule,oracle"]).exit_code == 2


def test_rows_replace_those_of_the_same_engine_and_size(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    merge(path, [Row("a", 10, status="old"), Row("b", 10), Row("a", 20)], ("engine", "vectors"))
    merge(path, [Row("a", 10, recall_1=0.5)], ("engine", "vectors"))
    kept = {(row["engine"], row["vectors"]): (row["status"], row["recall_1"]) for row in tables.read(path)}
    assert kept == {("b", "10"): ("ok", ""), ("a", "20"): ("ok", ""), ("a", "10"): ("ok", "0.5")}


def test_the_table_tells_sizes_apart_and_why_something_is_not_there(tmp_path: Path) -> None:
    ours = Row("vestibule", 1_000_000, versions="v 1", p50_ms=0.512, recall_1=0.9951, machine="a desk")
    ours.take({"pair_ms": 0.5, "pair_index_ms": 0.45, "pair_raw_ms": 0.4, "over_raw_ms": 0.1, "over_raw": 0.25})
    rows = [
        ours,
        Row(
            "qdrant", 13_000_000, status="build: not done in 60 s", versions="q 2", machine="a desk", date="2026-01-01"
        ),
    ]
    path = tmp_path / "rows.csv"
    merge(path, rows, ("engine", "vectors"))
    small, large = peers_table(tables.read(path)).split("**13,000,000 vectors**")
    assert "**1,000,000 vectors**, a desk:" in small
    assert "| vestibule | 0.9951 | - | - | 0.51 | - |" in small
    assert "0.500 ms against 0.400 ms, +0.100 ms or +25.0 %" in small
    assert "- qdrant (q 2, 2026-01-01). **Not measured to the end: build: not done in 60 s.**" in large


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


def test_the_ingest_table_has_a_line_for_each_figure(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    row = Ingest("bulk", 1_000_000, 12_345.6, "vectors/s", 10_000, "v 1", "a desk", "2026-01-01")
    merge(path, [row, replace(row, measure="fsync", value=1.25, unit="ms", wanted=None)], ("measure", "vectors"))
    lines = ingest_table(tables.read(path)).splitlines()
    assert lines[2:4] == ["| 1,000,000 | bulk | 12,346 vectors/s | 10,000 |", "| 1,000,000 | fsync | 1.25 ms |  |"]
    assert lines[-1] == "On a desk; v 1; 2026-01-01."
