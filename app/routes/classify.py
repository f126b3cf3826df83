"""POST /classify."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request

from app import deps, errors
from app.admission import admitted
from app.body import IMAGE_BODY
from app.schemas import ClassifyParams, ClassifyResponse
from app.scopes import INFER

router = APIRouter(tags=["classify"], dependencies=INFER)

PROBLEMS = errors.describe(*errors.OF_PICTURES, errors.Unprocessable)


@router.post("/classify", openapi_extra=IMAGE_BODY, responses=PROBLEMS)
@admitted
async def classify(request: Request, params: Annotated[ClassifyParams, Query()]) -> ClassifyResponse:
    """What is in this picture, or which digits (`sequence`)? One picture, or up to 64 at once."""
    return await deps.services(request).classify(await deps.pictures(request), params, deps.timings(request))
