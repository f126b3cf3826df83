"""The application: built whole by `create_app`, so that importing it does nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from app import errors
from app.auth.keys import FOLDER as KEYS_FOLDER
from app.auth.keys import Keys
from app.auth.scopes import Routes
from app.classification import routes as classify
from app.classification.service import Services
from app.console import routes as web
from app.faces import detect_routes, embed_routes, verify_routes
from app.faces.service import Faces
from app.gallery import routes as collections
from app.gallery import search_routes
from app.gallery.maintenance import Upkeep
from app.gallery.service import Galleries
from app.generation import routes as generate
from app.generation.service import Generation
from app.images import decoding
from app.inference.model_manager import Engine
from app.inference.predictor import Inference
from app.inference.reload_sync import Reloads
from app.middleware.addressing import HeadAsGet, SubPath
from app.middleware.authentication import Gate
from app.middleware.body_limit import BodyBudget, BodyLimit
from app.middleware.body_timeout import Patience
from app.middleware.disconnect import Departure
from app.middleware.fast_path import Direct
from app.middleware.host_and_origin import Door, readable_elsewhere, refuse_exposure
from app.middleware.load_shedding import Admission, Places, Refusal, takes_a_place
from app.middleware.request_log import Observe
from app.models_api import routes as models
from app.observability.metrics import Metrics
from app.open_inference import routes as oip
from app.open_inference.schemas import InferenceError
from app.open_inference.service import OpenInference
from app.operations import routes as ops
from app.operations.background_tasks import running
from app.restoration import denoise_routes, encode_routes
from app.restoration.service import Restoration
from app.settings import ConfigurationError, Settings
from index.embedded.gallery import EmbeddedGallery


def create_app(settings: Settings) -> FastAPI:
    """The service, not yet started: weights load when the server runs the lifespan.

    Raises:
        UnknownModel: the default classifier is not in the weights folder. Exposed: see `refuse_exposure`.
        ConfigurationError: the sub-path is that of a route.
    """
    decoding.own_limits()
    keys = Keys(settings.state / KEYS_FOLDER)
    refuse_exposure(settings, keys)
    figures = Metrics()
    reloads = Reloads(settings.state / "reloads")
    engine = Engine(settings, figures)
    inference = Inference(settings, engine)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # Ledgers are opened before models load, so that one that cannot be read ends the start at once.
        async with AsyncExitStack() as started:
            started.callback(keys.close)
            keys.known()
            gallery = EmbeddedGallery(settings.state / "gallery", key=settings.operator_key())
            started.callback(gallery.close)
            started.push_async_callback(engine.stop)
            await engine.start()
            app.state.galleries = Galleries(inference, gallery)
            upkeep = app.state.upkeep = Upkeep(gallery, settings.upkeep_s, figures)
            upkeep.start()
            started.push_async_callback(asyncio.to_thread, upkeep.stop)
            app.openapi()  # built once: half a second for which no request is to block the event loop
            if settings.workers > 1:
                await started.enter_async_context(running(reloads.follow(engine)))
            yield

    app = FastAPIOffline(
        title="Vestibule",
        summary="A self-hosted vision service.",
        version=version("vestibule"),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        servers=[{"url": settings.root_path}] if settings.root_path else None,
    )
    app.state.settings = settings
    app.state.engine = engine
    app.state.metrics = figures
    app.state.services = Services(inference, keys, reloads)
    app.state.faces = Faces(inference)
    app.state.generation = Generation(inference)
    app.state.restoration = Restoration(settings, inference)
    app.state.open_inference = OpenInference(settings, inference)
    app.state.places = Places(settings.max_requests, figures)
    errors.install(app)
    for routes in (
        classify,
        detect_routes,
        embed_routes,
        verify_routes,
        generate,
        denoise_routes,
        encode_routes,
        search_routes,
        collections,
        models,
    ):
        app.include_router(routes.router, responses=errors.describe(*errors.OF_KEYS))
    app.include_router(oip.router, responses=errors.describe(*errors.OF_KEYS, schema=InferenceError))
    for routes in (ops, web):
        app.include_router(routes.router, responses=errors.describe(*errors.OF_HEADS))
    _guard(app, settings, keys, figures)
    return app


def _guard(app: FastAPI, settings: Settings, keys: Keys, figures: Metrics) -> None:
    """What stands before the routes, of which there are no more from now on. The last added is the outermost."""
    routes = Routes(app)
    if any((one.route.path or "").startswith(settings.root_path + "/") for one in routes.all if settings.root_path):
        raise ConfigurationError(f"VESTIBULE_ROOT_PATH: {settings.root_path} is a path of the service itself")
    app.add_middleware(Direct, routes=routes)
    app.add_middleware(Departure)
    budget = BodyBudget(settings.max_bodies_bytes, settings.max_body_bytes, figures)
    app.add_middleware(BodyLimit, routes=routes, limit=settings.max_body_bytes, budget=budget)
    app.add_middleware(Admission, places=app.state.places, routes=routes)
    app.add_middleware(Patience, allowed_s=settings.body_timeout_s, rate=settings.body_bytes_per_s)
    app.add_middleware(Gate, keys=keys, routes=routes, settings=settings, metrics=figures)
    app.add_middleware(readable_elsewhere, settings=settings)
    app.add_middleware(Door, settings=settings, computes=lambda scope: takes_a_place(routes.find(scope)))
    app.add_middleware(Observe, metrics=figures)
    app.add_middleware(Refusal, places=app.state.places, routes=routes, settings=settings, metrics=figures)
    app.add_middleware(HeadAsGet)
    app.add_middleware(SubPath, root_path=settings.root_path)
