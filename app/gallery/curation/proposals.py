"""Proposals for a person to accept: pairs of subjects that may be one person, and clusters of faces without a name.

Two subjects are compared by the cosine of the means of their faces' vectors. Each subject is compared with the nearest
others only: those that a search for its mean finds, which leaves out subjects that feedback rules out for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from app.errors import Unprocessable
from app.faces.service import operating_point, operating_threshold
from app.gallery.access import GalleryAccess, conflict_as_pipeline_changed, retry_once
from app.gallery.curation.request_bodies import Numbers
from app.gallery.curation.schemas import (
    ClusterParams,
    ClusterResponse,
    DuplicatePage,
    DuplicateParams,
    LikelyDuplicate,
)
from index.clustering import cluster
from index.errors import InvalidError
from index.protocol import Storage
from index.types import Collection, Floats, SubjectVectors
from index.validation import unit_vectors

MOST_EMBEDDINGS = 5000
CANDIDATES = 10  # subjects that each subject is compared with


class Proposals(GalleryAccess):
    """Finds likely duplicates and clusters."""

    @retry_once
    async def duplicates(self, name: str, params: DuplicateParams, actor: str | None) -> DuplicatePage:
        """Return the likely duplicates of a page of subjects, and record them in the audit log as a search.

        Raises:
            NotFound: no such collection. Unprocessable: the calibration has no threshold for the rate.
        """
        collection, pipeline = await self._pipeline(name)
        card = pipeline.embedder.card
        matching, threshold = operating_threshold(card, params.fmr)
        subjects = await self._read(lambda: self._gallery.subjects(name, params.after, params.limit))
        with conflict_as_pipeline_changed():
            ids = [subject.id for subject in subjects]
            pairs = await self._read(lambda: near_pairs(self._storage, collection, ids, threshold.similarity))
        found = [subject.subject for pair in pairs for subject in pair]
        await self._read(lambda: self._gallery.note_search(name, found, actor=actor))
        return DuplicatePage(
            data=sorted(map(_likely_duplicate, pairs), key=lambda pair: pair.distance),
            next=subjects[-1].key if len(subjects) == params.limit else None,
            threshold=1 - threshold.similarity,
            operating_point=operating_point(params.fmr, matching, threshold),
        )

    async def clusters(self, numbers: Numbers, params: ClusterParams) -> ClusterResponse:
        """Return proposed clusters of embeddings; nothing is stored.

        Raises:
            UnknownModel. Unprocessable: the model is not calibrated, or these are not at most 5,000 embeddings of it.
        """
        model = (await self._embedder.pipeline(params.model)).embedder
        matching, _ = operating_threshold(model.card, 0.001)
        shift = logit(params.prior) - logit(matching.prior)

        def compute() -> ClusterResponse:
            vectors = unit_vectors(_by_vector(numbers, model.dimensions), model.dimensions)
            if len(vectors) > MOST_EMBEDDINGS:
                raise InvalidError(f"expected at most {MOST_EMBEDDINGS} embeddings, got {len(vectors)}")
            labels = cluster(vectors, matching.slope, matching.intercept + shift)
            groups = [np.flatnonzero(labels == number).tolist() for number in range(labels.max() + 1)]
            return ClusterResponse(
                clusters=sorted(groups, key=lambda group: (-len(group), group)),
                single=np.flatnonzero(labels < 0).tolist(),
                model=model.card.name,
                version=model.card.version,
            )

        try:
            return await self._executors.run_cpu(compute)
        except InvalidError as error:
            raise Unprocessable(str(error)) from error


def near_pairs(
    storage: Storage, collection: Collection, ids: Sequence[int], similarity: float
) -> list[tuple[SubjectVectors, SubjectVectors]]:
    """Return the pairs of one of these subjects and another with a greater id that are at least as similar."""
    rows = [row for row in storage.curation.subject_vectors(collection.name, ids) if len(row.vectors)]
    if not rows:
        return []
    means = np.concatenate([mean_vector(row)[None] for row in rows])
    matches = storage.searches.search(collection.name, means, CANDIDATES + 1, fingerprint=collection.fingerprint)
    others = {
        row.subject.id: sorted({match.subject.id for match in found if match.subject.id > row.subject.id})
        for row, found in zip(rows, matches, strict=True)
    }
    known = {row.subject.id: row for row in rows}
    missing = sorted({number for numbers in others.values() for number in numbers} - known.keys())
    known |= {row.subject.id: row for row in storage.curation.subject_vectors(collection.name, missing)}
    return [
        (row, known[number])
        for row in rows
        for number in others[row.subject.id]
        if number in known and mean_vector(row) @ mean_vector(known[number]) >= similarity
    ]


def _by_vector(numbers: Numbers, dimensions: int) -> npt.ArrayLike:
    """Return numbers that may be one after the other as vectors [N, D]."""
    if isinstance(numbers, np.ndarray) and not len(numbers) % dimensions:
        return numbers.reshape(-1, dimensions)
    return numbers


def mean_vector(row: SubjectVectors) -> Floats:
    """Return the mean of the subject's vectors, scaled to length 1; zeros if it has none."""
    mean = row.vectors.sum(axis=0)
    return np.asarray(mean / max(float(np.linalg.norm(mean)), 1e-12), np.float32)


def _likely_duplicate(pair: tuple[SubjectVectors, SubjectVectors]) -> LikelyDuplicate:
    first, second = pair
    similarities = first.vectors @ second.vectors.T
    row, column = np.unravel_index(int(similarities.argmax()), similarities.shape)
    return LikelyDuplicate(
        subjects=(first.subject.key, second.subject.key),
        names=(first.subject.name, second.subject.name),
        faces=(first.faces[int(row)], second.faces[int(column)]),
        distance=max(0.0, 1 - float(mean_vector(first) @ mean_vector(second))),
    )


def logit(probability: float) -> float:
    """Return the logarithm of the odds of a probability."""
    return math.log(probability / (1 - probability))
