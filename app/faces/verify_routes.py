"""POST /verify and POST /verify/embeddings."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request

from app import dependencies, errors
from app.auth.scopes import INFER
from app.images.uploads import PAIR_BODY
from app.middleware.load_shedding import admitted
from app.schemas import EmbeddingPair, VerifyEmbeddingsResponse, VerifyParams, VerifyResponse

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
@admitted
async def verify(request: Request, params: Annotated[VerifyParams, Query()]) -> VerifyResponse:
    """Do two pictures show one person? The source's most prominent face against every face of the target."""
    return await dependencies.faces(request).verify(
        await dependencies.pair(request), params, dependencies.timings(request)
    )


@router.post("/embeddings", responses=EMBEDDING_PROBLEMS)
async def embeddings(
    request: Request, params: Annotated[VerifyParams, Query()], pair: EmbeddingPair
) -> VerifyEmbeddingsResponse:
    """The same of embeddings that were made before, by the same model."""
    return await dependencies.faces(request).verify_embeddings(pair, params)
