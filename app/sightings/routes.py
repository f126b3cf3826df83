"""Routes of sightings. A camera's key has the scope `observe`: it adds sightings, and can neither read nor enrol."""

from __future__ import annotations

from typing import Annotated, cast

from fastapi import APIRouter, Path, Query, Request, Response

from app import errors
from app.auth.scopes import ENROL, OBSERVE, REVIEW
from app.gallery.routes import COMMON, ERASING, PROBLEMS, Collection, IdempotencyKey
from app.gallery.schemas import ErasureReceipt, Key
from app.images.encoding import WEBP, describe_files
from app.middleware.routing import counts_toward_capacity
from app.sightings.schemas import (
    NewSightingBody,
    SightingInfo,
    SightingPage,
    SightingParams,
    SightingSettingsInfo,
    StoredSighting,
)
from app.sightings.service import SightingService

router = APIRouter(tags=["sightings"])

ADDING = errors.describe(
    *COMMON,
    errors.BadRequest,
    errors.DamagedImage,
    errors.Conflict,
    errors.BodyTooLarge,
    errors.ImageTooLarge,
    errors.UnsupportedImage,
    errors.Unprocessable,
    errors.UnknownModel,
    errors.Overloaded,
    errors.NotReady,
    errors.Locked,
    errors.DeadlineExceeded,
    errors.DiskFull,
)
SETTING = errors.describe(*COMMON, errors.BadRequest, errors.BodyTooLarge, errors.DiskFull)

SightingId = Annotated[Key, Path(description="The sighting's id.")]


def sighting_service(request: Request) -> SightingService:
    """Return the service of sightings."""
    return cast("SightingService", request.app.state.sightings)


@router.post("/sightings", status_code=201, dependencies=OBSERVE, responses=ADDING)
@counts_toward_capacity
async def add(request: Request, body: NewSightingBody, idempotency_key: IdempotencyKey = None) -> StoredSighting:
    """Store that a camera saw a subject or an unknown person; once for each `Idempotency-Key`, if there is one."""
    return await sighting_service(request).add(body, request.state.caller, idempotency_key)


@router.get("/sightings", dependencies=REVIEW, responses=PROBLEMS)
async def sightings(request: Request, params: Annotated[SightingParams, Query()]) -> SightingPage:
    """Return a page of a collection's sightings, in the order in which they were stored."""
    return await sighting_service(request).page(params)


@router.get("/sightings/{sighting}", dependencies=REVIEW, responses=PROBLEMS)
async def sighting(request: Request, sighting: SightingId) -> SightingInfo:
    """Return a sighting."""
    return await sighting_service(request).sighting(sighting)


@router.get(
    "/sightings/{sighting}/crop",
    dependencies=REVIEW,
    response_class=Response,
    responses=PROBLEMS | describe_files(WEBP),
)
async def crop(request: Request, sighting: SightingId) -> Response:
    """Return the best shot of a sighting; 404 if it has none."""
    return Response(await sighting_service(request).crop(sighting), media_type=WEBP)


@router.delete("/sightings/{sighting}", dependencies=ENROL, responses=ERASING)
async def erase(request: Request, sighting: SightingId) -> ErasureReceipt:
    """Erase a sighting."""
    return await sighting_service(request).remove(sighting, request.state.caller)


@router.get("/collections/{collection}/sighting-settings", dependencies=ENROL, responses=PROBLEMS)
async def settings(request: Request, collection: Collection) -> SightingSettingsInfo:
    """Return how long a collection keeps sightings."""
    return await sighting_service(request).settings(collection)


@router.put("/collections/{collection}/sighting-settings", dependencies=ENROL, responses=SETTING)
async def put_settings(
    request: Request, collection: Collection, settings: SightingSettingsInfo
) -> SightingSettingsInfo:
    """Replace how long a collection keeps sightings.

    A shorter time applies to all its sightings, a longer one to new ones.
    """
    return await sighting_service(request).put_settings(collection, settings, request.state.caller)
