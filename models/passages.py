"""Passages: fuse the vectors of one person's faces in several frames.

The cosine of a fused vector has another distribution than that of a single face, which depends on the number of frames;
`ModelCard.passages` has its calibration for each number.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from models.align import Quality
from models.matching import Matching

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

# The most frames that are fused; a card has a calibration for each number up to it.
MAX_FRAMES = 10
# Sharpness (see `align.Quality`) above which a face weighs no more, and the smallest weight. Of six rules this one has
# the lowest FNMR for bursts of the calibration identities: 0.37 with ten frames at an FMR of 0.001; equal weights 0.41.
FULL_SHARPNESS, MIN_WEIGHT = 0.1, 0.01
# A face whose similarity to the others has a lower probability to be of the same person is another person's. Of the
# calibration identities' photos, it leaves out 1 in 100 of the person's own, and 9 in 10 of another person's.
MIN_PROBABILITY = 0.1


def quality_weight(quality: Quality) -> float:
    """Return the weight of a face in a fused vector, above 0 and at most 1: blurred and enlarged faces weigh less."""
    return float(np.clip((quality.sharpness / FULL_SHARPNESS) ** 2, MIN_WEIGHT, 1.0))


def fuse(vectors: Floats, weights: Floats) -> Floats:
    """Return the unit vector [D] of the weighted mean of unit vectors [N, D]; the weights [N] are above 0.

    Raises:
        ValueError: the vectors cancel out.
    """
    mean = weights @ vectors
    length = float(np.linalg.norm(mean))
    if length < 1e-6 * weights.sum():
        raise ValueError("the vectors cancel out: they have no mean direction")
    return np.asarray(mean / length)


def same_person(vectors: Floats, weights: Floats, matching: Matching) -> Flags:
    """Return which of the unit vectors [N, D] are of the person whom most of the weight shows, as flags [N].

    While there is a vector whose similarity to the fused others has a probability below MIN_PROBABILITY, the least
    similar one is left out. Of two such vectors the one of greater weight is kept.
    """
    kept = np.ones(len(vectors), bool)
    while kept.sum() > 1:
        rows = np.flatnonzero(kept)
        total = weights[rows] @ vectors[rows]
        others = total - weights[rows, None] * vectors[rows]
        lengths = np.maximum(np.linalg.norm(others, axis=1), 1e-12)
        similarities = (vectors[rows] * others).sum(axis=1) / lengths
        # Of equally similar vectors, as of two alone, the one of least weight.
        least = int(np.lexsort((weights[rows], similarities.round(9)))[0])
        if matching.probability(float(similarities[least])) >= MIN_PROBABILITY:
            break
        kept[rows[least]] = False
    return kept
