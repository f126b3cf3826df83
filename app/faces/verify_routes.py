"""POST /verify and POST /verify/embeddings."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request

from app import errors
from app.auth.scopes import INFER
from app.faces.dependencies import faces, pair
from app.faces.request_bodies import PAIR_BODY
from app.faces.schemas import EmbeddingPair, VerifyEmbeddingsResponse, VerifyParams, VerifyResponse
from app.middleware.routing import counts_toward_capacity

router = APIRouter(prefix="/verify", tags=["faces"], dependencies=INFER)

PROBLEMS = errors.describe(*errors.IMAGE_ERRORS, errors.NoFace, errors.Unprocessable)
EMBEDDING_PROBLEMS = errors.describe(
    errors.BadRequest,
    errors.OriginNotAllowed,
    errors.BodyTooLarge,
    errors.InvalidParameters,
    errors.UnknownModel,
    errors.Unprocessable,
    errors.NotReady,
)


@router.post("", openapi_extra=PAIR_BODY, responses=PROBLEMS)
@counts_toward_capacity
async def verify(request: Request, params: Annotated[VerifyParams, Query()]) -> VerifyResponse:
    """Check whether two images show the same person: the source's most prominent face against each target face."""
    return await faces(request).verify(await pair(request), params)


@router.post("/embeddings", responses=EMBEDDING_PROBLEMS)
async def embeddings(
    request: Request, params: Annotated[VerifyParams, Query()], pair: EmbeddingPair
) -> VerifyEmbeddingsResponse:
    """Compare embeddings computed earlier by the same model."""
    return await faces(request).verify_embeddings(pair, params)
