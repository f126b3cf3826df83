"""GET and POST /generate, and GET /generate/interpolate."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Query, Response

from app import errors
from app.deps import AdmittedDep, GenerationDep, TimingsDep
from app.encoding import PNG, WEBP
from app.generation_schemas import GenerateParams, GenerateResponse, InterpolateParams, LatentsRequest
from app.routes.answer import UNCHANGED, answer, describe

router = APIRouter(prefix="/generate", tags=["generate"])

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


@router.get("", response_class=Response, responses=PICTURES | UNCHANGED | PROBLEMS)
async def generate(
    params: Annotated[GenerateParams, Query()],
    generation: GenerationDep,
    timings: TimingsDep,
    _: AdmittedDep,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """New pictures. The same seed answers the same bytes; without one they are others each time."""
    return answer(await generation.generate(params, if_none_match, timings))


@router.post("", response_class=Response, responses=PICTURES | PROBLEMS | SENDING)
async def decode(sent: LatentsRequest, generation: GenerationDep, timings: TimingsDep, _: AdmittedDep) -> Response:
    """The pictures at these points of the latent space; `POST /encode` answers such points."""
    return answer(await generation.decode(sent, timings))


@router.get("/interpolate", response_class=Response, responses=describe(PNG, WEBP) | UNCHANGED | PROBLEMS)
async def interpolate(
    params: Annotated[InterpolateParams, Query()],
    generation: GenerationDep,
    timings: TimingsDep,
    _: AdmittedDep,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """The way from the first sample of one seed to that of another, as a strip or a film."""
    return answer(await generation.interpolate(params, if_none_match, timings))
