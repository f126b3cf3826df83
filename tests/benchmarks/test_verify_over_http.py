"""Pairs over HTTP against a service with an embedder of random weights; the figures by hand."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path
from statistics import median

import httpx
import pytest
from PIL import Image, ImageEnhance
from typer.testing import CliRunner, Result

from benchmarks.models import bad_pairs
from benchmarks.models.verify_over_http import Row, cli, latency_figures, lfw_figures, server_timing
from tests.app.face_pictures import grace_hopper
from tests.app.face_service import serving_faces
from tests.conftest import photo

PEOPLE = {
    "Astronaut": photo("astronaut").crop((100, 0, 350, 250)),
    "Grace_Hopper": grace_hopper().resize((250, 293)).crop((0, 0, 250, 250)),
}


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving_faces(tmp_path_factory) as url:
        yield url


@pytest.fixture
def lfw(tmp_path: Path) -> Path:
    """Five photos each of two people, ten pairs of a kind, in LFW's layout."""
    for name, picture in PEOPLE.items():
        (tmp_path / "lfw" / name).mkdir(parents=True)
        for number in range(1, 6):
            brighter: Image.Image = ImageEnhance.Brightness(picture).enhance(0.8 + 0.1 * number)
            brighter.save(tmp_path / "lfw" / name / f"{name}_{number:04d}.jpg", quality=95)
    mated = [f"Astronaut\t{a}\t{b}" for a, b in combinations(range(1, 6), 2)]
    others = [f"Astronaut\t{a}\tGrace_Hopper\t{b}" for a, b in product(range(1, 6), (1, 2))]
    (tmp_path / "pairsDevTest.txt").write_text("\n".join(["10", *mated, *others]) + "\n")
    return tmp_path


def run(command: str, *arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [command, *map(str, arguments)])


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_bad_pair_gets_its_problem(address: str, tmp_path: Path) -> None:
    result = run("bad", "--url", address, "--results", tmp_path)
    assert result.exit_code == 0, result.output
    rows = {row["case"]: row for row in table(tmp_path / "verify_bad.csv")}
    assert len(rows) == 23
    assert {row["right"] for row in rows.values()} == {"True"}
    assert {row["status"] for row in rows.values()} == {"200", "400", "413", "415", "422"}
    assert rows["no face in the target"]["title"] == "There is no face in the picture"


def test_another_answer_than_the_tables_is_told(address: str) -> None:
    with httpx.Client(base_url=address, timeout=60) as client:
        two, no_face, *_ = bad_pairs.cases()
        answer = no_face.send(client)
        assert bad_pairs.is_right(answer, no_face)
        assert not bad_pairs.is_right(answer, replace(no_face, status=400))
        assert not bad_pairs.is_right(answer, replace(no_face, problem="unprocessable"))
        assert not bad_pairs.is_right(answer, two)


def test_pairs_over_http(address: str, lfw: Path) -> None:
    result = run("lfw", "--url", address, "--data", lfw, "--results", lfw)
    assert result.exit_code == 0, result.output
    rows = table(lfw / "verify_lfw.csv")
    assert [row["same"] for row in rows] == ["True"] * 10 + ["False"] * 10
    assert "20 pairs (10 mated, 10 non-mated), failed 0" in result.output
    right = sum(row["same"] == row["verified"] for row in rows)
    assert f"verified: right {right / 20:.4f}" in result.output
    first = [(lfw / "lfw" / "Astronaut" / f"Astronaut_{number:04d}.jpg").read_bytes() for number in (1, 2)]
    answer = httpx.post(f"{address}/verify", files=dict(zip(("source", "target"), first, strict=True))).json()
    assert float(rows[0]["similarity"]) == pytest.approx(1 - answer["distance"], abs=1e-4)


def test_a_failed_request_ends_with_1_and_is_no_match(address: str, lfw: Path) -> None:
    photo("coffee").save(lfw / "lfw" / "Astronaut" / "Astronaut_0001.jpg")
    result = run("lfw", "--url", address, "--data", lfw, "--results", lfw)
    assert result.exit_code == 1
    assert "failed: Astronaut_0001 Astronaut_0002: 422 There is no face in the picture" in result.output
    failed = [row for row in table(lfw / "verify_lfw.csv") if row["status"] != "200"]
    assert len(failed) == 4 + 2
    assert {(float(row["similarity"]), row["verified"]) for row in failed} == {(-1.0, "False")}


def test_no_service_and_no_pictures_are_clear_errors(tmp_path: Path, lfw: Path) -> None:
    nobody = run("lfw", "--url", "http://127.0.0.1:9", "--data", lfw, "--results", tmp_path)
    empty = run("lfw", "--data", tmp_path / "nothing")
    assert (nobody.exit_code, empty.exit_code) == (1, 1)
    assert "error: http://127.0.0.1:9" in nobody.output
    assert "error: no <person>" in empty.output


def test_times_in_turn_with_dlib(address: str, lfw: Path) -> None:
    pytest.importorskip("dlib")
    result = run(
        *("latency", "--url", address, "--data", lfw, "--results", lfw),
        *("--limit", "4", "--warmup", "1", "--upsample", "1"),
    )
    assert result.exit_code == 0, result.output
    rows = table(lfw / "verify_latency.csv")
    assert [row["same"] for row in rows] == ["True", "True", "False", "False"]
    for row in rows:
        times = {name: float(value) for name, value in row.items() if name.endswith("_ms")}
        assert times["http_ms"] > times["http_total_ms"] > times["http_detect_ms"] > 0
        stages = sum(times[f"dlib_{stage}_ms"] for stage in ("decode", "detect", "embed"))
        assert times["dlib_ms"] == pytest.approx(stages, rel=1e-3)
        # A brighter photo of the same face is nearer than another face, in whatever the ResNet's numbers mean.
        assert (float(row["dlib_distance"]) < 0.6) == (row["same"] == "True")
    ratio = median(float(row["http_ms"]) for row in rows) / median(float(row["dlib_ms"]) for row in rows)
    assert f"ratio {ratio:.3f}" in result.output
    assert "dlib finds both faces in 4 of 4 pairs" in result.output


def test_two_services_are_compared_in_turn(address: str, lfw: Path) -> None:
    other = ("--url", address, "--other", address.replace("127.0.0.1", "localhost"))
    result = run("beside", *other, "--data", lfw, "--results", lfw, "--limit", "4", "--warmup", "1")
    assert result.exit_code == 0, result.output
    rows = table(lfw / "verify_beside.csv")
    assert len(rows) == 4
    ratio = median(float(row["url_ms"]) for row in rows) / median(float(row["other_ms"]) for row in rows)
    assert f"ratio of the medians {ratio:.3f}" in result.output
    nobody = run("beside", "--url", address, "--other", "http://127.0.0.1:9", "--data", lfw)
    assert (nobody.exit_code, "error: http://127.0.0.1:9" in nobody.output) == (1, True)


def test_figures_of_pairs_by_hand() -> None:
    # The first fold holds both odd pairs; the others' threshold, 0.5, has them wrong. Elsewhere it is 0.15, all right.
    similarities = [0.2] + [0.9] * 9 + [0.6] + [0.1] * 9
    rows: list[Row] = [
        {"similarity": value, "same": place < 10, "verified": value > 0.5, "status": 200}
        for place, value in enumerate(similarities)
    ]
    assert list(lfw_figures(rows)) == [
        "20 pairs (10 mated, 10 non-mated), failed 0",
        "accuracy 0.9000, standard error 0.1000",
        "TAR at FAR 0.1: 1.0000",
        "TAR at FAR 0.01: not countable with 10 non-mated pairs",
        "TAR at FAR 0.001: not countable with 10 non-mated pairs",
        "EER 0.1000",
        "verified: right 0.9000, accepted 9 of 10 mated and 1 of 10 non-mated",
    ]


def test_the_ratio_is_over_pairs_in_which_dlib_sees_both() -> None:
    rows: list[Row] = [
        {"http_ms": 40.0, "dlib_ms": 80.0, "dlib_distance": 0.5, "same": True},
        {"http_ms": 60.0, "dlib_ms": 80.0, "dlib_distance": 0.5, "same": False},
        {"http_ms": 900.0, "dlib_ms": 1.0, "dlib_distance": "", "same": False},
    ]
    head, http, dlib, *rest = latency_figures(rows)
    assert [line.split() for line in (head, http, dlib)] == [
        ["ms", "p50", "p90", "p99"],
        ["http", "60.00", "732.00", "883.20"],
        ["dlib", "80.00", "80.00", "80.00"],
    ]
    assert rest == [
        "dlib finds both faces in 2 of 3 pairs",
        "over these, medians: HTTP 50.00 ms, dlib 80.00 ms, ratio 0.625",
        "and dlib, at its own threshold of 0.6, is right in 0.5000",
    ]


def test_server_timing_is_read() -> None:
    assert server_timing("decode;dur=1.25, queue;dur=0.00, total;dur=31") == {"decode": 1.25, "queue": 0, "total": 31}
