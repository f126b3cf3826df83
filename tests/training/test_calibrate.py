"""Thresholds and probabilities against counting, against scikit-learn, and against distributions that are known."""

from __future__ import annotations

import io
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from scipy.stats import genpareto, norm  # type: ignore[import-untyped]
from sklearn.linear_model import LogisticRegression
from typer.testing import CliRunner

from models import checkpoint
from models.card import Metric
from models.matching import Matching, OperatingPoint, Tail
from models.matching_fit import fit_matching
from models.preprocess import Preprocess
from models.registry import build, configure
from training import calibrate
from training.datasets import images as data
from training.datasets.faces import rows_of
from training.evaluation.embedded_faces import FaceEmbedder
from training.metrics.verification import Scores

# Similarities of strangers N(0, 0.1), of one person N(0.5, 0.15).
STRANGERS = norm(0, 0.1)


def scores(impostors: int = 100_000, seed: int = 0) -> Scores:
    random = np.random.default_rng(seed)
    return Scores(np.sort(random.normal(0.5, 0.15, 5_000)), np.sort(STRANGERS.rvs(impostors, random_state=random)))


@pytest.fixture(scope="module")
def matching() -> Matching:
    return fit_matching(scores(), "made up")


@pytest.mark.parametrize("fmr", [0.1, 0.03, 0.01, 0.003, 0.001, 0.0002])
def test_counted_thresholds_hold_on_other_pairs(matching: Matching, fmr: float) -> None:
    threshold = matching.threshold(fmr)
    assert not threshold.extrapolated
    # Three standard errors of as many strangers as were counted.
    assert STRANGERS.sf(threshold.similarity) == pytest.approx(fmr, rel=3 / (fmr * 100_000) ** 0.5)


@pytest.mark.parametrize("fmr", [5e-5, 1e-5, 1e-6])
def test_beyond_what_was_counted_it_says_so_and_keeps_the_order_of_magnitude(matching: Matching, fmr: float) -> None:
    threshold = matching.threshold(fmr)
    assert threshold.extrapolated
    assert fmr / 10 < STRANGERS.sf(threshold.similarity) < 10 * fmr


def test_what_was_counted_is_at_least_ten_strangers(matching: Matching) -> None:
    assert matching.counted == pytest.approx(1e-4)
    for point in matching.points:
        assert (scores().impostor >= point.similarity).mean() <= point.fmr


def test_the_threshold_rises_as_the_rate_falls(matching: Matching) -> None:
    rates = np.logspace(-1, -8, 200)
    assert (np.diff([matching.threshold(rate).similarity for rate in rates]) >= 0).all()


@pytest.mark.parametrize("shape", [-0.2, 0.0, 0.3])
def test_the_tail_is_scipys(shape: float) -> None:
    tail = Tail(start=0.2, rate=0.02, shape=shape, scale=0.05)
    for similarity in (0.2, 0.23, 0.4, 0.44):
        expected = 0.02 * genpareto.sf(similarity - 0.2, shape, scale=0.05)
        assert tail.fmr(similarity) == pytest.approx(expected)
        assert tail.similarity(expected) == pytest.approx(similarity)
    if shape < 0:  # it ends at start - scale / shape
        assert tail.fmr(0.46) == 0.0


def test_the_probability_is_scikit_learns_at_equal_weights(matching: Matching) -> None:
    pairs = scores()
    values = np.concatenate([pairs.mated, pairs.impostor])[:, None]
    same = np.repeat([1, 0], [len(pairs.mated), len(pairs.impostor)])
    model = LogisticRegression(C=1e6, class_weight="balanced", tol=1e-8).fit(values, same)
    for similarity in (-0.1, 0.1, 0.2, 0.3, 0.5):
        expected = model.predict_proba([[similarity]])[0, 1]
        assert matching.probability(similarity) == pytest.approx(expected, abs=0.005)


def test_a_rarer_mate_is_less_likely() -> None:
    rare = fit_matching(scores(), "made up", prior=0.01)
    even = fit_matching(scores(), "made up")
    assert rare.probability(0.25) < even.probability(0.25)
    assert 0 <= rare.probability(-50) < 1e-6
    assert rare.probability(50) == pytest.approx(1)


def test_pairs_that_never_overlap_still_give_a_curve() -> None:
    apart = Scores(np.linspace(0.8, 0.9, 100), np.linspace(-0.2, 0.2, 2_000))
    matching = fit_matching(apart, "made up")
    assert matching.probability(0.85) > 0.99
    assert matching.probability(0.1) < 0.01


def test_what_cannot_be_calibrated_is_refused() -> None:
    with pytest.raises(ValueError, match="1000 non-mated pairs"):
        fit_matching(scores(impostors=999), "made up")
    with pytest.raises(ValueError, match="not more alike"):
        fit_matching(Scores(np.linspace(-1, 0, 500), np.linspace(0, 1, 2_000)), "made up")


@pytest.mark.parametrize("fmr", [0.0, -1.0, 0.2, float("nan")])
def test_rates_that_nobody_counted_are_refused(matching: Matching, fmr: float) -> None:
    with pytest.raises(ValueError, match="false match rate"):
        matching.threshold(fmr)


def test_points_out_of_order_are_refused(matching: Matching) -> None:
    points = [OperatingPoint(fmr=0.01, similarity=0.3), OperatingPoint(fmr=0.1, similarity=0.2)]
    with pytest.raises(ValidationError, match="fall in FMR"):
        Matching.model_validate(matching.model_dump() | {"points": [point.model_dump() for point in points]})


def test_it_survives_json(matching: Matching) -> None:
    assert Matching.model_validate_json(matching.model_dump_json()) == matching


@pytest.fixture
def people(folders: Path) -> Path:
    """The folder of an untrained embedder, and 120 people of one source with five faces each."""
    random = np.random.default_rng(0)
    rows = []
    for person in range(120):
        base = random.integers(0, 256, (4, 4, 3)).astype(np.uint8)
        for _ in range(5):
            face = np.clip(base.repeat(8, axis=0).repeat(8, axis=1) + random.normal(0, 20, (32, 32, 3)), 0, 255)
            buffer = io.BytesIO()
            Image.fromarray(face.astype(np.uint8)).save(buffer, "PNG")
            rows.append({"image": {"bytes": buffer.getvalue(), "path": None}, "identity": f"made:{person}"})
    (folders / "data/people").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), folders / "data/people/train.parquet")
    torch.manual_seed(0)
    config = {"image_size": 32, "dimensions": 12, "norm": False}
    checkpoint.save(
        folders / "untrained",
        build("mobilefacenet", config),
        name="untrained",
        description="untrained",
        task="embed",
        architecture="mobilefacenet",
        config=asdict(configure("mobilefacenet", config)),
        preprocess=Preprocess(size=(32, 32), mean=(127.5,) * 3, std=(128.0,) * 3),
        metrics=[Metric(name="kept", value=1.0, data="elsewhere")],
        data="none",
        source="this test",
        license="Apache-2.0",
    )
    return folders


def test_the_command_writes_thresholds_into_the_card(people: Path) -> None:
    command = [str(people / "untrained"), "--data", "people"]
    sha256 = checkpoint.read_card(people / "untrained").sha256
    for flip in ("--flip", "--no-flip", "--flip"):
        result = CliRunner().invoke(calibrate.cli, [*command, flip])
        assert result.exit_code == 0, result.output
        card = checkpoint.read_card(people / "untrained")
        assert card.tta == ("flip" if flip == "--flip" else "none")
        assert [metric.name for metric in card.metrics] == ["kept", "tar@fmr=0.01", "tar@fmr=0.001", "eer"]
        assert card.sha256 == sha256
    # The thresholds again, by a plain loop over all pairs of the identities that calibrate.
    embedder = FaceEmbedder(people / "untrained")
    images = data.load("people", "train", card.preprocess)
    rows = rows_of(images, "calibrate")
    vectors, labels = embedder.rows(images, rows), images.labels[rows]
    strangers = [vectors[i] @ vectors[j] for i in range(len(rows)) for j in range(i) if labels[i] != labels[j]]
    assert embedder.matching.impostors == len(strangers)
    threshold = embedder.matching.threshold(0.1)
    assert np.mean(np.array(strangers) >= threshold.similarity) == pytest.approx(0.1, abs=2 / len(strangers))


def test_what_cannot_be_calibrated_says_why(people: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "FEWEST_IMPOSTORS", 10**6)
    for folder, options, message in (
        (people / "untrained", ["--data", "people"], "calibration needs 1000000 non-mated pairs"),
        (people / "untrained", ["--data", "nobody"], "nobody"),
        (people / "nothing", ["--data", "people"], "No such file"),
        (Path(__file__).parents[2] / "weights/lenet5-mnist", ["--data", "people"], "to classify, not to embed"),
    ):
        result = CliRunner().invoke(calibrate.cli, [str(folder), *options])
        assert result.exit_code == 1
        assert message in result.output
    assert checkpoint.read_card(people / "untrained").matching is None
