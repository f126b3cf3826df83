"""Decide by the similarity of two embeddings: thresholds at a given false match rate (FMR), and a probability.

`Matching` is stored in an embedder's card and used by serving. `training.metrics.verification` measures its values.
"""

from __future__ import annotations

import math
from typing import Annotated, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Rate = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]


class CardModel(BaseModel):
    """The base of all objects in a card: immutable, without unknown fields, and finite, since JSON has no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class OperatingPoint(CardModel):
    """The similarity that a share `fmr` of the counted non-mated pairs reaches."""

    fmr: Rate
    similarity: float


# `expm1` overflows above 709. The similarity at this limit is far above 1, so no pair reaches it.
_MAX_EXPONENT = 700.0


class Tail(CardModel):
    """A generalised Pareto distribution of non-mated similarities above `start`, which a share `rate` reaches.

    Pickands, "Statistical Inference Using Extreme Order Statistics", Annals of Statistics 3, 1975: the
    excesses of any distribution over a high threshold approach this distribution.
    """

    start: float
    rate: Rate
    shape: float
    scale: Positive

    def similarity(self, fmr: float) -> float:
        """The similarity that a share `fmr` of non-mated pairs reaches; `fmr` in 0..`rate`, above 0."""
        excess = math.log(self.rate / fmr)
        if not self.shape:
            return self.start + self.scale * excess
        return self.start + self.scale * math.expm1(min(self.shape * excess, _MAX_EXPONENT)) / self.shape

    def fmr(self, similarity: float) -> float:
        """The share of non-mated pairs that reach `similarity`, at least `start`: 0..`rate`."""
        excess = (similarity - self.start) / self.scale
        if not self.shape:
            return self.rate * math.exp(-excess)
        # With a negative shape the distribution has an upper end.
        base = max(0.0, 1 + self.shape * excess)
        return self.rate * base ** (-1 / self.shape) if base else 0.0


class Threshold(NamedTuple):
    """Pairs with at least `similarity` are accepted. `extrapolated`: the FMR is below all counted rates."""

    similarity: float
    extrapolated: bool


class Matching(CardModel):
    """The interpretation of an embedder's similarities.

    `points` fall in FMR and rise in similarity; the last has the smallest FMR that was counted. Below it `tail`
    extrapolates. The probability that two images show the same person is logistic in the similarity, for a share
    `prior` of mated pairs.
    """

    points: Annotated[tuple[OperatingPoint, ...], Field(min_length=2)]
    tail: Tail
    slope: Positive
    intercept: float
    prior: Rate = 0.5
    impostors: Annotated[int, Field(ge=1)]
    data: str

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        rates = [point.fmr for point in self.points]
        values = [point.similarity for point in self.points]
        if rates != sorted(set(rates), reverse=True) or values != sorted(values):
            raise ValueError("points must fall in FMR and rise in similarity")
        if self.tail.rate < self.counted:
            raise ValueError("the tail must begin at a rate that was counted")
        return self

    @property
    def counted(self) -> float:
        """The smallest FMR that was counted."""
        return self.points[-1].fmr

    def threshold(self, fmr: float) -> Threshold:
        """The threshold at which a share `fmr` of non-mated pairs is accepted.

        Between counted rates the similarity is interpolated linearly in the logarithm of the rate.

        Raises:
            ValueError: if `fmr` is not above 0, or is above the largest rate that was counted.
        """
        if not 0 < fmr <= self.points[0].fmr:
            raise ValueError(f"the false match rate must be above 0 and at most {self.points[0].fmr:g}, not {fmr:g}")
        if fmr < self.counted:
            # At least the counted thresholds, even if the tail fits badly.
            return Threshold(max(self.points[-1].similarity, self.tail.similarity(fmr)), extrapolated=True)
        for high, low in zip(self.points, self.points[1:], strict=False):
            if fmr >= low.fmr:
                share = math.log(high.fmr / fmr) / math.log(high.fmr / low.fmr)
                return Threshold(high.similarity + share * (low.similarity - high.similarity), extrapolated=False)
        raise AssertionError("the last point has the smallest rate")

    def probability(self, similarity: float) -> float:
        """The probability that both images show the same person, 0..1."""
        return 0.5 * (1 + math.tanh((self.slope * similarity + self.intercept) / 2))
