"""POST /classify."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from app import errors
from app.body import IMAGE_BODY
from app.deps import PicturesDep, ServicesDep, TimingsDep
from app.schemas import ClassifyParams, ClassifyResponse
from app.scopes import INFER

router = APIRouter(tags=["classify"], dependencies=INFER)

PROBLEMS = errors.describe(*errors.OF_PICTURES, errors.Unprocessable)


@router.post("/classify", openapi_extra=IMAGE_BODY, responses=PROBLEMS)
async def classify(
    params: Annotated[ClassifyParams, Query()], services: ServicesDep, pictures: PicturesDep, timings: TimingsDep
) -> ClassifyResponse:
    """What is in this picture, or which digits (`sequence`)? One picture, or up to 64 at once."""
    return await services.classify(pictures, params, timings)
