"""Open-set decisions, compared with all possible assignments and with decisions on all candidates."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from app.gallery.open_set import Decision, DecisionRule, decide_by_steps, rate_per_comparison
from index.types import Match, Subject
from tests.app.embedder import MATCHING


def match(subject: int, similarity: float) -> Match:
    return Match(Subject(subject, str(subject), None, {}, 0.0, None), similarity, "")


def subject_ids(decision: Decision) -> list[int]:
    return [candidate.subject.id for candidate in decision.candidates]


@pytest.fixture
def rule() -> DecisionRule:
    return DecisionRule.for_comparisons(MATCHING, 0.1, 1)


def test_threshold_depends_on_the_number_of_comparisons() -> None:
    few, many = (DecisionRule.for_comparisons(MATCHING, 0.01, comparisons) for comparisons in (1, 10))
    assert few.fmr == pytest.approx(0.01)
    assert many.fmr is not None
    assert 1 - (1 - many.fmr) ** 10 == pytest.approx(0.01)
    beyond = DecisionRule.for_comparisons(MATCHING, 0.01, 1000)
    assert beyond.beyond_calibration
    assert not beyond.decide([[match(1, 1.0)]], repeated=False)[0].matched
    extrapolating = DecisionRule.for_comparisons(MATCHING, 0.01, 1000, extrapolate=True)
    assert extrapolating.decide([[match(1, 1.0)]], repeated=False)[0].matched
    assert DecisionRule.for_comparisons(MATCHING, 0.9, 1).fmr == 0.1


@pytest.mark.parametrize("comparisons", [1, 2, 10**7])
@pytest.mark.parametrize("shape", [-0.1, 0.0, 1.5])
def test_tiny_rates_are_marked_as_beyond_the_calibration(comparisons: int, shape: float) -> None:
    matching = MATCHING.model_copy(update={"tail": MATCHING.tail.model_copy(update={"shape": shape})})
    for fpir in (5e-324, 1e-300):
        assert 0 < rate_per_comparison(fpir, comparisons) <= fpir
        rule = DecisionRule.for_comparisons(matching, fpir, comparisons)
        assert rule.beyond_calibration
        assert not rule.can_match


def test_similarity_equal_to_the_threshold_is_a_match(rule: DecisionRule) -> None:
    assert rule.threshold is not None
    at, below, nobody = rule.decide(
        [[match(1, rule.threshold.similarity)], [match(2, rule.threshold.similarity - 1e-6)], []], repeated=False
    )
    assert (at.matched, below.matched) == (True, False)
    assert (nobody.matched, nobody.candidates) == (False, [])


def best_sum(similarities: np.ndarray[Any, np.dtype[np.float64]], threshold: float) -> float:
    """The largest sum of margins over all assignments of at most one subject to each face."""
    faces, subjects = similarities.shape
    assignments = itertools.permutations([*range(subjects), *([None] * faces)], faces)
    gains = np.where(similarities >= threshold, similarities - threshold, -np.inf)
    return max(
        sum(float(gains[face, subject]) for face, subject in enumerate(assignment) if subject is not None)
        for assignment in assignments
    )


def test_assignment_maximises_the_sum_of_margins(rule: DecisionRule) -> None:
    assert rule.threshold is not None
    threshold = rule.threshold.similarity
    generator = np.random.default_rng(0)
    for _ in range(60):
        similarities = generator.uniform(-0.2, 1, size=(3, 3))
        faces = [sorted(itertools.starmap(match, enumerate(row)), key=lambda m: -m.similarity) for row in similarities]
        decisions = rule.decide(faces, repeated=False)
        matches = [decision.candidates[0] for decision in decisions if decision.matched]
        matched_subjects = {candidate.subject.id for candidate in matches}
        assert len(matched_subjects) == len(matches)
        assert sum(m.similarity - threshold for m in matches) == pytest.approx(best_sum(similarities, threshold))
        for decision, row in zip(decisions, similarities, strict=True):
            own = {decision.candidates[0].subject.id} if decision.matched else set()
            assert set(subject_ids(decision)) == set(range(3)) - (matched_subjects - own)
            assert all(candidate.similarity == row[candidate.subject.id] for candidate in decision.candidates)


def run_by_steps(
    rule: DecisionRule, faces: list[list[Match]], limit: int, *, repeated: bool
) -> tuple[list[tuple[bool, list[Match]]], int]:
    """The decisions with their first `limit` candidates, and how many candidates were read for them."""
    count = 0

    def read(positions: Sequence[int], k: int) -> list[list[Match]]:
        nonlocal count
        candidates = [faces[position][:k] for position in positions]
        count += sum(map(len, candidates))
        return candidates

    decisions = decide_by_steps(rule, len(faces), limit, read, repeated=repeated)
    return [(decision.matched, decision.candidates[:limit]) for decision in decisions], count


@pytest.mark.parametrize("repeated", [False, True])
@pytest.mark.parametrize("scale", [0.05, 0.3, 1.0])  # few pairs match, some, most
def test_reading_candidates_in_steps_gives_the_same_decisions(rule: DecisionRule, scale: float, repeated: bool) -> None:
    generator = np.random.default_rng(0)
    for limit, count, subjects in [(1, 40, 60), (2, 40, 30), (5, 60, 200), (1, 1, 5), (3, 25, 2)]:
        # Rounded, so that there are ties; each face is similar to at least one subject.
        table = (generator.normal(0, scale, size=(count, subjects)) + 0.1 * (scale < 1)).clip(-1, 1).round(2)
        table[range(count), generator.integers(subjects, size=count)] = 0.95
        faces = [
            sorted(itertools.starmap(match, enumerate(map(float, row))), key=lambda m: -m.similarity) for row in table
        ]
        decisions = rule.decide([candidates[: limit + count - 1] for candidates in faces], repeated=repeated)
        expected = [(decision.matched, decision.candidates[:limit]) for decision in decisions]
        assert run_by_steps(rule, faces, limit, repeated=repeated)[0] == expected


def test_number_of_candidates_read_is_linear_in_the_number_of_faces(rule: DecisionRule) -> None:
    generator = np.random.default_rng(0)
    counts = []
    for count in (50, 200):
        faces = []
        for face in range(count):  # similar to its own subject only
            others = generator.permutation(np.setdiff1d(np.arange(10 * count), face)).tolist()
            faces.append([match(face, 0.9), *(match(subject, 0.0) for subject in others)])
        decisions, read = run_by_steps(rule, faces, 5, repeated=False)
        assert [candidates[0].subject.id for _, candidates in decisions] == list(range(count))
        counts.append(read)
    assert counts[1] < 5 * counts[0]
