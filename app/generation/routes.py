"""GET and POST /generate, GET /generate/interpolate, and POST /v1/images/generations."""

from __future__ import annotations

from typing import Annotated

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
from app.images.encoding import PNG, WEBP
from app.images.responses import NOT_MODIFIED, describe_files, file_response
from app.middleware.load_shedding import admitted

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
SENDING = errors.describe(errors.BadRequest, errors.BodyTooLarge)
PICTURES = describe_files(PNG, WEBP, schema=GenerateResponse)

IfNoneMatch = Annotated[str | None, Header(description="An `ETag` that was answered before.")]


def generation(request: Request) -> Generation:
    """Return the generation service."""
    service: Generation = request.app.state.generation
    return service


@router.get("/generate", response_class=Response, responses=PICTURES | NOT_MODIFIED | PROBLEMS)
@admitted
async def generate(
    request: Request, params: Annotated[GenerateParams, Query()], if_none_match: IfNoneMatch = None
) -> Response:
    """New pictures. The same seed answers the same bytes; without one they are others each time."""
    return file_response(await generation(request).generate(params, if_none_match))


@router.post("/generate", response_class=Response, responses=PICTURES | PROBLEMS | SENDING)
@admitted
async def decode(request: Request, sent: LatentsRequest) -> Response:
    """The pictures at these points of the latent space; `POST /encode` answers such points."""
    return file_response(await generation(request).decode(sent))


@router.get(
    "/generate/interpolate", response_class=Response, responses=describe_files(PNG, WEBP) | NOT_MODIFIED | PROBLEMS
)
@admitted
async def interpolate(
    request: Request, params: Annotated[InterpolateParams, Query()], if_none_match: IfNoneMatch = None
) -> Response:
    """The way from the first sample of one seed to that of another, as a strip or a film."""
    return file_response(await generation(request).interpolate(params, if_none_match))


@router.post("/v1/images/generations", response_model_exclude_none=True, responses=PROBLEMS | SENDING)
@admitted
async def images(request: Request, sent: ImagesRequest) -> ImagesResponse:
    """`GET /generate` in OpenAI's form: `prompt` is the label to draw, or one for each of `n` pictures."""
    return await generation(request).images(sent)
