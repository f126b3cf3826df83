"""The open-set decision: which candidates are near enough that strangers are told to be somebody no oftener than asked.

ISO/IEC 19795-1: FPIR is the share of searches for somebody who is not enrolled that name a candidate nevertheless. A
stranger is compared with N faces. As if those comparisons were independent, FPIR = 1 - (1 - FMR)^N: the threshold is
that of the FMR which follows. Where a subject is as like as its likest face, N is the number of faces, not of subjects,
by which strangers are named up to three times as often as promised when each has five (docs/identification.md).
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]

from index.types import Match
from models.matching import Matching, Threshold

# Below a tenth of the smallest false match rate that was counted, nobody vouches for a match.
HONEST_SHARE = 0.1
# What a match is worth beside its margin, which may be none.
_A_MATCH = 1e-9
# Matches of each face that are read at first, besides twice the number of candidates asked for.
SPARE = 8


@dataclass(frozen=True)
class Decision:
    """Of one face: who it may be, likest first. `matched`: the first of them is the one."""

    matched: bool
    candidates: list[Match]


def of_each(rate: float, comparisons: int) -> float:
    """The false match rate of each of so many comparisons, at which this share of all those together has one or more.

    As if they were independent of one another.
    """
    if comparisons <= 1:
        return rate  # to the last digit: a calibration's largest rate must not become larger
    return -math.expm1(math.log1p(-rate) / comparisons)


@dataclass(frozen=True)
class Rule:
    """From which similarity on a candidate is a match, at which FMR. Without calibration nothing is known of either.

    `beyond`: the FMR is so small that nothing that was counted vouches for it.
    """

    fmr: float | None
    threshold: Threshold | None
    beyond: bool
    extrapolate: bool

    @classmethod
    def of(cls, matching: Matching | None, fpir: float, comparisons: int, *, extrapolate: bool = False) -> Rule:
        """The rule for so many comparisons of a face in one search.

        Where the FMR that follows is larger than any that was counted, the largest one counted stands for it, which
        alarms less often than asked.
        """
        if matching is None:
            return cls(None, None, beyond=False, extrapolate=extrapolate)
        fmr = min(of_each(fpir, comparisons), matching.points[0].fmr)
        return cls(fmr, matching.threshold(fmr), fmr < HONEST_SHARE * matching.counted, extrapolate)

    @property
    def decides(self) -> bool:
        """Whether it ever says match."""
        return self.threshold is not None and (self.extrapolate or not self.beyond)

    def decide(self, faces: Sequence[Sequence[Match]], *, repeated: bool) -> list[Decision]:
        """For each face of one picture, from its matches, likest first.

        Unless `repeated`, no subject is two faces of the picture: of all ways to give each face at most one subject
        that is near enough, that with the largest sum of margins over the threshold is taken.
        """
        if repeated:
            return [Decision(bool(found) and self.is_near(found[0]), list(found)) for found in faces]
        taken = self._assigned(faces)
        subjects = {match.subject.id for match in taken.values()}
        rest = [[match for match in found if match.subject.id not in subjects] for found in faces]
        return [
            Decision(True, [taken[face], *others]) if face in taken else Decision(False, others)
            for face, others in enumerate(rest)
        ]

    def _assigned(self, faces: Sequence[Sequence[Match]]) -> dict[int, Match]:
        near = {
            (face, match.subject.id): match
            for face, found in enumerate(faces)
            for match in found
            if self.is_near(match)
        }
        if self.threshold is None or not near:
            return {}
        columns = {subject: column for column, subject in enumerate(dict.fromkeys(subject for _, subject in near))}
        gains = np.zeros((len(faces), len(columns)))
        for (face, subject), match in near.items():
            gains[face, columns[subject]] = match.similarity - self.threshold.similarity + _A_MATCH
        subjects = list(columns)
        pairs = zip(*(places.tolist() for places in linear_sum_assignment(gains, maximize=True)), strict=True)
        return {face: near[face, subjects[column]] for face, column in pairs if (face, subjects[column]) in near}

    def is_near(self, match: Match) -> bool:
        """Whether a face may be this match's subject."""
        return self.decides and self.threshold is not None and match.similarity >= self.threshold.similarity


async def decide_by_steps(
    rule: Rule,
    faces: int,
    limit: int,
    read: Callable[[Sequence[int], int], Awaitable[list[list[Match]]]],
    decide: Callable[[list[list[Match]]], Awaitable[list[Decision]]],
    *,
    repeated: bool,
) -> list[Decision]:
    """Return for each of the picture's faces the same decision and the same first `limit` candidates as `Rule.decide`
    does from `limit + faces - 1` matches of each face, which always suffice since every other face takes one subject at
    most.

    `read(places, k)` returns the `k` likest matches of the faces at these places, fewer where there are no more;
    `decide` runs `Rule.decide`. Further matches are read only of faces whose answer may depend on them: the last match
    read is near enough, so that the next one may be, too; or other faces took so many subjects that fewer than `limit`
    are left, as of a group whose members are most of the collection. All others cost O(limit) matches, however many
    faces the picture has.
    """
    most = limit if repeated else limit + faces - 1
    k = min(most, 2 * limit + SPARE)
    matches = await read(range(faces), k)
    asked = [k] * faces
    while True:
        decisions = await decide(matches)
        short = [
            face
            for face, (found, decision) in enumerate(zip(matches, decisions, strict=True))
            if len(found) == asked[face] < most and (rule.is_near(found[-1]) or len(decision.candidates) < limit)
        ]
        if not short:
            return decisions
        k = min(most, 2 * k)
        for face, found in zip(short, await read(short, k), strict=True):
            matches[face], asked[face] = found, k
