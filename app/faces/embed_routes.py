"""POST /embed, and the same as OpenAI's clients ask for it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request

from app import errors
from app.auth.scopes import INFER
from app.faces.dependencies import embeddings_request, faces
from app.faces.request_bodies import EMBEDDINGS_BODY
from app.faces.schemas import EmbedParams, EmbedResponse
from app.images.request import images
from app.images.uploads import IMAGE_BODY
from app.middleware.load_shedding import admitted

router = APIRouter(tags=["faces"], dependencies=INFER)

PROBLEMS = errors.describe(*errors.OF_PICTURES, errors.NoFace, errors.Unprocessable)


@router.post("/embed", openapi_extra=IMAGE_BODY, responses=PROBLEMS)
@admitted
async def embed(request: Request, params: Annotated[EmbedParams, Query()]) -> EmbedResponse:
    """Each picture's most prominent face as a point on the unit sphere, where near means alike."""
    return await faces(request).embed(await images(request), params)


@router.post("/v1/embeddings", openapi_extra=EMBEDDINGS_BODY, responses=PROBLEMS)
@admitted
async def embeddings(request: Request) -> EmbedResponse:
    """`POST /embed` in OpenAI's form: `input` is a picture or a list of them, base64 or data URIs."""
    asked, pictures = await embeddings_request(request)
    return await faces(request).embed_like_openai(asked, pictures)
