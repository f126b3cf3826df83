"""Calibrate an embedder for one site: fit its thresholds to comparisons of photos of people who are not enrolled.

The card's thresholds hold for the photos of its data set. At another site the similarities of different people are
distributed differently, so that the rate of false matches is a multiple, or a small part, of the promised one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.matching import Matching, OperatingPoint
from models.matching_fit import MIN_FALSE_MATCHES, fit_logistic, fit_points, fit_tail

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

# Fewer people say nothing about the similarities that one person in a hundred reaches.
MIN_STRANGERS = 50
# Mated pairs with which the probability is fitted, too; with fewer its curve is only shifted.
MIN_MATED = 100
# The rate at which the card's thresholds and the site's determine that shift.
_SHIFT_RATE = 1e-3


class TooFewStrangersError(ValueError):
    """There are not enough photos of people who are not enrolled."""


def check_count(people: int) -> None:
    """Check that there are enough people who are not enrolled.

    Raises:
        TooFewStrangersError: it states how many are needed, and for which FPIR.
    """
    if people < MIN_STRANGERS:
        needed = "; ".join(
            f"{round(MIN_FALSE_MATCHES / fpir):,} count an FPIR of {fpir:g}" for fpir in (0.1, 0.01, 0.001)
        )
        raise TooFewStrangersError(
            f"{people} people who are not enrolled are too few for a calibration: it needs {MIN_STRANGERS} or more"
            f" ({needed}; with a tenth of them the rate is extrapolated)"
        )


@dataclass(frozen=True)
class ComparedStrangers:
    """Similarities [P] of photos of people who are not enrolled to photos of other people.

    `people` [P, 2]: the numbers of the two people of each pair.
    """

    similarities: Floats
    people: Indices

    def of_people(self, chosen: Indices) -> ComparedStrangers:
        """Return the pairs whose first person, and whose second person if a stranger too, is one of `chosen`."""
        strangers = self.people >= 0
        kept = (np.isin(self.people, chosen) | ~strangers).all(axis=1)
        return ComparedStrangers(self.similarities[kept], self.people[kept])


def fit_site(card: Matching, impostors: Floats, data: str, mated: Floats | None = None) -> Matching:
    """Return `card` with thresholds and tail of these non-mated similarities [P].

    With MIN_MATED similarities of mated pairs the probability is fitted to both. Otherwise its curve is shifted by the
    difference of the thresholds at an FMR of 0.001, so that a match at the threshold keeps its probability.

    Raises:
        ValueError: there are fewer than `matching_fit.MIN_IMPOSTORS` pairs, or mated pairs are not more similar.
    """
    impostors = np.sort(impostors)
    points, tail = fit_points(impostors), fit_tail(impostors)
    fitted = card.model_copy(update={"points": points, "tail": tail, "impostors": len(impostors), "data": data})
    if mated is not None and len(mated) >= MIN_MATED:
        slope, intercept = fit_logistic(mated, impostors, card.prior)
    else:
        shift = fitted.threshold(_SHIFT_RATE).similarity - card.threshold(_SHIFT_RATE).similarity
        slope, intercept = card.slope, card.intercept - card.slope * shift
    return fitted.model_copy(update={"slope": slope, "intercept": intercept})


def shift_passages(passages: Sequence[Matching], card: Matching, site: Matching) -> tuple[Matching, ...]:
    """Return the calibrations for passages, moved by the difference of the site's thresholds from the card's.

    At every rate the threshold of fused frames changes by as much as that of single faces.
    """
    return tuple(_shifted(passage, card, site) for passage in passages)


def _shifted(passage: Matching, card: Matching, site: Matching) -> Matching:
    def shift(rate: float) -> float:
        rate = min(rate, card.points[0].fmr, site.points[0].fmr)
        return site.threshold(rate).similarity - card.threshold(rate).similarity

    # The difference varies with the rate, but a threshold for fewer false matches is never lower.
    similarities = np.maximum.accumulate([point.similarity + shift(point.fmr) for point in passage.points]).tolist()
    points = [
        OperatingPoint(fmr=point.fmr, similarity=value)
        for point, value in zip(passage.points, similarities, strict=True)
    ]
    tail = passage.tail.model_copy(update={"start": passage.tail.start + shift(passage.counted)})
    intercept = passage.intercept - passage.slope * shift(_SHIFT_RATE)
    return passage.model_copy(
        update={"points": tuple(points), "tail": tail, "intercept": intercept, "data": f"{passage.data}; {site.data}"}
    )
