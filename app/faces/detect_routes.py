"""POST /faces/detect."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request

from app import dependencies, errors
from app.auth.scopes import INFER
from app.images.uploads import IMAGE_BODY
from app.middleware.load_shedding import admitted
from app.schemas import DetectParams, DetectResponse

router = APIRouter(prefix="/faces", tags=["faces"], dependencies=INFER)

PROBLEMS = errors.describe(*errors.OF_PICTURES)


@router.post("/detect", openapi_extra=IMAGE_BODY, responses=PROBLEMS)
@admitted
async def detect(request: Request, params: Annotated[DetectParams, Query()]) -> DetectResponse:
    """Where are faces, and how good are they? One picture, or up to 64 at once; often a picture has none."""
    return await dependencies.faces(request).detect(
        await dependencies.pictures(request), params, dependencies.timings(request)
    )
