"""POST /classify."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request

from app import dependencies, errors
from app.auth.scopes import INFER
from app.images.uploads import IMAGE_BODY
from app.middleware.load_shedding import admitted
from app.schemas import ClassifyParams, ClassifyResponse

router = APIRouter(tags=["classify"], dependencies=INFER)

PROBLEMS = errors.describe(*errors.OF_PICTURES, errors.Unprocessable)


@router.post("/classify", openapi_extra=IMAGE_BODY, responses=PROBLEMS)
@admitted
async def classify(request: Request, params: Annotated[ClassifyParams, Query()]) -> ClassifyResponse:
    """What is in this picture, or which digits (`sequence`)? One picture, or up to 64 at once."""
    return await dependencies.services(request).classify(
        await dependencies.pictures(request), params, dependencies.timings(request)
    )
