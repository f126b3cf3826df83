"""POST /denoise."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response

from app import errors
from app.body import NOISY_BODY
from app.deps import NoisyDep, RestorationDep, TimingsDep
from app.encoding import PNG
from app.generation_schemas import DenoiseParams, DenoiseResponse
from app.routes.answer import answer, describe
from app.scopes import INFER

router = APIRouter(tags=["denoise"], dependencies=INFER)

RESPONSES = describe(PNG, schema=DenoiseResponse) | errors.describe(*errors.OF_PICTURES, errors.Unprocessable)


@router.post("/denoise", response_class=Response, openapi_extra=NOISY_BODY, responses=RESPONSES)
async def denoise(
    params: Annotated[DenoiseParams, Query()], restoration: RestorationDep, sent: NoisyDep, timings: TimingsDep
) -> Response:
    """A picture without its noise, in its own size; with a `reference`, how near it came."""
    return answer(await restoration.denoise(sent, params, timings))
