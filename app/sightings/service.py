"""The service of sightings. `index` stores them."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from datetime import datetime
from functools import partial

from PIL import Image

from app.errors import NoFace
from app.gallery.access import GalleryAccess
from app.gallery.embedding_pipeline import ImageEmbedder, encode_photo
from app.gallery.open_set import DecisionRule
from app.gallery.schemas import ErasureReceipt
from app.images.large_json import from_base64
from app.inference.predictor import Predictor
from app.sightings.schemas import (
    NewSightingBody,
    SightingInfo,
    SightingPage,
    SightingParams,
    SightingSettingsInfo,
    StoredSighting,
)
from index.protocol import Storage
from index.sightings import NewSighting, Sighting, SightingFilter, SightingSettings, UnknownFace
from index.validation import read_timestamp
from models.matching import Matching

CROP_SIDE = 384  # pixels of the longer side of a best shot
# The share of people who are seen for the first time and get the pseudonym of another person.
PSEUDONYM_FPIR = 0.01


class SightingService(GalleryAccess):
    """Adds, lists and erases the sightings of a gallery's collections."""

    def __init__(self, predictor: Predictor, storage: Storage):
        super().__init__(storage, ImageEmbedder(predictor))
        self._predictor = predictor
        self._sightings = storage.sightings

    async def add(self, body: NewSightingBody, actor: str | None, idempotency_key: str | None = None) -> StoredSighting:
        """Store a sighting, once for each `idempotency_key`.

        Raises:
            NotFound: no such collection or subject. BadRequest, VestibuleError: about the best shot. Unprocessable: it
            ended longer ago than the collection keeps sightings, or in the future. Conflict: the key was used for
            another sighting.
        """
        collection = await self._collection(body.collection)
        crop, face = None, None
        if body.crop is not None:
            crop, face = await self._predictor.with_deadline(self._read_crop(body, body.crop))
        sighting = NewSighting(
            body.camera,
            body.started_at.timestamp(),
            body.ended_at.timestamp(),
            body.frames,
            body.probability,
            body.distance,
            body.fpir,
            body.threshold,
            subject=body.subject_id,
            crop=crop,
            face=face,
        )
        change = self._sightings.add.planned(body.collection, sighting, actor=actor).then(_stored_sighting)
        if idempotency_key is not None:
            # The collection's id and not its name: a new collection of that name is another one.
            name = _sha256(json.dumps(["sighting", actor, collection.id, idempotency_key])).hex()
            request = await self._executors.run_cpu(lambda: _sha256(body.model_dump_json()))
            change = change.once(name, request, StoredSighting.model_dump_json, StoredSighting.model_validate_json)
        return await self._commit_response(change, lambda stored: stored)

    async def _read_crop(self, body: NewSightingBody, text: str) -> tuple[bytes, UnknownFace | None]:
        """Return the best shot, encoded anew so that nothing but its pixels is stored; and its face, if it is needed.

        The face is that by which an unknown person is recognised, where the collection gives pseudonyms.
        """
        data = await self._executors.run_cpu(lambda: from_base64(text))
        crop = await self._predictor.decode(data, _encoded_crop, CROP_SIDE)
        settings = await self._read(lambda: self._sightings.settings(body.collection))
        if not settings.pseudonyms or body.subject_id is not None:
            return crop, None
        collection, pipeline = await self._pipeline(body.collection)
        matching = pipeline.embedder.card.matching
        with suppress(NoFace):
            face = await self._embedder.embed_most_prominent(pipeline, data)
            return crop, UnknownFace(face.vector.numpy(), collection.fingerprint, partial(_least_similarity, matching))
        return crop, None

    async def page(self, params: SightingParams) -> SightingPage:
        """Return a page of sightings.

        Raises:
            NotFound: no such collection or subject.
        """
        where = SightingFilter(
            params.camera,
            params.subject_id,
            params.pseudonym,
            params.unknown,
            _seconds(params.since),
            _seconds(params.until),
        )
        rows = await self._read(
            lambda: self._sightings.page(
                params.collection, where, params.after, params.limit, newest_first=params.newest_first
            )
        )
        data = [_sighting_info(row) for row in rows]
        return SightingPage(data=data, next=rows[-1].position if len(rows) == params.limit else None)

    async def sighting(self, token: str) -> SightingInfo:
        """Return the sighting.

        Raises:
            NotFound.
        """
        return _sighting_info(await self._read(lambda: self._sightings.sighting(token)))

    async def crop(self, token: str) -> bytes:
        """Return the best shot of the sighting as WebP.

        Raises:
            NotFound: also where it has none.
        """
        return await self._read(lambda: self._sightings.crop(token))

    async def remove(self, token: str, actor: str | None) -> ErasureReceipt:
        """Erase the sighting.

        Raises:
            NotFound.
        """
        return await self._erase(self._sightings.remove.planned(token, actor=actor))

    async def settings(self, collection: str) -> SightingSettingsInfo:
        """Return the collection's settings.

        Raises:
            NotFound.
        """
        return _settings_info(await self._read(lambda: self._sightings.settings(collection)))

    async def put_settings(
        self, collection: str, settings: SightingSettingsInfo, actor: str | None
    ) -> SightingSettingsInfo:
        """Replace the collection's settings.

        Raises:
            NotFound.
        """
        new = SightingSettings(settings.unknown_s, settings.known_s, settings.pseudonyms)
        change = self._sightings.put_settings.planned(collection, new, actor=actor)
        return await self._commit_response(change, _settings_info)


def _least_similarity(matching: Matching | None, faces: int) -> float | None:
    """Return the least similarity at which a person is one of so many seen before; None where none is sufficient."""
    rule = DecisionRule.for_comparisons(matching, PSEUDONYM_FPIR, max(1, faces))
    return rule.threshold.similarity if rule.can_match and rule.threshold else None


def _encoded_crop(image: Image.Image) -> bytes:
    image.thumbnail((CROP_SIDE, CROP_SIDE))
    return encode_photo(image)


def _sha256(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _seconds(time: datetime | None) -> float | None:
    return None if time is None else time.timestamp()


def _stored_sighting(sighting: Sighting) -> StoredSighting:
    return StoredSighting(
        id=sighting.token,
        position=sighting.position,
        created_at=read_timestamp(sighting.created_at),
        expires_at=read_timestamp(sighting.expires_at),
        pseudonym=sighting.pseudonym,
    )


def _sighting_info(sighting: Sighting) -> SightingInfo:
    return SightingInfo(
        **_stored_sighting(sighting).model_dump(),
        collection=sighting.collection,
        camera=sighting.camera,
        started_at=read_timestamp(sighting.started_at),
        ended_at=read_timestamp(sighting.ended_at),
        frames=sighting.frames,
        subject_id=sighting.subject.key if sighting.subject else None,
        name=sighting.subject.name if sighting.subject else None,
        probability=sighting.probability,
        distance=sighting.distance,
        fpir=sighting.fpir,
        threshold=sighting.threshold,
        has_crop=sighting.has_crop,
    )


def _settings_info(settings: SightingSettings) -> SightingSettingsInfo:
    return SightingSettingsInfo(unknown_s=settings.unknown_s, known_s=settings.known_s, pseudonyms=settings.pseudonyms)
