"""The open-set decision: decide which candidates match, with at most the caller's rate of false matches.

ISO/IEC 19795-1: FPIR is the share of searches for people who are not enrolled that return a match. Such a person is
compared with N faces. If those comparisons are independent, FPIR = 1 - (1 - FMR)^N, which gives the FMR of the
threshold. If a subject's similarity is that of its nearest face, N is the number of faces. With the number of subjects,
the FPIR would be up to three times too high at five faces per subject (docs/identification.md).

The thresholds are those of the embedder's card, or of a collection's calibration on site.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]

from index.types import Calibration, Match
from models.card import ModelCard
from models.matching import Matching, Threshold
from models.site_calibration import shift_passages

# A false match rate below this share of the smallest one that was counted is beyond the calibration.
MIN_COUNTED_SHARE = 0.1
# Gain of an assignment besides its margin over the threshold, which may be 0.
_MATCH_GAIN = 1e-9
# Matches of each face that are read first, besides twice the number of candidates to return.
SPARE_MATCHES = 8


@dataclass(frozen=True)
class CollectionThresholds:
    """How similarities are interpreted: of two faces, and of the fused frames of passages; see `ModelCard`."""

    matching: Matching | None
    passages: tuple[Matching, ...]


def collection_thresholds(card: ModelCard, calibration: Calibration | None) -> CollectionThresholds:
    """Return the thresholds of a collection with this embedder and this calibration in use."""
    if calibration is None or card.matching is None:
        return CollectionThresholds(card.matching, card.passages)
    return _of_site(card.sha256, card.matching, card.passages, calibration.data)


@lru_cache(maxsize=64)
def _of_site(weights: str, matching: Matching, passages: tuple[Matching, ...], data: str) -> CollectionThresholds:
    """`weights` is the card's hash, by which the cache distinguishes cards."""
    site = Matching.model_validate(json.loads(data)["matching"])
    return CollectionThresholds(site, shift_passages(passages, matching, site))


@dataclass(frozen=True)
class Decision:
    """The candidates of a face, most similar first. `matched`: the first of them is a match."""

    matched: bool
    candidates: list[Match]


def rate_per_comparison(rate: float, comparisons: int) -> float:
    """Return the per-comparison false match rate at which a share `rate` of searches has a false match.

    Each search makes `comparisons` comparisons, which count as independent of one another.
    """
    if comparisons <= 1:
        return rate  # exactly: a calibration's largest rate must not become larger
    # The quotient may underflow to 0, which is no rate.
    return max(-math.expm1(math.log1p(-rate) / comparisons), math.ulp(0.0))


@dataclass(frozen=True)
class DecisionRule:
    """The lowest similarity at which a candidate matches, and its false match rate; both None without `matching`.

    `beyond_calibration`: the rate is smaller than the calibration's data can confirm.
    """

    matching: Matching | None
    fmr: float | None
    threshold: Threshold | None
    beyond_calibration: bool
    extrapolate: bool

    @classmethod
    def for_comparisons(
        cls, matching: Matching | None, fpir: float, comparisons: int, *, extrapolate: bool = False
    ) -> DecisionRule:
        """Return the rule for a search that makes `comparisons` comparisons per face.

        A false match rate above the largest counted rate is replaced by that rate, so that the FPIR is lower than
        `fpir`.
        """
        if matching is None:
            return cls(None, None, None, beyond_calibration=False, extrapolate=extrapolate)
        fmr = min(rate_per_comparison(fpir, comparisons), matching.points[0].fmr)
        return cls(matching, fmr, matching.threshold(fmr), fmr < MIN_COUNTED_SHARE * matching.counted, extrapolate)

    @property
    def can_match(self) -> bool:
        """Whether any candidate can match."""
        return self.threshold is not None and (self.extrapolate or not self.beyond_calibration)

    def is_match(self, candidate: Match) -> bool:
        """Return whether the candidate is similar enough to match."""
        return self.can_match and self.threshold is not None and candidate.similarity >= self.threshold.similarity

    def decide(self, faces: Sequence[Sequence[Match]], *, repeated: bool) -> list[Decision]:
        """Return the decision for each face of an image, given its candidates, most similar first.

        Unless `repeated`, no two faces of the image match the same subject: of all assignments of subjects to faces,
        the one with the largest sum of margins over the threshold is chosen.
        """
        if repeated:
            return [
                Decision(bool(candidates) and self.is_match(candidates[0]), list(candidates)) for candidates in faces
            ]
        assigned = self._assign(faces)
        subjects = {match.subject.id for match in assigned.values()}
        unassigned = [[match for match in candidates if match.subject.id not in subjects] for candidates in faces]
        return [
            Decision(True, [assigned[face], *candidates]) if face in assigned else Decision(False, candidates)
            for face, candidates in enumerate(unassigned)
        ]

    def _assign(self, faces: Sequence[Sequence[Match]]) -> dict[int, Match]:
        """Return the match of each face that has one, by the face's position."""
        matches = {
            (face, match.subject.id): match
            for face, candidates in enumerate(faces)
            for match in candidates
            if self.is_match(match)
        }
        if self.threshold is None or not matches:
            return {}
        subjects = list(dict.fromkeys(subject for _, subject in matches))
        columns = {subject: column for column, subject in enumerate(subjects)}
        gains = np.zeros((len(faces), len(columns)))
        for (face, subject), match in matches.items():
            gains[face, columns[subject]] = match.similarity - self.threshold.similarity + _MATCH_GAIN
        rows, chosen = (positions.tolist() for positions in linear_sum_assignment(gains, maximize=True))
        pairs = [(face, subjects[column]) for face, column in zip(rows, chosen, strict=True)]
        return {face: matches[face, subject] for face, subject in pairs if (face, subject) in matches}


def decide_by_steps(
    rule: DecisionRule,
    faces: int,
    limit: int,
    read: Callable[[Sequence[int], int], list[list[Match]]],
    *,
    repeated: bool,
) -> list[Decision]:
    """Return the decision for each face of an image, reading no more candidates than needed.

    The decisions and their first `limit` candidates are those of `DecisionRule.decide` on `limit + faces - 1`
    candidates per face, which are always enough, since each other face takes at most one subject. `read(faces, k)`
    returns the `k` most similar subjects of the faces at these positions, or all if there are fewer.

    More candidates are read only for faces whose result may depend on them: the last candidate read matches, so the
    next may match, too; or fewer than `limit` candidates are left, because other faces took the rest. Each other face
    costs O(limit) candidates, independent of the number of faces.
    """
    if not faces:
        return []
    most = limit if repeated else limit + faces - 1
    k = min(most, 2 * limit + SPARE_MATCHES)
    candidates = read(range(faces), k)
    counts = [k] * faces
    while True:
        decisions = rule.decide(candidates, repeated=repeated)
        incomplete = [
            face
            for face, (matches, decision) in enumerate(zip(candidates, decisions, strict=True))
            if len(matches) == counts[face] < most and (rule.is_match(matches[-1]) or len(decision.candidates) < limit)
        ]
        if not incomplete:
            return decisions
        k = min(most, 2 * k)
        for face, matches in zip(incomplete, read(incomplete, k), strict=True):
            candidates[face], counts[face] = matches, k
