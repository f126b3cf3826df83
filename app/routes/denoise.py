"""POST /denoise."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from app import deps, errors
from app.admission import admitted
from app.body import NOISY_BODY
from app.encoding import PNG
from app.generation_schemas import DenoiseParams, DenoiseResponse
from app.routes.answer import answer, describe
from app.scopes import INFER

router = APIRouter(tags=["denoise"], dependencies=INFER)

RESPONSES = describe(PNG, schema=DenoiseResponse) | errors.describe(*errors.OF_PICTURES, errors.Unprocessable)


@router.post("/denoise", response_class=Response, openapi_extra=NOISY_BODY, responses=RESPONSES)
@admitted
async def denoise(request: Request, params: Annotated[DenoiseParams, Query()]) -> Response:
    """A picture without its noise, in its own size; with a `reference`, how near it came."""
    return answer(await deps.restoration(request).denoise(await deps.noisy(request), params, deps.timings(request)))
