"""Figures of verification (1:1) and identification (1:N) in ISO/IEC 19795's words, from similarities.

A pair is accepted if its similarity reaches the threshold. FMR is the share of non-mated pairs (of two people) that are
accepted, FNMR the share of mated pairs (of one person) that are not, TAR its complement. Similarities may be on any
scale, larger for more similar; all arrays are one-dimensional and finite.

A search compares a probe with every photo of a gallery. It is mated when the probe's subject is enrolled. FPIR is the
share of non-mated searches in which any candidate reaches the threshold; FNIR is the share of mated ones in which the
subject's own photo is not the first candidate, or does not reach the threshold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from models.bootstrap import rate_interval, resampled
from models.matching_fit import lowest_threshold
from training.core.seeds import derive

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Scores:
    """Similarities of mated and of non-mated pairs, both ascending.

    Raises:
        ValueError: one of them is empty or not finite.
    """

    mated: Floats
    impostor: Floats

    @classmethod
    def of(cls, similarities: npt.ArrayLike, same: npt.ArrayLike) -> Scores:
        """Build from the similarity of each pair [N] and whether it is mated [N]."""
        values, mated = np.asarray(similarities, np.float64), np.asarray(same, bool)
        if values.shape != mated.shape or values.ndim != 1:
            raise ValueError(f"expected two arrays [N], got {list(values.shape)} and {list(mated.shape)}")
        scores = cls(np.sort(values[mated]), np.sort(values[~mated]))
        if not len(scores.mated) or not len(scores.impostor) or not np.isfinite(values).all():
            raise ValueError("verification needs mated and non-mated pairs, all with finite similarities")
        return scores

    def fmr(self, threshold: float) -> float:
        """Return the share of non-mated pairs that are accepted, 0..1."""
        return 1 - float(np.searchsorted(self.impostor, threshold, side="left")) / len(self.impostor)

    def fnmr(self, threshold: float) -> float:
        """Return the share of mated pairs that are rejected, 0..1."""
        return float(np.searchsorted(self.mated, threshold, side="left")) / len(self.mated)

    def threshold_at(self, fmr: float) -> float:
        """Return the lowest threshold whose FMR is at most `fmr` (0..1), see `lowest_threshold`."""
        return lowest_threshold(self.impostor, fmr)

    def tar(self, fmr: float) -> float:
        """Return the share of mated pairs that are accepted at `threshold_at(fmr)`, 0..1."""
        return 1 - self.fnmr(self.threshold_at(fmr))

    def eer(self) -> float:
        """Return the equal error rate, 0..1: the mean of FMR and FNMR where they are nearest to each other."""
        fmr, fnmr = self.curve()
        nearest = int(np.argmin(abs(fmr - fnmr)))
        return float(fmr[nearest] + fnmr[nearest]) / 2

    def curve(self) -> tuple[Floats, Floats]:
        """Return FMR [K] and FNMR [K], 0..1, at each distinct similarity, ascending: a ROC or DET curve."""
        thresholds = np.unique(np.concatenate([self.mated, self.impostor]))
        fmr = 1 - np.searchsorted(self.impostor, thresholds, side="left") / len(self.impostor)
        return fmr, np.searchsorted(self.mated, thresholds, side="left") / len(self.mated)


def best_threshold(similarities: Floats, same: Flags) -> float:
    """Return the threshold with the most correct decisions, midway between two similarities; the lowest in a tie."""
    order = np.argsort(similarities, kind="stable")
    values, mated = similarities[order], same[order]
    # Correct decisions for a threshold below all values, between two neighbours, and above all.
    correct = np.concatenate([[mated.sum()], mated.sum() + np.cumsum(np.where(mated, -1, 1))])
    edges = np.concatenate([[values[0] - 1], values, [values[-1] + 1]])
    possible = edges[1:] > edges[:-1]  # no threshold separates equal values
    best = int(np.argmax(np.where(possible, correct, -1)))
    return float((edges[best] + edges[best + 1]) / 2)


def cross_validated_accuracy(similarities: npt.ArrayLike, same: npt.ArrayLike, folds: int = 10) -> tuple[float, float]:
    """Return (mean, standard error) of the accuracy over folds; each uses the best threshold of all other folds.

    As in LFW's protocol. Mated and non-mated pairs are assigned to the folds in turn, so that all have the same shares.

    Raises:
        ValueError: fewer pairs of a kind than folds.
    """
    values, mated = np.asarray(similarities, np.float64), np.asarray(same, bool)
    if min(mated.sum(), (~mated).sum()) < folds:
        raise ValueError(f"{folds} folds need as many mated and as many non-mated pairs")
    number = np.where(mated, np.cumsum(mated), np.cumsum(~mated)) - 1  # of each pair among those of its kind
    return accuracy_over_folds(values, mated, number % folds)


def accuracy_over_folds(similarities: Floats, same: Flags, fold: Indices) -> tuple[float, float]:
    """Return the result of `cross_validated_accuracy` for the folds `fold` [N], the number of each pair's fold.

    Raises:
        ValueError: there is only one fold.
    """
    numbers = np.unique(fold)
    if len(numbers) < 2:
        raise ValueError("cross-validation needs at least two folds, got 1")
    accuracies = []
    for held_out in numbers:
        test = fold == held_out
        threshold = best_threshold(similarities[~test], same[~test])
        accuracies.append(float(((similarities[test] >= threshold) == same[test]).mean()))
    return float(np.mean(accuracies)), float(np.std(accuracies, ddof=1) / np.sqrt(len(numbers)))


def fmr_interval(
    accepted: Flags, identities: Indices, *, draws: int = 1000, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Return the confidence interval (low, high) of the FMR, 0..1; see `bootstrap.rate_interval`.

    `accepted` [P]: whether each non-mated pair was accepted. `identities` [P, 2]: the people of each pair.
    """
    return rate_interval(accepted, identities, _bootstrap(seed), draws=draws, level=level)


def _bootstrap(seed: int) -> np.random.Generator:
    return np.random.default_rng(derive(seed, "bootstrap"))


class Reliability(NamedTuple):
    """The reliability diagram of the bins that are not empty, by rising probability: arrays [B], all 0..1.

    `predicted` is the mean probability, `observed` the share of mated pairs with the interval `low` to `high`, `weight`
    the bin's share of all pairs.
    """

    predicted: Floats
    observed: Floats
    low: Floats
    high: Floats
    weight: Floats

    @property
    def error(self) -> float:
        """Expected calibration error, 0..1."""
        return float(self.weight @ abs(self.predicted - self.observed))


def reliability(
    probabilities: Floats, identities: Indices, prior: float, *, bins: int = 10, draws: int = 500, seed: int = 0
) -> Reliability:
    """Compare the probabilities [P] that pairs are mated with the share that is mated, in bins of equal width.

    `identities` [P, 2] are those of a pair's images. Mated pairs are weighted to be the share `prior` of all.
    Intervals contain 95 % of the draws of a bootstrap over identities.

    Raises:
        ValueError: no mated or no non-mated pairs.
    """
    same = identities[:, 0] == identities[:, 1]
    if same.all() or not same.any():
        raise ValueError("reliability needs mated and non-mated pairs")
    bin_numbers = np.minimum((probabilities * bins).astype(np.int64), bins - 1)

    def binned(values: Floats, counts: Floats) -> Floats:
        share = np.where(same, prior / counts[same].sum(), (1 - prior) / counts[~same].sum())
        return np.asarray(np.bincount(bin_numbers, values * counts * share, minlength=bins), np.float64)

    once = np.ones(len(same))
    weight = binned(once, once)
    kept = weight > 0
    drawn = []
    for counts in resampled(identities, draws, _bootstrap(seed)):
        if counts[same].any() and counts[~same].any():
            total = binned(once, counts)[kept]
            # A bin may be empty in a draw.
            drawn.append(np.divide(binned(same, counts)[kept], total, out=np.full(len(total), np.nan), where=total > 0))
    low, high = np.nanquantile(drawn, [0.025, 0.975], axis=0)
    predicted, observed = binned(probabilities, once)[kept], binned(same, once)[kept]
    return Reliability(predicted / weight[kept], observed / weight[kept], low, high, weight[kept])


def first_candidates(similarities: Floats, mates: Indices) -> Flags:
    """Return whether the first candidate of each mated search [M] is the probe's own photo; a tie is not a hit.

    `similarities` [M, G] are those of probes to the gallery, `mates` [M] the position of each probe's photo in it.
    """
    own = similarities[np.arange(len(mates)), mates]
    rest = similarities.copy()
    rest[np.arange(len(mates)), mates] = -np.inf
    return np.asarray(own > rest.max(axis=1))


def open_set(similarities: Floats, mates: Indices) -> Scores:
    """Return searches as scores: `fmr` is the FPIR, `fnmr` the FNIR and 1 - `tar(r)` the FNIR at the FPIR r < 1.

    Arguments as in `first_candidates`, but `mates` is -1 for subjects that are not enrolled.

    Raises:
        ValueError: no mated or no non-mated searches.
    """
    mated = mates >= 0
    if mated.all() or not mated.any():
        raise ValueError("open-set identification needs mated and non-mated searches")
    own = similarities[mated, mates[mated]]
    # A subject that is not the first candidate is accepted at no threshold.
    own = np.where(first_candidates(similarities[mated], mates[mated]), own, -np.inf)
    return Scores(np.sort(own), np.sort(similarities[~mated].max(axis=1)))
