"""Bulk jobs: /collections/{c}/faces:bulk and /collections/{c}/jobs."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request

from app import dependencies, errors
from app.auth.scopes import ENROL
from app.gallery.bulk.schemas import BulkParams, JobInfo, JobItemPage, JobPage
from app.gallery.bulk.upload import BULK_BODY, read_upload
from app.gallery.routes import ERASING, PROBLEMS, Collection, Limit, gallery_service
from app.gallery.schemas import Key
from app.middleware.routing import counts_toward_capacity

router = APIRouter(tags=["gallery"], dependencies=ENROL)

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
    errors.DiskFull,
)

Job = Annotated[Key, Path(description="The job's id.")]


@router.post("/collections/{collection}/faces:bulk", status_code=202, openapi_extra=BULK_BODY, responses=SENDING)
@counts_toward_capacity
async def send(request: Request, collection: Collection, params: Annotated[BulkParams, Query()]) -> JobInfo:
    """Enrol many faces in the background, from a zip of photos or from lines of JSON with images or vectors."""
    return await gallery_service(request).jobs.submit(
        collection, await read_upload(request), params, dependencies.caller(request)
    )


@router.get("/collections/{collection}/jobs", responses=PROBLEMS)
async def jobs(
    request: Request, collection: Collection, after: Annotated[int, Query(ge=0, le=2**62)] = 0, limit: Limit = 100
) -> JobPage:
    """Return a page of a collection's jobs. Jobs are deleted a week after they end."""
    return await gallery_service(request).jobs.list_jobs(collection, after, limit)


@router.get("/collections/{collection}/jobs/{job}", responses=PROBLEMS)
async def job(request: Request, collection: Collection, job: Job) -> JobInfo:
    """Return a job and its progress."""
    return await gallery_service(request).jobs.job(collection, job)


@router.get("/collections/{collection}/jobs/{job}/items", responses=PROBLEMS)
async def items(
    request: Request,
    collection: Collection,
    job: Job,
    after: Annotated[int, Query(ge=-1, le=2**62)] = -1,
    limit: Limit = 100,
) -> JobItemPage:
    """Return a page of the outcomes of a job's lines or files."""
    return await gallery_service(request).jobs.items(collection, job, after, limit)


@router.delete("/collections/{collection}/jobs/{job}", responses=ERASING)
async def cancel(request: Request, collection: Collection, job: Job) -> JobInfo:
    """Cancel the pending items of a job; enrolled faces stay."""
    return await gallery_service(request).jobs.cancel(collection, job, dependencies.caller(request))
