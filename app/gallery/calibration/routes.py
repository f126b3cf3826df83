"""Routes of calibrations on site."""

from __future__ import annotations

from typing import Annotated, cast

from fastapi import APIRouter, Path, Query, Request

from app import errors
from app.auth.scopes import ENROL
from app.gallery.calibration.schemas import (
    CalibrationChoice,
    CalibrationInfo,
    CalibrationInUse,
    CalibrationPage,
    NewCalibration,
)
from app.gallery.calibration.service import SiteCalibrations
from app.gallery.schemas import Key

router = APIRouter(tags=["gallery"], dependencies=ENROL)

COMMON = (
    errors.HostNotAllowed,
    errors.OriginNotAllowed,
    errors.NotFound,
    errors.InvalidParameters,
    errors.StorageUnavailable,
)
READING = errors.describe(*COMMON)
CHANGING = (*COMMON, errors.BadRequest, errors.BodyTooLarge, errors.Conflict, errors.DiskFull)

Collection = Annotated[Key, Path(description="The collection's name.")]


def calibrations(request: Request) -> SiteCalibrations:
    """Return the service of calibrations."""
    return cast("SiteCalibrations", request.app.state.gallery.calibrations)


@router.post(
    "/collections/{collection}/calibrations",
    status_code=201,
    responses=errors.describe(*CHANGING, errors.Locked, errors.Unprocessable, errors.UnknownModel, errors.NotReady),
)
async def calibrate(request: Request, collection: Collection, params: NewCalibration) -> CalibrationInfo:
    """Fit the collection's thresholds to photos of people who are not enrolled, and use them from now on."""
    return await calibrations(request).calibrate(collection, params, request.state.caller)


@router.get("/collections/{collection}/calibrations", responses=READING)
async def page(
    request: Request,
    collection: Collection,
    after: Annotated[int, Query(ge=0, le=2**62, description="The `next` of the previous page.")] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> CalibrationPage:
    """Return a page of the collection's calibrations with their reports."""
    return await calibrations(request).page(collection, after, limit)


@router.get("/collections/{collection}/calibrations/{calibration}", responses=READING)
async def find(request: Request, collection: Collection, calibration: Key) -> CalibrationInfo:
    """Return a calibration with its report."""
    return await calibrations(request).find(collection, calibration)


@router.get("/collections/{collection}/calibration", responses=READING)
async def in_use(request: Request, collection: Collection) -> CalibrationInUse:
    """Return the calibration that searches of the collection use."""
    return await calibrations(request).in_use(collection)


@router.put("/collections/{collection}/calibration", responses=errors.describe(*CHANGING))
async def use(request: Request, collection: Collection, params: CalibrationChoice) -> CalibrationInUse:
    """Use an earlier calibration of the collection from now on, or with null the embedder's own."""
    return await calibrations(request).use(collection, params.id, request.state.caller)
