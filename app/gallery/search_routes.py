"""POST /search."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request

from app import dependencies, errors
from app.auth.scopes import INFER
from app.gallery.dependencies import galleries
from app.gallery.schemas import SearchParams, SearchResponse
from app.images.request import images
from app.images.uploads import IMAGE_BODY
from app.middleware.load_shedding import admitted

router = APIRouter(tags=["gallery"], dependencies=INFER)

PROBLEMS = errors.describe(*errors.OF_PICTURES, errors.NotFound, errors.Conflict)


@router.post("/search", openapi_extra=IMAGE_BODY, responses=PROBLEMS)
@admitted
async def search(request: Request, params: Annotated[SearchParams, Query()]) -> SearchResponse:
    """Who is this? Each face of each picture: a `match`, `unknown`, or `rejected`, and the likest subjects."""
    return await galleries(request).recognition.search(await images(request), params, dependencies.caller(request))
