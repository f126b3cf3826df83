"""Fused vectors against plain sums, and the choice of one person's vectors."""

from __future__ import annotations

import numpy as np
import pytest

from models.align import Quality
from models.passages import fuse, quality_weight, same_person
from tests.app.embedder import MATCHING


def unit(*values: float) -> list[float]:
    return list(np.array(values) / np.linalg.norm(values))


def test_fused_vector_is_the_direction_of_the_weighted_sum() -> None:
    random = np.random.default_rng(0)
    vectors = random.normal(size=(4, 8))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    weights = np.array([1.0, 0.5, 0.25, 0.1])
    expected = sum(weight * vector for weight, vector in zip(weights, vectors, strict=True))
    assert fuse(vectors, weights) == pytest.approx(expected / np.linalg.norm(expected))
    assert fuse(vectors[:1], weights[1:2]) == pytest.approx(vectors[0])


def test_opposite_vectors_have_no_fused_vector() -> None:
    with pytest.raises(ValueError, match="cancel out"):
        fuse(np.array([[1.0, 0.0], [-1.0, 0.0]]), np.ones(2))


def test_sharper_faces_weigh_more_up_to_a_limit() -> None:
    weights = [
        quality_weight(Quality(side=90, sharpness=sharpness, yaw=0, pitch=0.5, brightness=120, confidence=0.9))
        for sharpness in (0.0, 0.001, 0.02, 0.04, 1.0, 2.0)
    ]
    assert weights == sorted(weights)
    assert weights[0] > 0
    assert weights[1] < weights[2] < weights[3]
    assert weights[-1] == weights[-2] == 1


def test_vectors_of_other_people_are_left_out() -> None:
    person = [unit(1, 0.2, 0), unit(1, 0, 0.2), unit(1, -0.1, 0.1)]
    others = [unit(0, 1, 0), unit(0, 0.1, -1)]
    vectors = np.array([others[0], *person, others[1]])
    assert same_person(vectors, np.ones(5), MATCHING).tolist() == [False, True, True, True, False]
    assert same_person(vectors[1:4], np.ones(3), MATCHING).all()


def test_of_two_different_people_the_face_of_greater_weight_is_kept() -> None:
    vectors = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert same_person(vectors, np.array([0.5, 1.0]), MATCHING).tolist() == [False, True]
    assert same_person(vectors, np.array([1.0, 0.5]), MATCHING).tolist() == [True, False]
    assert same_person(vectors[:1], np.ones(1), MATCHING).tolist() == [True]
