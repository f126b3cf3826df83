"""The measurement of passages and sites, on random vectors."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.gallery import passages as benchmark
from benchmarks.gallery.passages import Calibration, Passage, impostors, mated, measure_passages, measure_site, search
from models.matching import Matching
from models.matching_fit import fit_matching
from training.metrics.passages import People, WeightedFaces

PEOPLE, PHOTOS = 40, 12


def people() -> People:
    random = np.random.default_rng(0)
    centres = random.normal(size=(PEOPLE, 24))
    labels = np.repeat(np.arange(PEOPLE), PHOTOS)
    vectors = centres[labels] + random.normal(scale=0.6, size=(len(labels), 24))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    faces = WeightedFaces(vectors, random.uniform(0.5, 1, len(labels)))
    return People(np.arange(len(labels)), faces, labels, np.full(len(labels), "made"))


@pytest.fixture(scope="module")
def card() -> Matching:
    photos = people()
    return fit_matching(mated(photos), impostors(photos, np.arange(PEOPLE)), "made")


def test_pairs_are_those_of_a_plain_loop() -> None:
    photos = people()
    chosen = np.array([3, 7, 8])
    rows = np.flatnonzero(np.isin(photos.labels, chosen))
    pairs = [(i, j) for i in rows for j in rows if i < j]
    vectors, labels = photos.faces.vectors, photos.labels
    assert np.sort(impostors(photos, chosen)) == pytest.approx(
        np.sort([vectors[i] @ vectors[j] for i, j in pairs if labels[i] != labels[j]])
    )
    own = [vectors[i] @ vectors[j] for i in range(len(labels)) for j in range(i) if labels[i] == labels[j]]
    assert np.sort(mated(photos)) == pytest.approx(np.sort(own))


def test_a_passage_is_decided_by_its_number_of_frames(card: Matching) -> None:
    photos = people()
    never = card.model_copy(update={"points": tuple(p.model_copy(update={"similarity": 2.0}) for p in card.points)})
    frames = WeightedFaces(photos.faces.vectors[1:4], photos.faces.weights[1:4])
    gallery, owners = photos.faces.vectors[::PHOTOS], np.arange(PEOPLE)
    strict = Calibration(card, [card, card, never])
    (searched,) = [search(strict, [Passage(0, frames)], gallery, owners, single=False)]
    assert (searched.first.tolist(), searched.match.tolist(), searched.mated.tolist()) == ([True], [False], [True])
    single = search(Calibration(card, [never] * 3), [Passage(0, frames)], gallery, owners, single=True)
    assert single.match.tolist() == [True]


def test_rows_have_the_columns_of_the_files(card: Matching, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "FRAMES", (1, 3))
    photos = people()
    bursts = WeightedFaces(photos.faces.vectors[:40].reshape(10, 4, -1), photos.faces.weights[:40].reshape(10, 4))
    calibration = Calibration(card, [card] * 10)
    burst_photos = np.arange(10) * PHOTOS
    rows = list(measure_passages(calibration, photos, burst_photos, bursts, "made", 2, on_site=False))
    (site, *_) = measure_passages(calibration, photos, burst_photos, bursts, "made", 2, on_site=True)
    assert (site["thresholds"], site["subjects"]) == ("site", PEOPLE // 4)
    assert (rows[0]["thresholds"], rows[0]["subjects"]) == ("card", PEOPLE // 2)
    assert [(row["kind"], row["frames"]) for row in rows] == [
        ("photos", 1),
        ("photos", 3),
        ("burst", 1),
        ("burst", 3),
    ]
    assert all(set(row) == set(benchmark.COLUMNS) for row in rows)
    assert rows[0]["fnir"] == rows[0]["single_fnir"]
    assert rows[1]["fnir"] < rows[1]["single_fnir"]
    text = benchmark.passage_table([{name: str(value) for name, value in row.items()} for row in rows])
    assert "3 photos" in text


def test_a_site_keeps_its_promise(card: Matching) -> None:
    shifted = card.model_copy(
        update={"points": tuple(p.model_copy(update={"similarity": p.similarity - 0.1}) for p in card.points)}
    )
    rows = list(measure_site(shifted, people(), "made", 6))
    assert all(set(row) == set(benchmark.SITE_COLUMNS) for row in rows)
    ratio = {(row["calibration"], row["promised"]): row["median"] for row in rows}
    assert ratio["card", 0.01] > 1.5
    assert 0.5 < ratio["site", 0.01] < 1.5
    assert "the site" in benchmark.site_table([{name: str(value) for name, value in row.items()} for row in rows])
