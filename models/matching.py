"""From the similarity of two embeddings to a decision: thresholds at a stated false match rate, and a probability.

What is stored in an embedder's card, and what serving asks of it. `training.metrics.verification` measures; here
nothing does.
"""

from __future__ import annotations

import math
from typing import Annotated, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Rate = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class OperatingPoint(_Part):
    """A similarity that `fmr` of the counted non-mated pairs reach."""

    fmr: Rate
    similarity: float


class Tail(_Part):
    """The similarities of strangers above `start`, which `rate` of them reach: a generalised Pareto distribution.

    Pickands, "Statistical Inference Using Extreme Order Statistics", Annals of Statistics 3, 1975: whatever the
    distribution, its excesses over a high threshold come near to this one.
    """

    start: float
    rate: Rate
    shape: float
    scale: Positive

    def similarity(self, fmr: float) -> float:
        """The similarity that a share `fmr` of strangers reach; `fmr` in 0..`rate`, above 0."""
        excess = math.log(self.rate / fmr)
        return self.start + self.scale * (math.expm1(self.shape * excess) / self.shape if self.shape else excess)

    def fmr(self, similarity: float) -> float:
        """The share of strangers that reach a similarity of at least `start`, 0..`rate`."""
        excess = (similarity - self.start) / self.scale
        if not self.shape:
            return self.rate * math.exp(-excess)
        # With a negative shape the distribution ends, and nothing lies beyond.
        base = max(0.0, 1 + self.shape * excess)
        return self.rate * base ** (-1 / self.shape) if base else 0.0


class Threshold(NamedTuple):
    """Pairs that reach `similarity` are accepted. `extrapolated`: no pairs were counted that far out."""

    similarity: float
    extrapolated: bool


class Matching(_Part):
    """How an embedder's similarities are read.

    `points` fall in FMR and rise in similarity; the last has the smallest FMR that was counted, and beyond it `tail`
    is said to be an extrapolation. The probability that two pictures show one person is logistic in the similarity, at
    the `prior` share of mated pairs.
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
            raise ValueError("the tail must begin where pairs were counted")
        return self

    @property
    def counted(self) -> float:
        """The smallest FMR that was counted."""
        return self.points[-1].fmr

    def threshold(self, fmr: float) -> Threshold:
        """Where to decide so that a share `fmr` of strangers is accepted.

        Between two counted rates the similarity is interpolated over the logarithm of the rate.

        Raises:
            ValueError: `fmr` not above 0, or above the largest rate that was counted.
        """
        if not 0 < fmr <= self.points[0].fmr:
            raise ValueError(f"the false match rate must be above 0 and at most {self.points[0].fmr:g}, not {fmr:g}")
        if fmr < self.counted:
            # Never below what was counted, wherever the tail was fitted.
            return Threshold(max(self.points[-1].similarity, self.tail.similarity(fmr)), extrapolated=True)
        for high, low in zip(self.points, self.points[1:], strict=False):
            if fmr >= low.fmr:
                share = math.log(high.fmr / fmr) / math.log(high.fmr / low.fmr)
                return Threshold(high.similarity + share * (low.similarity - high.similarity), extrapolated=False)
        raise AssertionError("the last point has the smallest rate")

    def probability(self, similarity: float) -> float:
        """The chance that both pictures show one person, 0..1."""
        return 0.5 * (1 + math.tanh((self.slope * similarity + self.intercept) / 2))
