"""What routes ask for by type; the only place that looks into `app.state`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends, Request

from app.body import Noisy, Pair, Pictures, read_embeddings, read_noisy, read_pair, read_pictures
from app.engine import Engine
from app.errors import Overloaded
from app.faces import Faces
from app.gallery import Galleries
from app.generation import Generation
from app.metrics import Metrics
from app.observe import Timings
from app.oip import OpenInference
from app.oip_messages import Message, read_message
from app.patience import Arrival
from app.restoration import Restoration
from app.schemas import EmbeddingsRequest
from app.services import Services
from app.settings import Settings


class Admission:
    """A bounded number of places for requests that carry pictures; a request without one is not even read."""

    def __init__(self, places: int, metrics: Metrics):
        self._free = places
        self._metrics = metrics
        self._arriving: dict[Arrival, None] = {}

    def enter(self, arrival: Arrival | None = None) -> None:
        """Take a place; where there is none, that of a body which comes too slowly, whose request is over then.

        Raises:
            Overloaded: there is none of these either.
        """
        if self._free <= 0:
            slow = next((one for one in self._arriving if one.is_slow), None)
            if slow is None:
                self._metrics.shed.labels("admission", "").inc()
                raise Overloaded("as many requests as fit are under way", {"Retry-After": "1"})
            self._metrics.shed.labels("slow-body", "").inc()
            del self._arriving[slow]
            slow.give_way()
        if arrival is not None:
            self._arriving[arrival] = None
        self._free -= 1
        self._metrics.in_flight.inc()

    def leave(self, arrival: Arrival | None = None) -> None:
        """Give the place back."""
        if arrival is not None:
            self._arriving.pop(arrival, None)
        self._free += 1
        self._metrics.in_flight.dec()


# All of these are coroutines although they wait for nothing: FastAPI calls plain functions in threads, one after
# another, which took half of a small request's time.
async def _settings(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


async def _engine(request: Request) -> Engine:
    engine: Engine = request.app.state.engine
    return engine


async def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


async def _faces(request: Request) -> Faces:
    faces: Faces = request.app.state.faces
    return faces


async def _galleries(request: Request) -> Galleries:
    galleries: Galleries = request.app.state.galleries
    return galleries


async def _generation(request: Request) -> Generation:
    generation: Generation = request.app.state.generation
    return generation


async def _restoration(request: Request) -> Restoration:
    restoration: Restoration = request.app.state.restoration
    return restoration


async def _open_inference(request: Request) -> OpenInference:
    open_inference: OpenInference = request.app.state.open_inference
    return open_inference


async def _metrics(request: Request) -> Metrics:
    metrics: Metrics = request.app.state.metrics
    return metrics


async def _timings(request: Request) -> Timings:
    timings: Timings = request.state.timings
    return timings


async def _caller(request: Request) -> str | None:
    caller: str | None = request.state.caller
    return caller


async def _admitted(request: Request) -> AsyncIterator[None]:
    admission: Admission = request.app.state.admission
    arrival: Arrival | None = request.scope["state"].get("arrival")
    admission.enter(arrival)
    try:
        yield
    finally:
        admission.leave(arrival)


SettingsDep = Annotated[Settings, Depends(_settings)]
EngineDep = Annotated[Engine, Depends(_engine)]
ServicesDep = Annotated[Services, Depends(_services)]
FacesDep = Annotated[Faces, Depends(_faces)]
GenerationDep = Annotated[Generation, Depends(_generation)]
RestorationDep = Annotated[Restoration, Depends(_restoration)]
OpenInferenceDep = Annotated[OpenInference, Depends(_open_inference)]
GalleriesDep = Annotated[Galleries, Depends(_galleries)]
MetricsDep = Annotated[Metrics, Depends(_metrics)]
TimingsDep = Annotated[Timings, Depends(_timings)]


# The id of the key that the request came with; None while the service is open.
CallerDep = Annotated[str | None, Depends(_caller)]

AdmittedDep = Annotated[None, Depends(_admitted)]


async def _pictures(request: Request, settings: SettingsDep, _: AdmittedDep) -> Pictures:
    return await read_pictures(request, settings.max_images)


async def _pair(request: Request, _: AdmittedDep) -> Pair:
    return await read_pair(request)


async def _noisy(request: Request, settings: SettingsDep, _: AdmittedDep) -> Noisy:
    return await read_noisy(request, settings.max_images)


async def _embeddings(request: Request, settings: SettingsDep, _: AdmittedDep) -> tuple[EmbeddingsRequest, Pictures]:
    return await read_embeddings(request, settings.max_images)


async def _message(request: Request, _: AdmittedDep) -> Message:
    return await read_message(request)


PicturesDep = Annotated[Pictures, Depends(_pictures)]
NoisyDep = Annotated[Noisy, Depends(_noisy)]
PairDep = Annotated[Pair, Depends(_pair)]
MessageDep = Annotated[Message, Depends(_message)]
EmbeddingsDep = Annotated[tuple[EmbeddingsRequest, Pictures], Depends(_embeddings)]
