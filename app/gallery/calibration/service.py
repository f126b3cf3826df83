"""Calibrate collections on site, list their calibrations, and choose one."""

from __future__ import annotations

import json

import numpy as np

from app.errors import Conflict, Unprocessable
from app.gallery.access import GalleryAccess
from app.gallery.calibration.comparisons import Photos, compare_strangers, mated_similarities
from app.gallery.calibration.report import ReportBuilder, Searched
from app.gallery.calibration.schemas import (
    CalibrationInfo,
    CalibrationInUse,
    CalibrationPage,
    NewCalibration,
)
from app.gallery.open_set import collection_thresholds
from index.types import Calibration, Collection, SubjectVectors
from index.validation import read_timestamp
from models.card import ModelCard
from models.site_calibration import check_count, fit_site

# The most subjects of a collection, and photos of each, that a calibration reads.
MAX_SUBJECTS, PHOTOS_EACH = 5000, 16
_PAGE, _SEARCHES = 500, 64


class SiteCalibrations(GalleryAccess):
    """Calibrations of collections by photos of people who are not enrolled."""

    async def calibrate(self, name: str, params: NewCalibration, actor: str | None) -> CalibrationInfo:
        """Fit the collection's thresholds to its strangers, use them from now on, and return the report.

        Raises:
            NotFound: no such collection. Conflict: another pipeline computed the vectors of the strangers or of the
            mated photos. Unprocessable: there are too few strangers, or the embedder is not calibrated itself.
        """
        collection, pipeline = await self._pipeline(name)
        card = pipeline.embedder.card
        data = await self._run_background(lambda: self._fit(collection, params, card))
        change = self._storage.calibrations.add.planned(name, collection.fingerprint, data, actor=actor)
        return await self._commit_response(change, _calibration_info)

    async def page(self, name: str, after: int, limit: int) -> CalibrationPage:
        """Return a page of the collection's calibrations.

        Raises:
            NotFound.
        """
        rows = await self._read(lambda: self._storage.calibrations.page(name, after, limit))
        return CalibrationPage(
            data=[_calibration_info(row) for row in rows], next=rows[-1].version if len(rows) == limit else None
        )

    async def find(self, name: str, token: str) -> CalibrationInfo:
        """Return the calibration.

        Raises:
            NotFound.
        """
        return _calibration_info(await self._read(lambda: self._storage.calibrations.find(name, token)))

    async def in_use(self, name: str) -> CalibrationInUse:
        """Return the calibration in use.

        Raises:
            NotFound.
        """
        return _in_use(await self._read(lambda: self._storage.calibrations.in_use(name)))

    async def use(self, name: str, token: str | None, actor: str | None) -> CalibrationInUse:
        """Use an earlier calibration, or with None the embedder's own.

        Raises:
            NotFound. Conflict: the calibration is of another pipeline.
        """
        return await self._commit_response(self._storage.calibrations.use.planned(name, token, actor=actor), _in_use)

    def _fit(self, collection: Collection, params: NewCalibration, card: ModelCard) -> str:
        """Return the calibration as JSON: the thresholds and the report."""
        before = collection_thresholds(card, self._storage.calibrations.in_use(collection.name)).matching
        if card.matching is None or before is None:
            raise Unprocessable(f"{card.name} is not calibrated: it has no thresholds that could be fitted to a site")
        strangers = self._photos(params.strangers, collection)
        try:
            check_count(len(strangers.keys))
        except ValueError as error:
            raise Unprocessable(str(error)) from error
        enrolled = self._photos(collection.name, collection)
        mated = self._photos(params.mated, collection) if params.mated else None
        compared = compare_strangers(strangers, enrolled, with_each_other=params.compare_strangers)
        pairs = mated_similarities(mated, enrolled) if mated else np.zeros(0)
        described = f"{len(strangers.keys):,} people at this site, {len(compared.similarities):,} comparisons"
        try:
            matching = fit_site(card.matching, compared.similarities, described, pairs)
        except ValueError as error:
            raise Unprocessable(f"the thresholds cannot be fitted: {error}") from error
        report = ReportBuilder(before, strangers, compared).report(
            self._searched(strangers, collection), self._searched(mated, collection) if mated else None, len(pairs)
        )
        return json.dumps({"matching": matching.model_dump(mode="json"), "report": report.model_dump(mode="json")})

    def _photos(self, name: str, collection: Collection) -> Photos:
        """Return photos of at most MAX_SUBJECTS subjects of a collection of the same pipeline as `collection`.

        Raises:
            Conflict: it has another pipeline.
        """
        other = self._gallery.collection(name)
        if other.fingerprint != collection.fingerprint:
            raise Conflict(f"{name!r} holds vectors of another pipeline than {collection.name!r}")
        subjects: list[SubjectVectors] = []
        after = ""
        while len(subjects) < MAX_SUBJECTS and (page := self._gallery.subjects(name, after, _PAGE)):
            ids = [subject.id for subject in page]
            subjects += self._storage.curation.subject_vectors(name, ids, faces=PHOTOS_EACH)
            after = page[-1].key
        return Photos.of(subjects[:MAX_SUBJECTS], collection.dimensions)

    def _searched(self, photos: Photos, collection: Collection) -> Searched | None:
        """Search the collection for each photo; None if it has no faces."""
        faces = self._gallery.usage(collection.name).faces
        if not faces or not len(photos.people):
            return None
        found = [
            matches
            for first in range(0, len(photos.people), _SEARCHES)
            for matches in self._storage.searches.search(
                collection.name, photos.vectors[first : first + _SEARCHES], 1, fingerprint=collection.fingerprint
            )
        ]
        own = [photos.keys[person] for person in photos.people]
        return Searched(
            photos.people,
            np.array([matches[0].similarity if matches else -1.0 for matches in found]),
            np.array(
                [bool(matches) and matches[0].subject.key == key for matches, key in zip(found, own, strict=True)]
            ),
            faces,
        )


def _calibration_info(calibration: Calibration) -> CalibrationInfo:
    return CalibrationInfo(
        id=calibration.token,
        version=calibration.version,
        fingerprint=calibration.fingerprint,
        created_at=read_timestamp(calibration.created_at),
        in_use=calibration.in_use,
        report=json.loads(calibration.data)["report"],
    )


def _in_use(calibration: Calibration | None) -> CalibrationInUse:
    return CalibrationInUse(calibration=None if calibration is None else _calibration_info(calibration))
