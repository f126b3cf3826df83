"""Bulk jobs: /collections/{c}/faces:bulk and /collections/{c}/jobs."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request

from app import errors
from app.bulk import working
from app.bulk_schemas import BulkParams, JobInfo, JobItemPage, JobPage
from app.deps import AdmittedDep, GalleriesDep
from app.gallery_schemas import Key
from app.scopes import ENROL
from app.uploads import BULK_BODY, Upload, read_upload

router = APIRouter(tags=["gallery"], lifespan=working, dependencies=ENROL)

PROBLEMS = errors.describe(
    errors.HostNotAllowed, errors.OriginNotAllowed, errors.NotFound, errors.InvalidParameters, errors.Locked
)
SENDING = errors.describe(
    errors.BadRequest,
    errors.OriginNotAllowed,
    errors.NotFound,
    errors.Conflict,
    errors.BodyTooLarge,
    errors.UnsupportedMediaType,
    errors.InvalidParameters,
    errors.Unprocessable,
    errors.Overloaded,
    errors.Locked,
)

Collection = Annotated[Key, Path(description="The collection's name.")]
Job = Annotated[Key, Path(description="The job's id.")]
Limit = Annotated[int, Query(ge=1, le=1000)]


async def _upload(request: Request, _: AdmittedDep) -> Upload:
    return await read_upload(request)


@router.post("/collections/{collection}/faces:bulk", status_code=202, openapi_extra=BULK_BODY, responses=SENDING)
async def send(
    collection: Collection,
    params: Annotated[BulkParams, Query()],
    galleries: GalleriesDep,
    upload: Annotated[Upload, Depends(_upload)],
) -> JobInfo:
    """Enrol many faces in the background: a zip of photos, or lines of JSON with pictures or vectors."""
    return await galleries.jobs.submit(collection, upload, params)


@router.get("/collections/{collection}/jobs", responses=PROBLEMS)
async def jobs(
    collection: Collection,
    galleries: GalleriesDep,
    after: Annotated[int, Query(ge=0, le=2**62)] = 0,
    limit: Limit = 100,
) -> JobPage:
    """A collection's jobs, by page; those that ended a week ago are forgotten."""
    return await galleries.jobs.list_jobs(collection, after, limit)


@router.get("/collections/{collection}/jobs/{job}", responses=PROBLEMS)
async def job(collection: Collection, job: Job, galleries: GalleriesDep) -> JobInfo:
    """How far a job is."""
    return await galleries.jobs.job(collection, job)


@router.get("/collections/{collection}/jobs/{job}/items", responses=PROBLEMS)
async def items(
    collection: Collection,
    job: Job,
    galleries: GalleriesDep,
    after: Annotated[int, Query(ge=-1, le=2**62)] = -1,
    limit: Limit = 100,
) -> JobItemPage:
    """What became of each line or file, by page."""
    return await galleries.jobs.items(collection, job, after, limit)


@router.delete("/collections/{collection}/jobs/{job}", responses=PROBLEMS)
async def cancel(collection: Collection, job: Job, galleries: GalleriesDep) -> JobInfo:
    """Enrol no more of a job; what is enrolled stays."""
    return await galleries.jobs.cancel(collection, job)
