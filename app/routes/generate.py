"""GET and POST /generate, GET /generate/interpolate, and POST /v1/images/generations."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Query, Response

from app import errors
from app.deps import AdmittedDep, GenerationDep, TimingsDep
from app.encoding import PNG, WEBP
from app.generation_schemas import (
    GenerateParams,
    GenerateResponse,
    ImagesRequest,
    ImagesResponse,
    InterpolateParams,
    LatentsRequest,
)
from app.routes.answer import UNCHANGED, answer, describe
from app.scopes import INFER

router = APIRouter(tags=["generate"], dependencies=INFER)

PROBLEMS = errors.describe(
    errors.HostNotAllowed,
    errors.InvalidParameters,
    errors.UnknownModel,
    errors.Unprocessable,
    errors.Overloaded,
    errors.NotReady,
    errors.DeadlineExceeded,
)
SENDING = errors.describe(errors.BadRequest, errors.OriginNotAllowed, errors.BodyTooLarge)
PICTURES = describe(PNG, WEBP, schema=GenerateResponse)

IfNoneMatch = Annotated[str | None, Header(description="An `ETag` that was answered before.")]


@router.get("/generate", response_class=Response, responses=PICTURES | UNCHANGED | PROBLEMS)
async def generate(
    params: Annotated[GenerateParams, Query()],
    generation: GenerationDep,
    timings: TimingsDep,
    _: AdmittedDep,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """New pictures. The same seed answers the same bytes; without one they are others each time."""
    return answer(await generation.generate(params, if_none_match, timings))


@router.post("/generate", response_class=Response, responses=PICTURES | PROBLEMS | SENDING)
async def decode(sent: LatentsRequest, generation: GenerationDep, timings: TimingsDep, _: AdmittedDep) -> Response:
    """The pictures at these points of the latent space; `POST /encode` answers such points."""
    return answer(await generation.decode(sent, timings))


@router.get("/generate/interpolate", response_class=Response, responses=describe(PNG, WEBP) | UNCHANGED | PROBLEMS)
async def interpolate(
    params: Annotated[InterpolateParams, Query()],
    generation: GenerationDep,
    timings: TimingsDep,
    _: AdmittedDep,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """The way from the first sample of one seed to that of another, as a strip or a film."""
    return answer(await generation.interpolate(params, if_none_match, timings))


@router.post("/v1/images/generations", response_model_exclude_none=True, responses=PROBLEMS | SENDING)
async def images(sent: ImagesRequest, generation: GenerationDep, timings: TimingsDep, _: AdmittedDep) -> ImagesResponse:
    """`GET /generate` in OpenAI's form: `prompt` is the label to draw, or one for each of `n` pictures."""
    return await generation.images(sent, timings)
