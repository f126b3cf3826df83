"""Collections embedded anew: /collections/{c}/reembed."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Request

from app import dependencies, errors
from app.auth.scopes import ENROL
from app.gallery.dependencies import galleries
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
async def begin(request: Request, collection: Collection, asked: NewEmbedder) -> ReembeddingInfo:
    """Make all vectors of a collection anew, in the background, from the crops that were kept, and then switch."""
    return await galleries(request).reembedder.begin(collection, asked, dependencies.caller(request))


@router.get("/collections/{collection}/reembed", responses=PROBLEMS)
async def progress(request: Request, collection: Collection) -> ReembeddingInfo:
    """How far that is; 404 where it is over, or was not asked for."""
    return await galleries(request).reembedder.progress(collection)


@router.delete("/collections/{collection}/reembed", responses=CANCELLING)
async def cancel(request: Request, collection: Collection) -> ReembeddingInfo:
    """Leave the collection as it is."""
    return await galleries(request).reembedder.cancel(collection, dependencies.caller(request))
