"""POST /encode and POST /reconstruct."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from app import deps, errors
from app.admission import admitted
from app.body import IMAGE_BODY
from app.encoding import PNG
from app.generation_schemas import EncodeParams, EncodeResponse, ReconstructParams, ReconstructResponse
from app.routes.answer import answer, describe
from app.scopes import INFER

router = APIRouter(tags=["encode"], dependencies=INFER)

PROBLEMS = errors.describe(*errors.OF_PICTURES, errors.Unprocessable)
RESPONSES = describe(PNG, schema=ReconstructResponse) | PROBLEMS


@router.post("/encode", openapi_extra=IMAGE_BODY, responses=PROBLEMS)
@admitted
async def encode(request: Request, params: Annotated[EncodeParams, Query()]) -> EncodeResponse:
    """Each picture as a point of the latent space, where near means alike."""
    return await deps.restoration(request).encode(await deps.pictures(request), params, deps.timings(request))


@router.post("/reconstruct", response_class=Response, openapi_extra=IMAGE_BODY, responses=RESPONSES)
@admitted
async def reconstruct(request: Request, params: Annotated[ReconstructParams, Query()]) -> Response:
    """What is left of a picture that went through the latent space."""
    return answer(
        await deps.restoration(request).reconstruct(await deps.pictures(request), params, deps.timings(request))
    )
