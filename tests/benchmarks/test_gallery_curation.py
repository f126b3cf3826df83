"""The measures of `benchmarks.gallery.curation` agree with plain loops."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.gallery.curation import FMRS, bcubed, duplicates, halves, table
from tests.app.embedder import MATCHING


def test_bcubed_agrees_with_its_definition() -> None:
    rng = np.random.default_rng(0)
    people, clusters = rng.integers(0, 6, 40), rng.integers(-1, 8, 40)
    shares = []
    for mine in range(40):
        same = (clusters == clusters[mine]) & (clusters[mine] >= 0)
        same[mine] = True
        own = people == people[mine]
        shares.append(((same & own).sum() / same.sum(), (same & own).sum() / own.sum()))
    precision, recall = np.mean(shares, axis=0)
    expected = (precision, recall, 2 * precision * recall / (precision + recall))
    assert bcubed(clusters, people) == pytest.approx(expected)
    assert bcubed(people, people) == (1, 1, 1)


def test_identities_are_cut_in_two() -> None:
    people = np.repeat([0, 1, 2], [1, 4, 5])
    subjects = halves(people)
    assert (subjects // 2 == people).all()
    assert np.bincount(subjects, minlength=6).tolist() == [1, 0, 2, 2, 3, 2]


def test_duplicates_of_plain_people() -> None:
    people = np.repeat(np.arange(5), 4)
    vectors = np.eye(5, 8, dtype=np.float32)[people]
    found = list(duplicates(vectors, people, MATCHING))
    assert [row[0] for row in found] == list(FMRS)
    assert all(row[1:] == (5, 5, 5) for row in found)


def test_table_has_the_test_split_and_f1_of_the_other() -> None:
    def row(split: str, f1: str) -> dict[str, str]:
        return {
            **{"split": split, "what": "duplicates", "method": "0.1", "setting": "", "f1": f1},
            **{"proposed": "3", "precision": "0.5", "recall": "0.6"},
        }

    lines = table([row("calibrate", "0.7"), row("test", "0.8")], "duplicates", ["fmr", "pairs"]).splitlines()
    assert lines[2:] == ["| 0.1 | 3 | 0.5 | 0.6 | 0.8 | 0.7 |"]
