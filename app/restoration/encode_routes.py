"""POST /encode and POST /reconstruct."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from app import errors
from app.auth.scopes import INFER
from app.generation.schemas import EncodeParams, EncodeResponse, ReconstructParams, ReconstructResponse
from app.images.encoding import PNG
from app.images.responses import describe_files, file_response
from app.images.uploads import IMAGE_BODY, images
from app.middleware.routing import counts_toward_capacity
from app.restoration.dependencies import restoration

router = APIRouter(tags=["encode"], dependencies=INFER)

PROBLEMS = errors.describe(*errors.IMAGE_ERRORS, errors.Unprocessable)
RESPONSES = describe_files(PNG, schema=ReconstructResponse) | PROBLEMS


@router.post("/encode", openapi_extra=IMAGE_BODY, responses=PROBLEMS)
@counts_toward_capacity
async def encode(request: Request, params: Annotated[EncodeParams, Query()]) -> EncodeResponse:
    """Return each image's latent vector; similar images have nearby vectors."""
    return await restoration(request).encode(await images(request), params)


@router.post("/reconstruct", response_class=Response, openapi_extra=IMAGE_BODY, responses=RESPONSES)
@counts_toward_capacity
async def reconstruct(request: Request, params: Annotated[ReconstructParams, Query()]) -> Response:
    """Encode an image to its latent vector and decode it again."""
    return file_response(await restoration(request).reconstruct(await images(request), params))
