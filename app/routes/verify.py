"""POST /verify and POST /verify/embeddings."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from app import errors
from app.body import PAIR_BODY
from app.deps import FacesDep, PairDep, TimingsDep
from app.schemas import EmbeddingPair, VerifyEmbeddingsResponse, VerifyParams, VerifyResponse
from app.scopes import INFER

router = APIRouter(prefix="/verify", tags=["faces"], dependencies=INFER)

PROBLEMS = errors.describe(*errors.OF_PICTURES, errors.NoFace, errors.Unprocessable)
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
async def verify(
    params: Annotated[VerifyParams, Query()], faces: FacesDep, pair: PairDep, timings: TimingsDep
) -> VerifyResponse:
    """Do two pictures show one person? The source's largest face against every face of the target."""
    return await faces.verify(pair, params, timings)


@router.post("/embeddings", responses=EMBEDDING_PROBLEMS)
async def embeddings(
    params: Annotated[VerifyParams, Query()], faces: FacesDep, pair: EmbeddingPair
) -> VerifyEmbeddingsResponse:
    """The same of embeddings that were made before, by the same model."""
    return await faces.verify_embeddings(pair, params)
