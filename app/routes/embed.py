"""POST /embed, and the same as OpenAI's clients ask for it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request

from app import deps, errors
from app.admission import admitted
from app.body import EMBEDDINGS_BODY, IMAGE_BODY
from app.schemas import EmbedParams, EmbedResponse
from app.scopes import INFER

router = APIRouter(tags=["faces"], dependencies=INFER)

PROBLEMS = errors.describe(*errors.OF_PICTURES, errors.NoFace, errors.Unprocessable)


@router.post("/embed", openapi_extra=IMAGE_BODY, responses=PROBLEMS)
@admitted
async def embed(request: Request, params: Annotated[EmbedParams, Query()]) -> EmbedResponse:
    """Each picture's most prominent face as a point on the unit sphere, where near means alike."""
    return await deps.faces(request).embed(await deps.pictures(request), params, deps.timings(request))


@router.post("/v1/embeddings", openapi_extra=EMBEDDINGS_BODY, responses=PROBLEMS)
@admitted
async def embeddings(request: Request) -> EmbedResponse:
    """`POST /embed` in OpenAI's form: `input` is a picture or a list of them, base64 or data URIs."""
    asked, pictures = await deps.embeddings(request)
    return await deps.faces(request).embed_like_openai(asked, pictures, deps.timings(request))
