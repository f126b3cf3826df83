"""What routes ask for, of a request; the only place that looks into `app.state`.

Plain functions: each of FastAPI's dependencies takes a twentieth of the time of a small request.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable
from typing import TypeVar

from fastapi import Request

from app.classification.service import Services
from app.faces.service import Faces
from app.gallery.maintenance import Upkeep
from app.gallery.service import Galleries
from app.generation.service import Generation
from app.images import uploads
from app.inference.model_manager import Engine
from app.middleware.request_log import Timings
from app.observability.metrics import Metrics
from app.open_inference.messages import Message, read_message
from app.open_inference.service import OpenInference
from app.restoration.service import Restoration
from app.schemas import EmbeddingsRequest
from app.settings import Settings

T = TypeVar("T")


def engine(request: Request) -> Engine:
    """The models, for what tells of the service itself."""
    found: Engine = request.app.state.engine
    return found


def metrics(request: Request) -> Metrics:
    """The service's figures."""
    found: Metrics = request.app.state.metrics
    return found


def services(request: Request) -> Services:
    """Classifying, and what models there are."""
    found: Services = request.app.state.services
    return found


def faces(request: Request) -> Faces:
    """Detecting, comparing and embedding."""
    found: Faces = request.app.state.faces
    return found


def galleries(request: Request) -> Galleries:
    """Collections."""
    found: Galleries = request.app.state.galleries
    return found


def upkeep(request: Request) -> Upkeep:
    """The gallery's maintenance."""
    found: Upkeep = request.app.state.upkeep
    return found


def generation(request: Request) -> Generation:
    """Drawing."""
    found: Generation = request.app.state.generation
    return found


def restoration(request: Request) -> Restoration:
    """Denoising, and what is between a picture and its code."""
    found: Restoration = request.app.state.restoration
    return found


def open_inference(request: Request) -> OpenInference:
    """The Open Inference Protocol."""
    found: OpenInference = request.app.state.open_inference
    return found


def timings(request: Request) -> Timings:
    """Of this request."""
    found: Timings = request.state.timings
    return found


def caller(request: Request) -> str | None:
    """The id of the key that the request came with; None while the service is open."""
    found: str | None = request.state.caller
    return found


async def pictures(request: Request) -> uploads.Pictures:
    """See `read_pictures`."""
    return await _received(request, uploads.read_pictures(request, _most_images(request), engine(request).decoded))


async def pair(request: Request) -> uploads.Pair:
    """See `read_pair`."""
    return await _received(request, uploads.read_pair(request, engine(request).decoded))


async def noisy(request: Request) -> uploads.Noisy:
    """See `read_noisy`."""
    return await _received(request, uploads.read_noisy(request, _most_images(request), engine(request).decoded))


async def embeddings(request: Request) -> tuple[EmbeddingsRequest, uploads.Pictures]:
    """See `read_embeddings`."""
    return await _received(request, uploads.read_embeddings(request, _most_images(request), engine(request).decoded))


async def message(request: Request) -> Message:
    """See `read_message`."""
    return await _received(request, read_message(request))


async def _received(request: Request, reading: Awaitable[T]) -> T:
    started = time.perf_counter()
    received = await reading
    timings(request).record("receive", time.perf_counter() - started)
    return received


def _most_images(request: Request) -> int:
    settings: Settings = request.app.state.settings
    return settings.max_images
