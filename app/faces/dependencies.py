"""Dependencies of the face routes."""

from __future__ import annotations

from fastapi import Request

from app.faces.request_bodies import Pair, read_embeddings, read_pair
from app.faces.schemas import EmbeddingsRequest
from app.faces.service import Faces
from app.images.uploads import Images, max_images
from app.observability import timings


def faces(request: Request) -> Faces:
    """Return the face service."""
    service: Faces = request.app.state.faces
    return service


async def pair(request: Request) -> Pair:
    """Return the two images of the request; see `read_pair`."""
    return await timings.timed("receive", read_pair(request))


async def embeddings_request(request: Request) -> tuple[EmbeddingsRequest, Images]:
    """Return OpenAI's request for embeddings, and its images; see `read_embeddings`."""
    return await timings.timed("receive", read_embeddings(request, max_images(request)))
