"""POST /denoise, POST /encode and POST /reconstruct."""

from __future__ import annotations

from typing import Annotated, cast

from fastapi import APIRouter, Query, Request, Response

from app import errors
from app.auth.scopes import INFER
from app.generation.schemas import (
    DenoiseParams,
    DenoiseResponse,
    EncodeParams,
    EncodeResponse,
    ReconstructParams,
    ReconstructResponse,
)
from app.images.encoding import PNG, describe_files, file_response
from app.images.uploads import IMAGE_BODY, images, max_images
from app.middleware.routing import counts_toward_capacity
from app.observability import timings
from app.restoration.request_bodies import DENOISE_BODY, read_denoise_request
from app.restoration.service import Restoration

router = APIRouter(dependencies=INFER)

PROBLEMS = errors.describe(*errors.IMAGE_ERRORS, errors.Unprocessable)
DENOISED = describe_files(PNG, schema=DenoiseResponse) | PROBLEMS
RECONSTRUCTED = describe_files(PNG, schema=ReconstructResponse) | PROBLEMS


def restoration(request: Request) -> Restoration:
    """Return the restoration service."""
    return cast("Restoration", request.app.state.restoration)


@router.post("/denoise", tags=["denoise"], response_class=Response, openapi_extra=DENOISE_BODY, responses=DENOISED)
@counts_toward_capacity
async def denoise(request: Request, params: Annotated[DenoiseParams, Query()]) -> Response:
    """Denoise an image in its own size; with a `reference`, also measure the result."""
    body = await timings.timed("receive", read_denoise_request(request, max_images(request)))
    return file_response(await restoration(request).denoise(body, params))


@router.post("/encode", tags=["encode"], openapi_extra=IMAGE_BODY, responses=PROBLEMS)
@counts_toward_capacity
async def encode(request: Request, params: Annotated[EncodeParams, Query()]) -> EncodeResponse:
    """Return each image's latent vector; similar images have nearby vectors."""
    return await restoration(request).encode(await images(request), params)


@router.post(
    "/reconstruct", tags=["encode"], response_class=Response, openapi_extra=IMAGE_BODY, responses=RECONSTRUCTED
)
@counts_toward_capacity
async def reconstruct(request: Request, params: Annotated[ReconstructParams, Query()]) -> Response:
    """Encode an image to its latent vector and decode it again."""
    return file_response(await restoration(request).reconstruct(await images(request), params))
