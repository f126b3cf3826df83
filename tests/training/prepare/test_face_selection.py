"""The selection among the photos of one identity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from training.prepare.face_photos import JudgedPhoto, Outcome
from training.prepare.face_selection import SelectionRules, distances_from_median, select_photos


def judged(count: int, outcome: Outcome = "kept") -> list[JudgedPhoto]:
    return [JudgedPhoto("a", f"{i}.jpg", outcome, "", f"digest {i}", b"crop %d" % i) for i in range(count)]


def outcomes(photos: Sequence[JudgedPhoto]) -> list[str]:
    return [item.outcome for item in photos]


def test_duplicates_are_removed() -> None:
    photos = judged(4)
    photos[2] = replace(photos[2], digest=photos[0].digest)
    photos[3] = replace(photos[3], crop=photos[1].crop)
    settled = select_photos(photos, SelectionRules())
    assert outcomes(settled) == ["kept", "kept", "duplicate", "duplicate"]
    assert [item.reasons for item in settled[2:]] == ["of 0.jpg", "of 1.jpg"]


def test_removed_photos_have_no_duplicates() -> None:
    photos = [JudgedPhoto("a", f"{i}.jpg", "no-face") for i in range(3)] + judged(2)
    assert select_photos(photos, SelectionRules()) == photos


def test_a_person_with_too_few_photos_is_dropped() -> None:
    photos = [*judged(2), JudgedPhoto("a", "x.jpg", "no-face")]
    assert outcomes(select_photos(photos, SelectionRules(min_photos=2))) == ["kept", "kept", "no-face"]
    settled = select_photos(photos, SelectionRules(min_photos=3))
    assert outcomes(settled) == ["too-few", "too-few", "no-face"]
    assert settled[0].reasons == "2 left"
    assert outcomes(select_photos(judged(1), SelectionRules(min_photos=1))) == ["kept"]


def test_distances_agree_with_a_loop() -> None:
    vectors = np.random.default_rng(0).normal(size=(7, 5))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    middle = [sorted(vectors[:, column])[3] for column in range(5)]
    length = sum(value**2 for value in middle) ** 0.5
    expected = [1 - sum(a * b for a, b in zip(row, middle, strict=True)) / length for row in vectors]
    assert np.allclose(distances_from_median(vectors), expected)
    assert distances_from_median(np.array([[1.0, 0.0], [-1.0, 0.0]])).tolist() == [1, 1]


def with_vectors(*vectors: tuple[float, float]) -> list[JudgedPhoto]:
    return [replace(item, vector=vector) for item, vector in zip(judged(len(vectors)), vectors, strict=True)]


def test_outlier_among_three_is_removed() -> None:
    photos = with_vectors((1.0, 0.0), (0.0, -1.0), (0.96, 0.28))
    settled = select_photos(photos, SelectionRules(distance=0.5))
    assert outcomes(settled) == ["kept", "far", "kept"]
    assert settled[1].reasons == "1.000"
    assert outcomes(select_photos(photos, SelectionRules(distance=1.1))) == ["kept"] * 3
    assert outcomes(select_photos(photos, SelectionRules())) == ["kept"] * 3
    assert outcomes(select_photos(photos, SelectionRules(min_photos=3, distance=0.5))) == ["too-few", "far", "too-few"]


def test_two_different_photos_are_both_kept() -> None:
    selected = select_photos(with_vectors((1.0, 0.0), (0.0, 1.0)), SelectionRules(distance=0.1))
    assert outcomes(selected) == ["kept", "kept"]


def test_copies_of_an_outlier_count_once() -> None:
    photos = with_vectors((0.0, 1.0), (0.0, 1.0), (0.0, 1.0), (1.0, 0.0), (0.96, 0.28))
    photos[1:3] = [replace(item, digest=photos[0].digest) for item in photos[1:3]]
    selected = select_photos(photos, SelectionRules(distance=0.5))
    assert outcomes(selected) == ["far", "duplicate", "duplicate", "kept", "kept"]
