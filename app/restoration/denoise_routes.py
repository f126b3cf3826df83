"""POST /denoise."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from app import errors
from app.auth.scopes import INFER
from app.generation.schemas import DenoiseParams, DenoiseResponse
from app.images.encoding import PNG
from app.images.responses import describe_files, file_response
from app.middleware.routing import counts_toward_capacity
from app.restoration.dependencies import denoise_request, restoration
from app.restoration.request_bodies import DENOISE_BODY

router = APIRouter(tags=["denoise"], dependencies=INFER)

RESPONSES = describe_files(PNG, schema=DenoiseResponse) | errors.describe(*errors.IMAGE_ERRORS, errors.Unprocessable)


@router.post("/denoise", response_class=Response, openapi_extra=DENOISE_BODY, responses=RESPONSES)
@counts_toward_capacity
async def denoise(request: Request, params: Annotated[DenoiseParams, Query()]) -> Response:
    """Denoise an image in its own size; with a `reference`, also measure the result."""
    return file_response(await restoration(request).denoise(await denoise_request(request), params))
