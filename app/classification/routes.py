"""POST /classify."""

from __future__ import annotations

from typing import Annotated, cast

from fastapi import APIRouter, Query, Request

from app import errors
from app.auth.scopes import INFER
from app.classification.schemas import ClassifyParams, ClassifyResponse
from app.classification.service import Classification
from app.images.uploads import IMAGE_BODY, images
from app.middleware.routing import counts_toward_capacity

router = APIRouter(tags=["classify"], dependencies=INFER)

PROBLEMS = errors.describe(*errors.IMAGE_ERRORS, errors.Unprocessable)


def classification(request: Request) -> Classification:
    """Return the classification service."""
    return cast("Classification", request.app.state.classification)


@router.post("/classify", openapi_extra=IMAGE_BODY, responses=PROBLEMS)
@counts_toward_capacity
async def classify(request: Request, params: Annotated[ClassifyParams, Query()]) -> ClassifyResponse:
    """Classify an image or a list of up to 64; with `sequence`, read strings of digits."""
    return await classification(request).classify(await images(request), params)
