"""Routes of re-embeddings: /collections/{c}/reembed."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Request

from app import dependencies, errors
from app.auth.scopes import ENROL
from app.gallery.dependencies import gallery_service
from app.gallery.schemas import Key, NewEmbedder, ReembeddingInfo

router = APIRouter(tags=["gallery"], dependencies=ENROL)

COMMON = (errors.HostNotAllowed, errors.OriginNotAllowed, errors.NotFound, errors.InvalidParameters)
PROBLEMS = errors.describe(*COMMON)
BEGINNING = errors.describe(
    *COMMON,
    errors.BadRequest,
    errors.BodyTooLarge,
    errors.Conflict,
    errors.UnknownModel,
    errors.NotReady,
    errors.DiskFull,
)
CANCELLING = errors.describe(*COMMON, errors.DiskFull)

Collection = Annotated[Key, Path(description="The collection's name.")]


@router.post("/collections/{collection}/reembed", status_code=202, responses=BEGINNING)
async def begin(request: Request, collection: Collection, params: NewEmbedder) -> ReembeddingInfo:
    """Compute all vectors of a collection again from the stored crops, in the background, and then switch to them."""
    return await gallery_service(request).reembedder.begin(collection, params, dependencies.caller(request))


@router.get("/collections/{collection}/reembed", responses=PROBLEMS)
async def progress(request: Request, collection: Collection) -> ReembeddingInfo:
    """Return the progress of the re-embedding; 404 if there is none or it has ended."""
    return await gallery_service(request).reembedder.progress(collection)


@router.delete("/collections/{collection}/reembed", responses=CANCELLING)
async def cancel(request: Request, collection: Collection) -> ReembeddingInfo:
    """Cancel the re-embedding; the collection keeps its vectors."""
    return await gallery_service(request).reembedder.cancel(collection, dependencies.caller(request))
