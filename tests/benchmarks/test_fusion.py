"""Fusion of several photos of a subject, on small random vectors: every figure again by a plain loop."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from benchmarks import tables
from benchmarks.gallery import fusion
from benchmarks.gallery.fusion import Cell, Draw, Found, Source, draws, gain, searched, taken, thresholds
from index.embedded.gallery import EmbeddedGallery
from index.types import Floats
from models.matching import Matching
from models.matching_fit import fit_matching
from models.preprocess import Preprocess
from tests.benchmarks.conftest import invoke
from tests.conftest import encode
from tests.training.conftest import save
from training.datasets import images as data
from training.datasets.faces import split_of
from training.datasets.images import Indices
from training.evaluation.embedded_faces import FaceEmbedder

PEOPLE, SUBJECTS = 10, 3


def people(count: int = PEOPLE, photos: int = 7, few: int = 3) -> tuple[Floats, Indices]:
    """Vectors [N, 6] around a centre for each person and labels [N], shuffled; the last `few` have two photos."""
    random = np.random.default_rng(0)
    labels = np.concatenate([np.repeat(np.arange(count - few), photos), np.repeat(np.arange(count - few, count), 2)])
    labels = random.permutation(labels) + 5
    vectors = random.normal(size=(count + 5, 6))[labels] + random.normal(size=(len(labels), 6))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), labels


def found(similarities: list[float], right: list[bool], mated: list[bool]) -> Found:
    """Searches of people 1, 2, ...; the candidate of a wrong answer is person 0."""
    person = np.arange(1, len(mated) + 1)
    return Found(person, np.where(right, person, 0), np.array(similarities), np.array(mated))


def test_a_draw_searches_what_it_never_enrols() -> None:
    _, labels = people()
    several = list(draws(labels, SUBJECTS, 20))
    for draw in several:
        owners = labels[draw.gallery]
        assert owners.shape == (SUBJECTS, 5)
        assert len(set(owners[:, 0].tolist())) == SUBJECTS
        assert (owners == owners[:, :1]).all()
        assert len(np.unique(np.concatenate([draw.gallery.ravel(), draw.probes]))) == len(labels)
        assert draw.mated.tolist() == [label in owners for label in labels[draw.probes]]
    enrolled = {int(label) for draw in several for label in labels[draw.gallery].ravel()}
    assert enrolled == set(range(5, 12))  # and none of those with two photos
    with pytest.raises(ValueError, match="7 have enough photos"):
        next(draws(labels, 8, 1))
    with pytest.raises(ValueError, match="7 of 7 people"):
        next(draws(labels[labels < 12], 7, 1))


def by_hand(vectors: Floats, labels: Indices, draw: Draw, cell: Cell) -> list[tuple[int, float]]:
    """The first candidate of each probe and its similarity."""
    photos, how = cell
    answers = []
    for probe in draw.probes:
        scores = {}
        for places in draw.gallery:
            cosines = [float(vectors[probe] @ vectors[place]) for place in places[:photos]]
            scores[int(labels[places[0]])] = max(cosines) if how == "best" else sum(cosines) / photos
        first = max(scores, key=lambda label: scores[label])
        answers.append((first, scores[first]))
    return answers


def test_a_gallerys_answers_are_those_of_a_plain_loop(tmp_path: Path) -> None:
    vectors, labels = people()
    draw = next(draws(labels, SUBJECTS, 1))
    gallery = EmbeddedGallery(tmp_path)
    answers = searched(gallery, "one", vectors, labels, draw)
    gallery.close()
    assert set(answers) == {(1, "best"), *((photos, how) for photos in (2, 3, 5) for how in ("best", "mean"))}
    for cell, answer in answers.items():
        expected = by_hand(vectors, labels, draw, cell)
        assert answer.candidate.tolist() == [label for label, _ in expected]
        assert answer.similarity == pytest.approx([value for _, value in expected], abs=1e-6)
        assert answer.person.tolist() == labels[draw.probes].tolist()
        assert answer.mated.tolist() == draw.mated.tolist()
    assert (answers[3, "best"].similarity > answers[3, "mean"].similarity).all()


def test_gain_is_the_difference_of_the_misses() -> None:
    best = found([0.9, 0.8, 0.4, 0.7, 0.5, 0.2], [True, False, True, False, False, False], [True] * 3 + [False] * 3)
    mean = replace(best, similarity=np.array([0.5, 0.8, 0.6, 0.3, 0.2, 0.1]))
    assert gain(mean.decided(0.6), best.decided(0.5)).value == 0
    assert gain(mean.decided(0.5), best.decided(0.5)).value == pytest.approx(-1 / 3)
    assert gain(mean.decided(0.55), best.decided(0.1)).value == pytest.approx(1 / 3)


def test_thresholds_are_those_of_the_rules() -> None:
    matching = calibrated()
    random = np.random.default_rng(1)
    calibrating = found(random.normal(size=400).tolist(), [True] * 400, [place < 100 for place in range(400)])
    levels = thresholds(matching, calibrating, 0.01, 20, 3)
    strangers = sorted(calibrating.similarity[100:].tolist(), reverse=True)
    assert strangers[3] < levels["counted"] <= strangers[2]  # 3 of 300
    # 1 - (1 - FMR)^N = FPIR, with N the subjects or all their faces.
    for rule, number in (("subjects", 20), ("faces", 60)):
        fmr = 1 - 0.99 ** (1 / number)
        assert levels[rule] == pytest.approx(matching.threshold(fmr).similarity, rel=1e-9)


def calibrated() -> Matching:
    random = np.random.default_rng(0)
    values = np.concatenate([random.normal(0.9, 0.1, 2000), random.normal(0.3, 0.2, 100_000)])
    return fit_matching(values[:2000], values[2000:], "a test")


@pytest.fixture
def studio(folders: Path) -> Path:
    """People of two sources in the splits that calibrate and test; an embedder of random weights."""
    random = np.random.default_rng(0)
    rows = []
    for name in (name for source in ("film", "street") for split in fusion.SPLITS for name in names(source, split)):
        colour = random.uniform(40, 215, 3)
        for _ in range(6 if int(name.rpartition(":")[2]) % 2 else 2):
            pixels = (colour + random.normal(0, 60, (16, 16, 3))).clip(0, 255).astype(np.uint8)
            rows.append({"image": {"bytes": encode(Image.fromarray(pixels)), "path": None}, "identity": name})
    (folders / "data/faces").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), folders / "data/faces/train.parquet")
    stem = {"depths": [1, 1], "widths": [8, 16], "stem": "small-pool", "shortcut": "projection"}
    config = {"backbone": "resnet20", "backbone_config": stem, "dimensions": 16, "image_size": 16}
    preprocess = Preprocess(size=(16, 16), mean=(127.5,) * 3, std=(127.5,) * 3)
    about = {"preprocess": preprocess, "tta": "flip", "matching": calibrated()}
    save(folders / "weights", "embedder", config, task="embed", **about)
    return folders


def names(source: str, split: str) -> Iterator[str]:
    """Six people whose numbers are odd and six whose numbers are even."""
    for parity in (0, 1):
        mine = (f"{source}:{number}" for number in count(parity, 2) if split_of(f"{source}:{number}") == split)
        yield from (next(mine) for _ in range(6))


def test_rows_are_those_of_a_plain_loop_from_photos_on(studio: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = (Source("film", 4, 6, 1), Source("street", 4, 6, 2))
    monkeypatch.setattr(fusion, "SOURCES", sources)
    monkeypatch.setattr(fusion, "PHOTOS", (1, 5))
    monkeypatch.setattr(fusion, "DRAWS", 1)
    arguments = ["run", "--weights", str(studio / "weights"), "--results", str(studio / "fusion.csv")]
    result = invoke(fusion.cli, *arguments)
    assert result.exit_code == 0, result.output
    rows = tables.read(studio / "fusion.csv")
    assert len(rows) == 2 * 2 * 3 * 3 * 2  # splits, sources, cells, rules, rates promised
    assert len(list((studio / "runs/cache").glob("fusion-*.npy"))) == 4

    embedder = FaceEmbedder(studio / "weights")
    images = data.load("faces", "train", embedder.card.preprocess)
    for source in sources:
        mine = [
            row
            for row, label in enumerate(images.labels)
            if images.classes[label].startswith(source.name) and split_of(images.classes[label]) == "test"
        ]
        chosen = taken(images.labels, np.array(mine), source)
        vectors, labels = embedder.rows(images, chosen).astype(np.float32), images.labels[chosen]
        several = list(draws(labels, source.subjects, 1))
        for row in rows:
            if (row["split"], row["source"]) == ("test", source.name):
                agrees(row, vectors, labels, several)


def agrees(row: dict[str, str], vectors: Floats, labels: Indices, several: list[Draw]) -> None:
    """The row's shares are those of a plain loop at its threshold."""
    (how,) = (known for known in fusion.FUSIONS if known == row["fusion"])
    cell, threshold = (int(row["photos"]), how), float(row["threshold"])
    alarms, misses, firsts = [], [], []
    for draw in several:
        answers = by_hand(vectors, labels, draw, cell)
        for probe, mated, (first, value) in zip(draw.probes, draw.mated, answers, strict=True):
            if mated:
                firsts.append(first == labels[probe])
                misses.append(first != labels[probe] or value < threshold)
            else:
                alarms.append(value >= threshold)
    assert int(row["mated"]) == len(misses)
    assert int(row["non_mated"]) == len(alarms)
    for name, events in (("rank1", firsts), ("fpir", alarms), ("fnir", misses)):
        # A similarity at the very threshold may be on either side, once rounded.
        assert float(row[name]) == pytest.approx(np.mean(events), abs=1.5 / len(events))
        assert float(row[f"{name}_low"]) <= float(row[name]) <= float(row[f"{name}_high"])
