"""Figures of 1:1 verification in ISO/IEC 19795's words, from the similarities of mated and non-mated pairs.

A pair is accepted when its similarity reaches the threshold. FMR is the share of non-mated pairs (of two people) that
are accepted, FNMR the share of mated pairs (of one person) that are not, TAR its complement. Similarities may be on any
scale, larger for more alike; all arrays are one-dimensional and finite.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


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
        rates = [
            (self.fmr(value), self.fnmr(value)) for value in np.unique(np.concatenate([self.mated, self.impostor]))
        ]
        nearest = min(rates, key=lambda pair: abs(pair[0] - pair[1]))
        return sum(nearest) / 2


def best_threshold(similarities: Floats, same: npt.NDArray[np.bool_]) -> float:
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
    accuracies = []
    for held_out in range(folds):
        test = fold == held_out
        threshold = best_threshold(values[~test], together[~test])
        accuracies.append(float(((values[test] >= threshold) == together[test]).mean()))
    return float(np.mean(accuracies)), float(np.std(accuracies, ddof=1) / np.sqrt(folds))
