"""POST /search."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from app import errors
from app.body import IMAGE_BODY
from app.deps import CallerDep, GalleriesDep, PicturesDep, TimingsDep
from app.gallery_schemas import SearchParams, SearchResponse
from app.scopes import INFER

router = APIRouter(tags=["gallery"], dependencies=INFER)

PROBLEMS = errors.describe(*errors.OF_PICTURES, errors.NotFound, errors.Conflict)


@router.post("/search", openapi_extra=IMAGE_BODY, responses=PROBLEMS)
async def search(
    params: Annotated[SearchParams, Query()],
    galleries: GalleriesDep,
    pictures: PicturesDep,
    timings: TimingsDep,
    caller: CallerDep,
) -> SearchResponse:
    """Who is this? Each face of each picture: a `match`, `unknown`, or `rejected`, and the likest subjects."""
    return await galleries.recognition.search(pictures, params, timings, caller)
