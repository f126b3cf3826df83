"""POST /faces/detect."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request

from app import deps, errors
from app.admission import admitted
from app.body import IMAGE_BODY
from app.schemas import DetectParams, DetectResponse
from app.scopes import INFER

router = APIRouter(prefix="/faces", tags=["faces"], dependencies=INFER)

PROBLEMS = errors.describe(*errors.OF_PICTURES)


@router.post("/detect", openapi_extra=IMAGE_BODY, responses=PROBLEMS)
@admitted
async def detect(request: Request, params: Annotated[DetectParams, Query()]) -> DetectResponse:
    """Where are faces, and how good are they? One picture, or up to 64 at once; often a picture has none."""
    return await deps.faces(request).detect(await deps.pictures(request), params, deps.timings(request))
