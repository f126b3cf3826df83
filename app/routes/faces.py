"""POST /faces/detect."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from app import errors
from app.body import IMAGE_BODY
from app.deps import FacesDep, PicturesDep, TimingsDep
from app.schemas import DetectParams, DetectResponse
from app.scopes import INFER

router = APIRouter(prefix="/faces", tags=["faces"], dependencies=INFER)

PROBLEMS = errors.describe(*errors.OF_PICTURES)


@router.post("/detect", openapi_extra=IMAGE_BODY, responses=PROBLEMS)
async def detect(
    params: Annotated[DetectParams, Query()], faces: FacesDep, pictures: PicturesDep, timings: TimingsDep
) -> DetectResponse:
    """Where are faces, and how good are they? One picture, or up to 64 at once; often a picture has none."""
    return await faces.detect(pictures, params, timings)
