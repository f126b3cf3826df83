"""Figures of verification (1:1) and identification (1:N) in ISO/IEC 19795's words, from similarities.

A pair is accepted when its similarity reaches the threshold. FMR is the share of non-mated pairs (of two people) that
are accepted, FNMR the share of mated pairs (of one person) that are not, TAR its complement. Similarities may be on any
scale, larger for more alike; all arrays are one-dimensional and finite.

A search compares a probe with every photo of a gallery. It is mated when the probe's subject is enrolled. FPIR is the
share of non-mated searches in which any candidate reaches the threshold; FNIR is the share of mated ones in which the
subject's own photo is not the first candidate, or does not reach the threshold.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from training.core.seeds import derive

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Scores:
    """Similarities of mated and of non-mated pairs, both ascending.

    Raises:
        ValueError: one of them empty or not finite.
    """

    mated: Floats
    impostor: Floats

    @classmethod
    def of(cls, similarities: npt.ArrayLike, same: npt.ArrayLike) -> Scores:
        """From each pair's similarity [N] and whether both pictures show one person [N]."""
        values, together = np.asarray(similarities, np.float64), np.asarray(same, bool)
        if values.shape != together.shape or values.ndim != 1:
            raise ValueError(f"expected two arrays [N], got {list(values.shape)} and {list(together.shape)}")
        scores = cls(np.sort(values[together]), np.sort(values[~together]))
        if not len(scores.mated) or not len(scores.impostor) or not np.isfinite(values).all():
            raise ValueError("verification needs mated and non-mated pairs, all with finite similarities")
        return scores

    def fmr(self, threshold: float) -> float:
        """The share of non-mated pairs accepted, 0..1."""
        return 1 - float(np.searchsorted(self.impostor, threshold, side="left")) / len(self.impostor)

    def fnmr(self, threshold: float) -> float:
        """The share of mated pairs rejected, 0..1."""
        return float(np.searchsorted(self.mated, threshold, side="left")) / len(self.mated)

    def threshold_at(self, fmr: float) -> float:
        """The lowest threshold whose FMR is at most `fmr` (0..1); infinite where even the likest strangers are more."""
        allowed = int(fmr * len(self.impostor) + 1e-9)
        if allowed >= len(self.impostor):
            return -np.inf
        # Just above the first that must not be accepted; those equal to it go with it.
        return float(np.nextafter(self.impostor[len(self.impostor) - 1 - allowed], np.inf))

    def tar(self, fmr: float) -> float:
        """The share of mated pairs accepted at `threshold_at(fmr)`, 0..1."""
        return 1 - self.fnmr(self.threshold_at(fmr))

    def eer(self) -> float:
        """The equal error rate, 0..1: the mean of FMR and FNMR where they are nearest to each other."""
        fmr, fnmr = self.curve()
        nearest = int(np.argmin(abs(fmr - fnmr)))
        return float(fmr[nearest] + fnmr[nearest]) / 2

    def curve(self) -> tuple[Floats, Floats]:
        """FMR [K] and FNMR [K], 0..1, at each similarity that occurs, ascending: the points of a ROC or DET curve."""
        thresholds = np.unique(np.concatenate([self.mated, self.impostor]))
        fmr = 1 - np.searchsorted(self.impostor, thresholds, side="left") / len(self.impostor)
        return fmr, np.searchsorted(self.mated, thresholds, side="left") / len(self.mated)


def best_threshold(similarities: Floats, same: Flags) -> float:
    """The threshold with the most pairs decided rightly, the middle of the gap it lies in; the lowest of several."""
    order = np.argsort(similarities, kind="stable")
    values, together = similarities[order], same[order]
    # Thresholds below all, between two neighbours, above all: accepted is what comes after.
    right = np.concatenate([[together.sum()], together.sum() + np.cumsum(np.where(together, -1, 1))])
    edges = np.concatenate([[values[0] - 1], values, [values[-1] + 1]])
    possible = edges[1:] > edges[:-1]  # no threshold parts equal values
    best = int(np.argmax(np.where(possible, right, -1)))
    return float((edges[best] + edges[best + 1]) / 2)


def cross_validated_accuracy(similarities: npt.ArrayLike, same: npt.ArrayLike, folds: int = 10) -> tuple[float, float]:
    """LFW's protocol: each fold is decided with the threshold that is best on the others: (mean, standard error).

    Pairs [N] are dealt out in turn within mated and non-mated ones, so that folds keep their shares.

    Raises:
        ValueError: fewer pairs of a kind than folds.
    """
    values, together = np.asarray(similarities, np.float64), np.asarray(same, bool)
    if min(together.sum(), (~together).sum()) < folds:
        raise ValueError(f"{folds} folds need as many mated and as many non-mated pairs")
    fold = np.empty(len(values), np.int64)
    for kind in (together, ~together):
        fold[kind] = np.arange(kind.sum()) % folds
    return accuracy_over_folds(values, together, fold)


def accuracy_over_folds(similarities: Floats, same: Flags, fold: Indices) -> tuple[float, float]:
    """`cross_validated_accuracy` with folds that are given: the number of each pair's fold [N], of two or more.

    Raises:
        ValueError: only one fold.
    """
    numbers = np.unique(fold)
    if len(numbers) < 2:
        raise ValueError("a fold is decided by the others, and there is only one")
    accuracies = []
    for held_out in numbers:
        test = fold == held_out
        threshold = best_threshold(similarities[~test], same[~test])
        accuracies.append(float(((similarities[test] >= threshold) == same[test]).mean()))
    return float(np.mean(accuracies)), float(np.std(accuracies, ddof=1) / np.sqrt(len(numbers)))


def resampled(identities: Indices, draws: int, seed: int) -> Iterator[Floats]:
    """How often each of the pairs is in a set made of identities drawn anew, with replacement: [P], `draws` times.

    `identities` [P, 2] are those of a pair's pictures. Pairs that share a person are not independent, so people are
    drawn and not pairs: a non-mated pair comes as often as the product of its two people, a mated one as its person.
    The vertex bootstrap of Snijders, Borgatti, "Non-Parametric Standard Errors and Tests for Network Statistics",
    Connections 22, 1999.
    """
    random = np.random.default_rng(derive(seed, "bootstrap"))
    names, places = np.unique(identities, return_inverse=True)
    first, second = places.reshape(identities.shape).T
    chances = np.full(len(names), 1 / len(names))
    for _ in range(draws):
        count = random.multinomial(len(names), chances).astype(np.float64)
        yield count[first] * np.where(first == second, 1.0, count[second])


def fmr_interval(
    accepted: Flags, identities: Indices, *, draws: int = 1000, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Where the FMR lies, by the percentiles of a bootstrap over identities: (low, high), 0..1.

    `accepted` [P] says which of the non-mated pairs were, `identities` [P, 2] whose they are.
    """
    # With very few people a draw may hold one person alone, and no pair.
    weights = (weight for weight in resampled(identities, draws, seed) if weight.any())
    rates = [float(weight @ accepted / weight.sum()) for weight in weights]
    low, high = np.quantile(rates, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


class Reliability(NamedTuple):
    """Bins that are not empty, by rising probability, arrays [B], all 0..1.

    `predicted` is the mean probability, `observed` the share of mated pairs, which lies between `low` and `high`;
    `weight` is the bin's share of all pairs.
    """

    predicted: Floats
    observed: Floats
    low: Floats
    high: Floats
    weight: Floats

    @property
    def error(self) -> float:
        """The expected calibration error, 0..1."""
        return float(self.weight @ abs(self.predicted - self.observed))


def reliability(
    probabilities: Floats, identities: Indices, prior: float, *, bins: int = 10, draws: int = 500, seed: int = 0
) -> Reliability:
    """Probabilities [P] that pairs are mated against whether they are, in bins of equal width.

    `identities` [P, 2] are those of a pair's pictures. Pairs are weighed so that mated ones are the share `prior` of
    all, whatever their number. Intervals hold 95 % of the draws of a bootstrap over identities.

    Raises:
        ValueError: no mated or no non-mated pairs.
    """
    same = identities[:, 0] == identities[:, 1]
    if same.all() or not same.any():
        raise ValueError("reliability needs mated and non-mated pairs")
    place = np.minimum((probabilities * bins).astype(np.int64), bins - 1)

    def binned(values: Floats, counts: Floats) -> Floats:
        share = np.where(same, prior / counts[same].sum(), (1 - prior) / counts[~same].sum())
        return np.asarray(np.bincount(place, values * counts * share, minlength=bins), np.float64)

    once = np.ones(len(same))
    weight = binned(once, once)
    kept = weight > 0
    drawn = []
    for counts in resampled(identities, draws, seed):
        if counts[same].any() and counts[~same].any():
            total = binned(once, counts)[kept]
            # A bin may be empty in a draw.
            drawn.append(np.divide(binned(same, counts)[kept], total, out=np.full(len(total), np.nan), where=total > 0))
    low, high = np.nanquantile(drawn, [0.025, 0.975], axis=0)
    predicted, observed = binned(probabilities, once)[kept], binned(same, once)[kept]
    return Reliability(predicted / weight[kept], observed / weight[kept], low, high, weight[kept])


def first_candidates(similarities: Floats, mates: Indices) -> Flags:
    """Whether each mated search [M] finds its own photo before all others; of equals none comes first.

    `similarities` [M, G] are those of probes to the gallery, `mates` [M] the place of each probe's own photo in it.
    """
    own = similarities[np.arange(len(mates)), mates]
    others = similarities.copy()
    others[np.arange(len(mates)), mates] = -np.inf
    return np.asarray(own > others.max(axis=1))


def open_set(similarities: Floats, mates: Indices) -> Scores:
    """Searches as scores, of which `fmr` is the FPIR, `fnmr` the FNIR and 1 - `tar(r)` the FNIR at the FPIR r < 1.

    As `first_candidates`, with searches whose subject is not enrolled; there `mates` is -1.

    Raises:
        ValueError: no mated or no non-mated searches.
    """
    mated = mates >= 0
    if mated.all() or not mated.any():
        raise ValueError("open-set identification needs mated and non-mated searches")
    own = similarities[mated, mates[mated]]
    # No threshold accepts who is not the first candidate.
    own = np.where(first_candidates(similarities[mated], mates[mated]), own, -np.inf)
    return Scores(np.sort(own), np.sort(similarities[~mated].max(axis=1)))
