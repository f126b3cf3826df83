"""Evaluation protocols, on synthetic folders and on the real ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from training.core.errors import DataError, DatasetNotFoundError
from training.datasets.protocols import (
    orl_searches,
    random_search,
    read_lfw,
    read_orl,
    read_pairs,
    read_views,
)

# A hyphen sorts before the folder's slash, and numbers are padded in files only.
PHOTOS = {"Al": 3, "Al-Bo": 1, "Cy_D_Eve": 12}
VIEW_1 = "2\nAl\t1\t3\nCy_D_Eve\t2\t12\nAl\t2\tCy_D_Eve\t10\nAl-Bo\t1\tCy_D_Eve\t1\n"
VIEW_2 = (
    "3\t1\n"
    "Al\t1\t2\nAl\t1\tAl-Bo\t1\n"
    "Al\t2\t3\nCy_D_Eve\t3\tAl\t1\n"
    "Cy_D_Eve\t4\t11\nAl-Bo\t1\tAl\t3\n\n"  # their file ends so
)


@pytest.fixture
def lfw(tmp_path: Path) -> Path:
    for name, count in PHOTOS.items():
        (tmp_path / "lfw" / name).mkdir(parents=True)
        for number in range(1, count + 1):
            (tmp_path / "lfw" / name / f"{name}_{number:04d}.jpg").touch()
    (tmp_path / "pairsDevTest.txt").write_text(VIEW_1, encoding="utf-8-sig")  # as an editor may write it
    (tmp_path / "pairs.txt").write_text(VIEW_2)
    return tmp_path


def test_people_are_folders(lfw: Path) -> None:
    people = read_lfw(lfw)
    assert people.names == ("Al", "Al-Bo", "Cy_D_Eve")
    assert [people.names[label] for label in people.labels] == [path.parent.name for path in people.paths]
    assert np.bincount(people.labels).tolist() == list(PHOTOS.values())
    assert (np.diff(people.labels) >= 0).all()
    assert read_lfw(lfw / "lfw").paths == people.paths


def test_lists_have_pairs_of_both_kinds_in_folds(lfw: Path) -> None:
    people = read_lfw(lfw)
    names = {path.stem: number for number, path in enumerate(people.paths)}
    views = read_views(lfw, people)
    for text, (view, pairs) in zip((VIEW_1, VIEW_2), views.items(), strict=True):
        rows = [line.split() for line in text.split("\n")[1:] if line]
        stems = [(f"{row[0]}_{int(row[1]):04}", f"{row[-2 if len(row) == 4 else 0]}_{int(row[-1]):04}") for row in rows]
        assert pairs.positions.tolist() == [[names[stem] for stem in pair] for pair in stems], view
        assert pairs.mated.tolist() == [len(row) == 3 for row in rows]
    assert views["View 1"].fold is None
    fold = views["View 2"].fold
    assert fold is not None
    assert fold.tolist() == [0, 0, 1, 1, 2, 2]


def test_the_views_that_are_there(lfw: Path) -> None:
    assert list(read_views(lfw, read_lfw(lfw))) == ["View 1", "View 2"]
    (lfw / "pairsDevTest.txt").unlink()
    assert list(read_views(lfw, read_lfw(lfw))) == ["View 2"]
    (lfw / "pairs.txt").unlink()
    with pytest.raises(DatasetNotFoundError, match=r"neither pairsDevTest.txt nor pairs.txt"):
        read_views(lfw, read_lfw(lfw))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: expected the number of pairs"),
        ("1 2 3\n", "line 1: expected the number of pairs"),
        ("0\n", "expected 0 pairs"),
        ("1\nAl\t1\t2\n", "expected 2 pairs as line 1 says, found 1"),
        ("1\nAl\t1\tAl-Bo\t1\nAl\t1\t2\n", "line 2: expected person 1 2"),
        ("1\nAl\t1\t2\n\nAl\t1\tAl-Bo\t1\n", "expected 2 pairs as line 1 says, found 3"),
        ("1\nAl\t1\t2\nAl\t1\t3\n", "line 3: expected person 1 another 2"),
        ("1\nAl\t1\t4\nAl\t1\tAl-Bo\t1\n", "line 2: there is no image Al_0004"),
        ("1\nAl\t1\tx\nAl\t1\tAl-Bo\t1\n", "line 2: .* does not end in an image's number"),
    ],
)
def test_invalid_lists_are_refused(lfw: Path, text: str, message: str) -> None:
    (lfw / "pairs.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        read_pairs(lfw / "pairs.txt", read_lfw(lfw))


def test_missing_files_are_named(tmp_path: Path) -> None:
    for read, name in ((read_lfw, r"0001\.jpg"), (read_orl, r"s1/1\.pgm")):
        with pytest.raises(DatasetNotFoundError, match=name):
            read(tmp_path)
    (tmp_path / "A").mkdir()
    (tmp_path / "A/A_0001.jpg").touch()
    with pytest.raises(DataError, match="No such file"):
        read_pairs(tmp_path / "pairs.txt", read_lfw(tmp_path))


@pytest.fixture
def orl(tmp_path: Path) -> Path:
    for subject in (1, 2, 10):
        (tmp_path / f"s{subject}").mkdir()
        for number in range(1, 11):
            (tmp_path / f"s{subject}/{number}.pgm").touch()
    (tmp_path / "s1/notes.pgm").touch()
    return tmp_path


def test_orl_enrols_each_photo_in_turn(orl: Path) -> None:
    people = read_orl(orl)
    searches = list(orl_searches(people))
    assert len(searches) == 10
    for number, search in enumerate(searches, start=1):
        assert {people.paths[place].name for place in search.gallery} == {f"{number}.pgm"}
        assert len(search.gallery) == 3
        assert len(search.probes) == 27
        assert (people.labels[search.gallery[search.mates]] == people.labels[search.probes]).all()


def test_orl_with_a_photo_missing_is_refused(orl: Path) -> None:
    (orl / "s10/4.pgm").unlink()
    with pytest.raises(DataError, match="s10: expected 10 images"):
        read_orl(orl)


@pytest.mark.parametrize("enrolled", [1.0, 0.5])
def test_gallery_has_one_photo_per_enrolled_subject(enrolled: float) -> None:
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(40), random.integers(1, 6, 40))
    galleries = set()
    for _ in range(20):
        search = random_search(labels, random, enrolled)
        subjects = labels[search.gallery]
        galleries.add(tuple(search.gallery.tolist()))
        assert len(set(subjects.tolist())) == len(subjects) == 40 * enrolled
        assert sorted([*search.gallery, *search.probes]) == list(range(len(labels)))
        for probe, mate in zip(search.probes, search.mates, strict=True):
            assert (labels[probe] in subjects) == (mate >= 0)
            assert mate < 0 or subjects[mate] == labels[probe]
    assert len(galleries) == 20


def test_photos_and_subjects_are_drawn_evenly() -> None:
    random = np.random.default_rng(1)
    labels = np.array([0, 0, 0, 0, 1, 1, 2, 2])
    drawn = np.zeros(8)
    for _ in range(4000):
        drawn[random_search(labels, random, enrolled=1 / 3).gallery] += 1
    assert drawn / 4000 == pytest.approx([1 / 12] * 4 + [1 / 6] * 4, abs=0.02)


@pytest.mark.data
def test_real_folders_have_the_stated_content(datasets: Callable[[str], Path]) -> None:
    folder = datasets("lfw-view1")
    people = read_lfw(folder)
    assert (len(people.paths), len(people.names)) == (1549, 963)
    pairs = read_views(folder, people)["View 1"]
    assert pairs.mated.sum() == (~pairs.mated).sum() == 500
    assert ((people.labels[pairs.positions[:, 0]] == people.labels[pairs.positions[:, 1]]) == pairs.mated).all()
    subjects = read_orl(datasets("orl"))
    assert (len(subjects.paths), len(subjects.names)) == (400, 40)
