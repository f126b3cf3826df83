"""POST /search."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request

from app import deps, errors
from app.admission import admitted
from app.body import IMAGE_BODY
from app.gallery_schemas import SearchParams, SearchResponse
from app.scopes import INFER

router = APIRouter(tags=["gallery"], dependencies=INFER)

PROBLEMS = errors.describe(*errors.OF_PICTURES, errors.NotFound, errors.Conflict)


@router.post("/search", openapi_extra=IMAGE_BODY, responses=PROBLEMS)
@admitted
async def search(request: Request, params: Annotated[SearchParams, Query()]) -> SearchResponse:
    """Who is this? Each face of each picture: a `match`, `unknown`, or `rejected`, and the likest subjects."""
    return await deps.galleries(request).recognition.search(
        await deps.pictures(request), params, deps.timings(request), deps.caller(request)
    )
