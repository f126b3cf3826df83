"""POST /embed, and POST /v1/embeddings for OpenAI's clients."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request

from app import errors
from app.auth.scopes import INFER
from app.faces.dependencies import embeddings_request, faces
from app.faces.request_bodies import EMBEDDINGS_BODY
from app.faces.schemas import EmbedParams, EmbedResponse
from app.images.uploads import IMAGE_BODY, images
from app.middleware.routing import counts_toward_capacity

router = APIRouter(tags=["faces"], dependencies=INFER)

PROBLEMS = errors.describe(*errors.IMAGE_ERRORS, errors.NoFace, errors.Unprocessable)


@router.post("/embed", openapi_extra=IMAGE_BODY, responses=PROBLEMS)
@counts_toward_capacity
async def embed(request: Request, params: Annotated[EmbedParams, Query()]) -> EmbedResponse:
    """Return the embedding of each image's most prominent face, a unit vector; similar faces have nearby vectors."""
    return await faces(request).embed(await images(request), params)


@router.post("/v1/embeddings", openapi_extra=EMBEDDINGS_BODY, responses=PROBLEMS)
@counts_toward_capacity
async def embeddings(request: Request) -> EmbedResponse:
    """`POST /embed` in OpenAI's format: `input` is an image or a list of images, base64 or data URIs."""
    body, images = await embeddings_request(request)
    return await faces(request).embed_openai(body, images)
