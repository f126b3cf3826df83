"""POST /encode and POST /reconstruct."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response

from app import errors
from app.body import IMAGE_BODY
from app.deps import PicturesDep, RestorationDep, TimingsDep
from app.encoding import PNG
from app.generation_schemas import EncodeParams, EncodeResponse, ReconstructParams, ReconstructResponse
from app.routes.answer import answer, describe
from app.scopes import INFER

router = APIRouter(tags=["encode"], dependencies=INFER)

PROBLEMS = errors.describe(*errors.OF_PICTURES, errors.Unprocessable)
RESPONSES = describe(PNG, schema=ReconstructResponse) | PROBLEMS


@router.post("/encode", openapi_extra=IMAGE_BODY, responses=PROBLEMS)
async def encode(
    params: Annotated[EncodeParams, Query()], restoration: RestorationDep, pictures: PicturesDep, timings: TimingsDep
) -> EncodeResponse:
    """Each picture as a point of the latent space, where near means alike."""
    return await restoration.encode(pictures, params, timings)


@router.post("/reconstruct", response_class=Response, openapi_extra=IMAGE_BODY, responses=RESPONSES)
async def reconstruct(
    params: Annotated[ReconstructParams, Query()],
    restoration: RestorationDep,
    pictures: PicturesDep,
    timings: TimingsDep,
) -> Response:
    """What is left of a picture that went through the latent space."""
    return answer(await restoration.reconstruct(pictures, params, timings))
