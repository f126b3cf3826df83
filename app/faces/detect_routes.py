"""POST /faces/detect."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request

from app import errors
from app.auth.scopes import INFER
from app.faces.dependencies import faces
from app.faces.schemas import DetectParams, DetectResponse
from app.images.uploads import IMAGE_BODY, images
from app.middleware.routing import counts_toward_capacity

router = APIRouter(prefix="/faces", tags=["faces"], dependencies=INFER)

PROBLEMS = errors.describe(*errors.IMAGE_ERRORS)


@router.post("/detect", openapi_extra=IMAGE_BODY, responses=PROBLEMS)
@counts_toward_capacity
async def detect(request: Request, params: Annotated[DetectParams, Query()]) -> DetectResponse:
    """Detect the faces in an image or a list of up to 64, and measure their quality."""
    return await faces(request).detect(await images(request), params)
