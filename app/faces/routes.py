"""Routes for faces: POST /faces/detect, /embed, /verify and /verify/embeddings; /v1/embeddings for OpenAI's clients."""

from __future__ import annotations

from typing import Annotated, cast

from fastapi import APIRouter, Query, Request

from app import errors
from app.auth.scopes import INFER
from app.faces.request_bodies import EMBEDDINGS_BODY, PAIR_BODY, read_embeddings, read_pair
from app.faces.schemas import (
    DetectParams,
    DetectResponse,
    EmbeddingPair,
    EmbedParams,
    EmbedResponse,
    VerifyEmbeddingsResponse,
    VerifyParams,
    VerifyResponse,
)
from app.faces.service import Faces
from app.images.uploads import IMAGE_BODY, images, max_images
from app.middleware.routing import counts_toward_capacity
from app.observability import timings

router = APIRouter(tags=["faces"], dependencies=INFER)

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


def faces(request: Request) -> Faces:
    """Return the face service."""
    return cast("Faces", request.app.state.faces)


@router.post("/faces/detect", openapi_extra=IMAGE_BODY, responses=errors.describe(*errors.IMAGE_ERRORS))
@counts_toward_capacity
async def detect(request: Request, params: Annotated[DetectParams, Query()]) -> DetectResponse:
    """Detect the faces in an image or a list of up to 64, and measure their quality."""
    return await faces(request).detect(await images(request), params)


@router.post("/embed", openapi_extra=IMAGE_BODY, responses=PROBLEMS)
@counts_toward_capacity
async def embed(request: Request, params: Annotated[EmbedParams, Query()]) -> EmbedResponse:
    """Return the embedding of each image's most prominent face, a unit vector; similar faces have nearby vectors.

    A classifier as `model` returns its features of the whole image; similar images have nearby vectors.
    """
    return await faces(request).embed(await images(request), params)


@router.post("/v1/embeddings", openapi_extra=EMBEDDINGS_BODY, responses=PROBLEMS)
@counts_toward_capacity
async def embeddings(request: Request) -> EmbedResponse:
    """`POST /embed` in OpenAI's format: `input` is an image or a list of images, base64 or data URIs."""
    reading = read_embeddings(request, max_images(request))
    return await faces(request).embed_openai(*await timings.timed("receive", reading))


@router.post("/verify", openapi_extra=PAIR_BODY, responses=PROBLEMS)
@counts_toward_capacity
async def verify(request: Request, params: Annotated[VerifyParams, Query()]) -> VerifyResponse:
    """Check whether two images show the same person: the source's most prominent face against each target face."""
    return await faces(request).verify(await timings.timed("receive", read_pair(request)), params)


@router.post("/verify/embeddings", name="embeddings", responses=EMBEDDING_PROBLEMS)
async def verify_embeddings(
    request: Request, params: Annotated[VerifyParams, Query()], pair: EmbeddingPair
) -> VerifyEmbeddingsResponse:
    """Compare embeddings computed earlier by the same model."""
    return await faces(request).verify_embeddings(pair, params)
