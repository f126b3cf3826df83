"""POST /embed, and the same as OpenAI's clients ask for it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from app import errors
from app.body import EMBEDDINGS_BODY, IMAGE_BODY
from app.deps import EmbeddingsDep, FacesDep, PicturesDep, TimingsDep
from app.schemas import EmbedParams, EmbedResponse
from app.scopes import INFER

router = APIRouter(tags=["faces"], dependencies=INFER)

PROBLEMS = errors.describe(*errors.OF_PICTURES, errors.NoFace, errors.Unprocessable)


@router.post("/embed", openapi_extra=IMAGE_BODY, responses=PROBLEMS)
async def embed(
    params: Annotated[EmbedParams, Query()], faces: FacesDep, pictures: PicturesDep, timings: TimingsDep
) -> EmbedResponse:
    """Each picture's largest face as a point on the unit sphere, where near means alike."""
    return await faces.embed(pictures, params, timings)


@router.post("/v1/embeddings", openapi_extra=EMBEDDINGS_BODY, responses=PROBLEMS)
async def embeddings(sent: EmbeddingsDep, faces: FacesDep, timings: TimingsDep) -> EmbedResponse:
    """`POST /embed` in OpenAI's form: `input` is a picture or a list of them, base64 or data URIs."""
    asked, pictures = sent
    return await faces.embed_like_openai(asked, pictures, timings)
