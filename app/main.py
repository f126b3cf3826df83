"""The application: built whole by `create_app`, so that importing it does nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from app import errors, images
from app.body import BodyLimit
from app.deps import Admission
from app.engine import Engine
from app.faces import Faces
from app.inference import Inference
from app.metrics import Metrics
from app.observe import Observe
from app.routes import classify, embed, faces, models, ops, verify
from app.security import Door
from app.services import Services
from app.settings import Settings


def create_app(settings: Settings) -> FastAPI:
    """The service, not yet started: weights load when the server runs the lifespan.

    Raises:
        UnknownModel: the default classifier is not in the weights folder.
    """
    images.own_limits()
    figures = Metrics()
    engine = Engine(settings, figures)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await engine.start()
        yield
        await engine.stop()

    app = FastAPIOffline(
        title="Vestibule",
        summary="A self-hosted vision service.",
        version=version("vestibule"),
        lifespan=lifespan,
        redoc_url=None,
    )
    app.state.settings = settings
    app.state.engine = engine
    app.state.metrics = figures
    inference = Inference(settings, engine)
    app.state.services = Services(inference)
    app.state.faces = Faces(inference)
    app.state.admission = Admission(settings.max_requests, figures)
    errors.install(app)
    for router in (classify.router, faces.router, embed.router, verify.router, models.router, ops.router):
        app.include_router(router)
    # The last added is the outermost.
    app.add_middleware(BodyLimit, limit=settings.max_body_bytes)
    app.add_middleware(Door, hosts=settings.allowed_hosts, origins=settings.allowed_origins)
    app.add_middleware(Observe, metrics=figures)
    return app
