"""Route of searches: POST /search."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request

from app import dependencies, errors
from app.auth.scopes import INFER
from app.gallery.dependencies import gallery_service
from app.gallery.search_schemas import SearchParams, SearchResponse
from app.images.uploads import IMAGE_BODY, images
from app.middleware.routing import counts_toward_capacity

router = APIRouter(tags=["gallery"], dependencies=INFER)

PROBLEMS = errors.describe(*errors.IMAGE_ERRORS, errors.NotFound, errors.Conflict)


@router.post("/search", openapi_extra=IMAGE_BODY, responses=PROBLEMS)
@counts_toward_capacity
async def search(request: Request, params: Annotated[SearchParams, Query()]) -> SearchResponse:
    """Return for each face of each image whether it is a `match`, `unknown` or `rejected`, and the nearest subjects."""
    return await gallery_service(request).searches.search(await images(request), params, dependencies.caller(request))
