"""Splits and pairs of faces, on synthetic identities and on the real data set."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.training.conftest import GREY, write_identities
from training.core.errors import DataError
from training.datasets import images as data
from training.datasets.faces import draw_pairs, impostor_pairs, mated_pairs, rows_of, source_of, split_of
from training.datasets.images import ImageSet


def people(counts: dict[str, int]) -> ImageSet:
    """So many pictures of each identity, in a shuffled order."""
    labels = np.repeat(np.arange(len(counts)), list(counts.values()))
    labels = np.random.default_rng(0).permutation(labels)
    return ImageSet(np.zeros((len(labels), 1, 1, 3), np.uint8), labels, tuple(counts))


def crowd() -> ImageSet:
    return people({f"{source}:{i}": 1 + i % 5 for source in ("film", "street") for i in range(150)})


def test_split_depends_only_on_the_name() -> None:
    # These stay what they are, whatever else is in the set: a card's figures depend on it.
    # By sha256sum's first 16 digits: 98, 78, 81 and 92 of a hundred.
    names = ("pins:a", "pins:b", "pins:21", "fiw:7")
    assert [split_of(name) for name in names] == ["test", "train", "calibrate", "test"]


def test_splits_share_no_identity_and_have_their_shares_of_each_source() -> None:
    faces = crowd()
    rows = {split: rows_of(faces, split) for split in ("train", "calibrate", "test")}
    assert np.array_equal(np.sort(np.concatenate(list(rows.values()))), np.arange(len(faces.labels)))
    names = {split: {faces.classes[i] for i in faces.labels[chosen]} for split, chosen in rows.items()}
    assert not any(a & b for a, b in itertools.combinations(names.values(), 2))
    for source in ("film", "street"):
        assert 0.7 < sum(source_of(name) == source for name in names["train"]) / 150 < 0.9


def test_mated_pairs_are_of_one_person_and_none_comes_twice() -> None:
    faces = crowd()
    rows = rows_of(faces, "test")
    pairs = mated_pairs(faces, rows, most=4, seed=1)
    assert (faces.labels[pairs[:, 0]] == faces.labels[pairs[:, 1]]).all()
    assert np.isin(pairs, rows).all()
    assert len({frozenset(pair) for pair in pairs.tolist()}) == len(pairs)
    sizes = Counter(faces.labels[rows].tolist())
    drawn = Counter(faces.labels[pairs[:, 0]].tolist())
    assert {i: min(4, n * (n - 1) // 2) for i, n in sizes.items() if n > 1} == dict(drawn)


def test_impostor_pairs_are_of_two_people_of_one_source() -> None:
    faces = crowd()
    rows = rows_of(faces, "train")
    pairs = impostor_pairs(faces, rows, 2000, seed=1)
    assert len(pairs) == 2000
    assert (faces.labels[pairs[:, 0]] != faces.labels[pairs[:, 1]]).all()
    assert np.isin(pairs, rows).all()
    assert len({tuple(pair) for pair in pairs.tolist()}) == 2000
    sources = [[source_of(faces.classes[faces.labels[row]]) for row in pair] for pair in pairs]
    assert all(a == b for a, b in sources)
    assert 0.35 < sum(a == "film" for a, _ in sources) / 2000 < 0.65


def test_source_shares_are_those_of_the_whole_set() -> None:
    """Ten of its people have many photos, and are in this split by chance."""
    sizes = {f"film:{i}": 4 for i in range(200)} | {f"street:{i}": 40 if i < 10 else 2 for i in range(210)}
    faces = people(sizes)
    names = np.array(faces.classes)[faces.labels]
    chosen = {f"film:{i}" for i in range(20)} | {f"street:{i}" for i in range(10)}
    rows = np.flatnonzero([name in chosen for name in names])
    of_street = np.char.startswith(names, "street")
    assert (of_street.mean(), of_street[rows].mean()) == (0.5, pytest.approx(0.83, abs=0.01))
    pairs = impostor_pairs(faces, rows, 1000, seed=1)
    assert of_street[pairs[:, 0]].mean() == pytest.approx(0.5, abs=0.05)


def test_the_same_seed_draws_the_same_pairs() -> None:
    faces = crowd()
    rows = rows_of(faces, "train")
    for draw in (mated_pairs, impostor_pairs):
        assert np.array_equal(draw(faces, rows, 50, 3), draw(faces, rows, 50, 3))
        assert not np.array_equal(draw(faces, rows, 50, 3), draw(faces, rows, 50, 4))


def test_drawn_pairs_have_mated_ones_first_and_the_cosines_of_their_rows() -> None:
    faces = crowd()
    rows = rows_of(faces, "calibrate")
    pairs = draw_pairs(faces, rows, mated=3, impostors=40, seed=1)
    labels = faces.labels[pairs.rows]
    assert np.array_equal(pairs.mated, labels[:, 0] == labels[:, 1])
    assert np.array_equal(pairs.mated, np.sort(pairs.mated)[::-1])
    assert np.array_equal(pairs.rows[pairs.mated], mated_pairs(faces, rows, 3, 1))
    assert np.array_equal(rows[pairs.positions(rows)], pairs.rows)
    vectors = np.random.default_rng(0).normal(size=(len(faces.labels), 4))
    expected = [vectors[a] @ vectors[b] for a, b in pairs.rows]
    assert pairs.similarities(vectors[rows], rows) == pytest.approx(expected)
    with pytest.raises(DataError, match="two images"):
        draw_pairs(people({"film:a": 1, "film:b": 1}), np.arange(2), 3, 40, seed=1)
    with pytest.raises(DataError, match="two identities"):
        draw_pairs(people({"film:a": 5, "street:a": 5}), np.arange(10), 3, 40, seed=1)


def test_a_row_without_identity_is_refused(folders: Path) -> None:
    image = Image.new("L", (28, 28))
    write_identities(folders / "data/faces/train.parquet", [(image, "a:b"), (image, None)])
    with pytest.raises(DataError, match="row 1: label -1"):
        data.load("faces", "train", GREY)


@pytest.mark.data
def test_real_data_set_has_the_stated_identities(
    datasets: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VESTIBULE_DATASETS", str(datasets("faces").parent))
    source = data.find("faces", "train")
    assert (source.count, len(source.classes)) == (56_663, 6_441)
    shares = Counter(split_of(identity) for identity in source.classes)
    assert 0.78 < shares["train"] / 6_441 < 0.82
    assert min(shares["calibrate"], shares["test"]) > 550
