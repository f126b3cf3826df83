"""GET and POST /generate, GET /generate/interpolate, and POST /v1/images/generations."""

from __future__ import annotations

from typing import Annotated, cast

from fastapi import APIRouter, Header, Query, Request, Response

from app import errors
from app.auth.scopes import INFER
from app.generation.schemas import (
    GenerateParams,
    GenerateResponse,
    ImagesRequest,
    ImagesResponse,
    InterpolateParams,
    LatentsRequest,
)
from app.generation.service import Generation
from app.images.encoding import NOT_MODIFIED, PNG, WEBP, describe_files, file_response
from app.middleware.routing import counts_toward_capacity

router = APIRouter(tags=["generate"], dependencies=INFER)

PROBLEMS = errors.describe(
    errors.HostNotAllowed,
    errors.OriginNotAllowed,
    errors.InvalidParameters,
    errors.UnknownModel,
    errors.Unprocessable,
    errors.Overloaded,
    errors.NotReady,
    errors.DeadlineExceeded,
)
BODY_PROBLEMS = errors.describe(errors.BadRequest, errors.BodyTooLarge)
IMAGES = describe_files(PNG, WEBP, schema=GenerateResponse)

IfNoneMatch = Annotated[str | None, Header(description="The `ETag` of an earlier response.")]


def generation(request: Request) -> Generation:
    """Return the generation service."""
    return cast("Generation", request.app.state.generation)


@router.get("/generate", response_class=Response, responses=IMAGES | NOT_MODIFIED | PROBLEMS)
@counts_toward_capacity
async def generate(
    request: Request, params: Annotated[GenerateParams, Query()], if_none_match: IfNoneMatch = None
) -> Response:
    """Generate images. The same seed gives the same bytes; without a seed, a random one is used."""
    return file_response(await generation(request).generate(params, if_none_match))


@router.post("/generate", response_class=Response, responses=IMAGES | PROBLEMS | BODY_PROBLEMS)
@counts_toward_capacity
async def decode(request: Request, body: LatentsRequest) -> Response:
    """Decode latent vectors, such as `POST /encode` returns, to images."""
    return file_response(await generation(request).decode(body))


@router.get(
    "/generate/interpolate", response_class=Response, responses=describe_files(PNG, WEBP) | NOT_MODIFIED | PROBLEMS
)
@counts_toward_capacity
async def interpolate(
    request: Request, params: Annotated[InterpolateParams, Query()], if_none_match: IfNoneMatch = None
) -> Response:
    """Interpolate between the first samples of two seeds, as a strip or an animation."""
    return file_response(await generation(request).interpolate(params, if_none_match))


@router.post("/v1/images/generations", response_model_exclude_none=True, responses=PROBLEMS | BODY_PROBLEMS)
@counts_toward_capacity
async def images(request: Request, body: ImagesRequest) -> ImagesResponse:
    """`GET /generate` in OpenAI's format: `prompt` is the label to generate, or one for each of `n` images."""
    return await generation(request).images(body)
