"""Comparison of a gallery with an export: counts, digests of all rows, and searches.

The rows of a kind are compared by their number and by the sum of their SHA-256 hashes, in any order. The searches are
for stored vectors with noise. Their expected results are computed from the files by comparing all faces, so that they
depend on no storage engine. Subjects that have expired are left out of both.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from index.operator_key import OperatorKey
from index.protocol import GallerySnapshot, Storage
from index.records import (
    ExportPart,
    FaceRecord,
    Kind,
    RejectionRecord,
    SubjectRecord,
    validated_face,
    validated_rejection,
    validated_subject,
)
from index.transfer.manifest import ExportManifest, part_path
from index.transfer.tables import FACES, FEEDBACK, RECEIPTS, SUBJECTS, R, TableFormat, open_table
from index.types import Collection, Floats, Match, Receipt
from index.validation import ROUNDING, unit_vectors

MATCHES = 5  # of each search
CANDIDATES = 64  # subjects for each query, of which feedback may rule out all but MATCHES
NOISE = 0.3  # length of the noise that is added to a vector of length 1
TOLERANCE = 2 * ROUNDING
SEARCHED_AT_ONCE = 50
MIN_RECALL = 0.95  # of the nearest subject, by searches with an approximate index


@dataclass(frozen=True)
class Comparison:
    """`searches`: how many were compared. `differences`: a sentence for each; none if the gallery equals the export."""

    searches: int
    differences: tuple[str, ...]


def compare_gallery(
    storage: Storage,
    folder: Path,
    manifest: ExportManifest,
    key: OperatorKey | None = None,
    *,
    without: Container[str] = (),
    searches: int = 1000,
) -> Comparison:
    """Compare the gallery with the export in the folder, except the collections `without`.

    `searches`: how many, over all collections by their numbers of faces, at least one for each that has faces.

    Raises:
        InvalidError, LockedError: a file cannot be read.
    """
    now = storage.transfer.clock()
    differences: list[str] = []
    compared = 0
    with storage.transfer.snapshot(now) as snapshot:
        targets = {collection.name: collection for collection in snapshot.collections()}
        for number, described in enumerate(manifest.collections):
            source = described.collection
            if source.name in without:
                continue
            if source.name not in targets:
                differences.append(f"the collection {source.name!r} is missing")
                continue
            if snapshot.describe(targets[source.name]) != described:
                differences.append(f"{source.name!r} has other properties, calibrations or settings than the export")
            exported = ExportedRows(folder, manifest, number, key, now)
            differences += _differing_rows(snapshot, targets[source.name], exported)
            count = exported.share(searches)
            compared += count
            if wrong := _count_wrong_searches(storage, source.name, exported, count):
                differences.append(f"{source.name!r}: {wrong:,} of {count:,} searches differ")
        if missing := _count_missing_receipts(folder, manifest, snapshot):
            differences.append(f"{missing:,} receipts are missing or differ")
    return Comparison(compared, tuple(differences))


class ExportedRows:
    """The rows of a collection in an export, as a gallery stores them, without subjects that have expired at `now`."""

    def __init__(self, folder: Path, manifest: ExportManifest, number: int, key: OperatorKey | None, now: float):
        self._folder = folder
        self._manifest = manifest
        self._number = number
        self._key = key
        self._now = now
        self._dimensions = manifest.collections[number].collection.dimensions

    def subjects(self) -> Iterator[list[SubjectRecord]]:
        """Yield the subjects."""
        for page in self._pages("subjects", SUBJECTS, validated_subject):
            yield [row for row in page if not self._has_expired(row)]

    def faces(self) -> Iterator[list[FaceRecord]]:
        """Yield the faces."""
        for page in self._pages("faces", FACES, partial(validated_face, dimensions=self._dimensions)):
            yield [row for row in page if not self._has_expired(row)]

    def rejections(self) -> Iterator[list[RejectionRecord]]:
        """Yield the rejected faces."""
        expired = {
            row.subject
            for page in self._pages("subjects", SUBJECTS, validated_subject)
            for row in page
            if self._has_expired(row)
        }
        for page in self._pages("feedback", FEEDBACK, partial(validated_rejection, dimensions=self._dimensions)):
            yield [row for row in page if row.subject not in expired]

    def share(self, searches: int) -> int:
        """Return how many of the searches over all collections are of this one."""
        faces = self._manifest.rows[ExportPart(self._manifest.export, "faces", self._number).name]
        return -(-searches * faces // max(self._manifest.count("faces"), 1))

    def queries(self, count: int) -> Floats:
        """Return random vectors of the collection with noise [count, D], fewer if some have expired."""
        random = np.random.default_rng([int(self._manifest.export.id, 16), self._number])
        faces = self._manifest.rows[ExportPart(self._manifest.export, "faces", self._number).name]
        chosen = random.integers(faces, size=count).tolist()
        among, rows = set(chosen), (row for page in self.faces() for row in page)
        vectors = {number: row.vector for number, row in enumerate(rows) if number in among}
        stored = np.frombuffer(b"".join(vectors[it] for it in chosen if it in vectors), "<f4")
        stored = stored.reshape(-1, self._dimensions)
        noise = random.normal(size=stored.shape)
        return stored + np.asarray(NOISE * noise / np.linalg.norm(noise, axis=1, keepdims=True), np.float32)

    def _pages(self, kind: Kind, format: TableFormat[R], validated: Callable[[R], R]) -> Iterator[list[R]]:
        part = ExportPart(self._manifest.export, kind, self._number)
        with open_table(part_path(self._folder, part.name), format, self._key) as file:
            for page in file.pages():
                yield [validated(row) for row in page]

    def _has_expired(self, record: SubjectRecord | FaceRecord) -> bool:
        return record.expires_at is not None and record.expires_at <= self._now


def _differing_rows(snapshot: GallerySnapshot, target: Collection, exported: ExportedRows) -> Iterator[str]:
    """Yield a sentence for each kind of rows that differs."""
    kinds: tuple[tuple[str, Iterable[Sequence[object]], Iterable[Sequence[object]]], ...] = (
        ("subjects", snapshot.subjects(target), exported.subjects()),
        ("faces", snapshot.faces(target), exported.faces()),
        ("rejected faces", snapshot.rejections(target), exported.rejections()),
    )
    for kind, ours, theirs in kinds:
        stored, expected = _digest(ours), _digest(theirs)
        if stored[0] != expected[0]:
            yield f"{target.name!r} has {stored[0]:,} {kind}, the export {expected[0]:,}"
        elif stored != expected:
            yield f"{target.name!r} has other {kind} than the export"


def _digest(pages: Iterable[Sequence[object]]) -> tuple[int, int]:
    """Return the number of the records, and the sum of their hashes modulo 2**256."""
    count = total = 0
    for page in pages:
        count += len(page)
        total += sum(map(_hash, page))
    return count, total % 2**256


def _hash(record: Any) -> int:
    """Return the SHA-256 of all values of a record but its id."""
    values = {name: getattr(record, name) for name in record.__slots__ if name != "id"}
    data = [values.pop(name) or b"" for name in ("vector", "crop") if name in values]
    values |= {name: json.loads(values[name]) for name in ("metadata", "details") if name in values}
    text = json.dumps([values, *map(len, data)], sort_keys=True)
    return int.from_bytes(hashlib.sha256(b"".join((text.encode(), *data))).digest())


def _count_wrong_searches(storage: Storage, name: str, exported: ExportedRows, count: int) -> int:
    """Return how many of `count` searches have other results than the export's rows.

    An approximate index may miss a subject: then only the nearest counts, and a few may be missed.
    """
    if not count:
        return 0
    queries = exported.queries(count)
    exact = storage.gallery.usage(name).exact
    wrong = 0
    best = best_subjects(unit_vectors(queries, queries.shape[1]), exported)
    for first in range(0, len(queries), SEARCHED_AT_ONCE):
        results = storage.searches.search(name, queries[first : first + SEARCHED_AT_ONCE], MATCHES)
        expected = best[first : first + SEARCHED_AT_ONCE]
        wrong += sum(not _agrees(*pair, exact=exact) for pair in zip(results, expected, strict=True))
    return wrong if exact or wrong > (1 - MIN_RECALL) * len(queries) else 0


def best_subjects(queries: Floats, exported: ExportedRows) -> list[dict[str, float]]:
    """Return for each query [N, D] the highest similarities of at most CANDIDATES subjects, by their keys.

    Of these, the subjects that feedback rules out for the query are left out.
    """
    best: list[dict[str, float]] = [{} for _ in queries]
    for page in exported.faces():
        _update_best(best, queries, page)
    for rejected in exported.rejections():
        similarities = queries @ _vectors(rejected).T
        for found, row in zip(best, similarities.tolist(), strict=True):
            for face, similarity in zip(rejected, row, strict=True):
                if similarity >= found.get(face.subject, np.inf) - ROUNDING:
                    del found[face.subject]
    return best


def _update_best(best: list[dict[str, float]], queries: Floats, page: Sequence[FaceRecord]) -> None:
    """Update the best subjects of each query by a page of faces."""
    names, subjects = np.unique([face.subject for face in page], return_inverse=True)
    order = np.argsort(subjects, kind="stable")
    starts = np.flatnonzero(np.diff(subjects[order], prepend=-1))
    similarities = np.maximum.reduceat(queries @ _vectors(page)[order].T, starts, axis=1)
    count = min(CANDIDATES, len(names))
    nearest = np.argpartition(-similarities, count - 1, axis=1)[:, :count]
    for found, columns, values in zip(best, nearest.tolist(), similarities, strict=True):
        for column in columns:
            found[names[column]] = max(float(values[column]), found.get(names[column], -1.0))
        for key in sorted(found, key=found.__getitem__)[:-CANDIDATES]:
            del found[key]


def _vectors(page: Sequence[FaceRecord | RejectionRecord]) -> Floats:
    return np.frombuffer(b"".join(face.vector for face in page), "<f4").reshape(len(page), -1)


def _agrees(matches: Sequence[Match], best: dict[str, float], *, exact: bool) -> bool:
    """Return whether the matches are the most similar subjects, each with its similarity."""
    if not exact:
        return max(best.values(), default=-1.0) - TOLERANCE <= max((it.similarity for it in matches), default=-1.0)
    if any(abs(best.get(match.subject.key, np.inf) - match.similarity) > TOLERANCE for match in matches):
        return False
    last = matches[-1].similarity if len(matches) == MATCHES else -np.inf
    found = {match.subject.key for match in matches}
    return all(key in found for key, similarity in best.items() if similarity > last + TOLERANCE)


def _count_missing_receipts(folder: Path, manifest: ExportManifest, snapshot: GallerySnapshot) -> int:
    """Return how many receipts of the export the gallery does not have. Unfinished ones may be finished now."""
    stored = {receipt.token: receipt for page in snapshot.receipts() for receipt in page}
    with open_table(part_path(folder, ExportPart(manifest.export, "receipts").name), RECEIPTS) as file:
        return sum(not _is_same(stored.get(receipt.token), receipt) for page in file.pages() for receipt in page)


def _is_same(stored: Receipt | None, exported: Receipt) -> bool:
    if stored is None or exported.erased_at is not None:
        return stored == exported
    return replace(stored, erased_at=None) == exported
