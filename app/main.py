"""The application. `create_app` builds all of it, so that importing this module does nothing."""

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
from app.background_tasks import running
from app.classification import routes as classification
from app.classification.service import Classification
from app.console import routes as console
from app.faces import detect_routes, embed_routes, verify_routes
from app.faces.service import Faces
from app.gallery import routes as gallery
from app.gallery import search_routes
from app.gallery.maintenance import MaintenanceThread
from app.gallery.service import Galleries
from app.generation import routes as generation
from app.generation.service import Generation
from app.images import decoding
from app.inference.model_manager import ModelManager
from app.inference.predictor import Predictor
from app.inference.reload_sync import ReloadSync
from app.middleware.addressing import HeadAsGet, SubPath
from app.middleware.authentication import Gate
from app.middleware.body_limit import BodyBudget, BodyLimit
from app.middleware.body_timeout import Patience
from app.middleware.disconnect import Departure
from app.middleware.fast_path import Direct
from app.middleware.host_and_origin import Door, readable_elsewhere, refuse_exposure
from app.middleware.load_shedding import Admission, Places, Refusal, takes_a_place
from app.middleware.request_log import Observe
from app.models_api import routes as models_api
from app.models_api.service import Models
from app.observability.metrics import Metrics
from app.open_inference import routes as open_inference
from app.open_inference.service import OpenInference
from app.operations import routes as operations
from app.restoration import denoise_routes, encode_routes
from app.restoration.service import Restoration
from app.schemas import InferenceError
from app.settings import ConfigurationError, Settings
from index.embedded.gallery import EmbeddedGallery

ROUTERS = (
    classification.router,
    detect_routes.router,
    embed_routes.router,
    verify_routes.router,
    generation.router,
    denoise_routes.router,
    encode_routes.router,
    search_routes.router,
    gallery.router,
    models_api.router,
)


def create_app(settings: Settings) -> FastAPI:
    """Build the service without starting it: the server's lifespan loads the weights and starts all background work.

    Raises:
        UnknownModel: the default classifier is not in the weights folder. Exposed: see `refuse_exposure`.
        ConfigurationError: the sub-path is that of a route.
    """
    decoding.disable_pillow_limit()
    keys = Keys(settings.state / KEYS_FOLDER)
    refuse_exposure(settings, keys)
    metrics = Metrics()
    reload_sync = ReloadSync(settings.state / "reloads")
    model_manager = ModelManager(settings, metrics)
    predictor = Predictor(settings, model_manager)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        """Start everything that runs, in this order, and stop it in the reverse order, also after a failed start."""
        async with AsyncExitStack() as stack:
            # Ledgers are opened before models load, so that one that cannot be read ends the startup at once.
            stack.callback(keys.close)
            keys.known()
            embedded = EmbeddedGallery(settings.state / "gallery", key=settings.operator_key())
            stack.callback(embedded.close)
            stack.push_async_callback(model_manager.stop)
            await model_manager.start()
            galleries = app.state.galleries = Galleries(predictor, embedded)
            maintenance = app.state.maintenance = MaintenanceThread(embedded, settings.upkeep_s, metrics)
            maintenance.start()
            stack.push_async_callback(asyncio.to_thread, maintenance.stop)
            app.openapi()  # built once: half a second for which no request is to block the event loop
            await stack.enter_async_context(running(galleries.jobs.work()))
            await stack.enter_async_context(running(galleries.reembedder.work()))
            if settings.workers > 1:
                await stack.enter_async_context(running(reload_sync.follow(model_manager)))
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
    app.state.model_manager = model_manager
    app.state.metrics = metrics
    app.state.places = Places(settings.max_requests, metrics)
    app.state.models = Models(model_manager, keys, reload_sync)
    _add_services(app, settings, predictor)
    _add_routes(app)
    _add_middleware(app, settings, keys, metrics)
    return app


def _add_routes(app: FastAPI) -> None:
    errors.install(app)
    for router in ROUTERS:
        app.include_router(router, responses=errors.describe(*errors.OF_KEYS))
    app.include_router(open_inference.router, responses=errors.describe(*errors.OF_KEYS, schema=InferenceError))
    for router in (operations.router, console.router):
        app.include_router(router, responses=errors.describe(*errors.OF_HEADS))


def _add_services(app: FastAPI, settings: Settings, predictor: Predictor) -> None:
    """Build the services that run models; the gallery's is built at startup, when its ledger is open."""
    app.state.classification = Classification(predictor)
    app.state.faces = Faces(predictor)
    app.state.generation = Generation(predictor)
    app.state.restoration = Restoration(settings, predictor)
    app.state.open_inference = OpenInference(settings, predictor)


def _add_middleware(app: FastAPI, settings: Settings, keys: Keys, metrics: Metrics) -> None:
    """Install the middleware stack. Call after all routes are registered. The last one added is the outermost."""
    routes = Routes(app)
    if any((route.route.path or "").startswith(settings.root_path + "/") for route in routes.all if settings.root_path):
        raise ConfigurationError(f"VESTIBULE_ROOT_PATH: {settings.root_path} is a path of the service itself")
    app.add_middleware(Direct, routes=routes)
    app.add_middleware(Departure)
    budget = BodyBudget(settings.max_bodies_bytes, settings.max_body_bytes, metrics)
    app.add_middleware(BodyLimit, routes=routes, limit=settings.max_body_bytes, budget=budget)
    app.add_middleware(Admission, places=app.state.places, routes=routes)
    app.add_middleware(Patience, allowed_s=settings.body_timeout_s, rate=settings.body_bytes_per_s)
    app.add_middleware(Gate, keys=keys, routes=routes, settings=settings, metrics=metrics)
    app.add_middleware(readable_elsewhere, settings=settings)
    app.add_middleware(Door, settings=settings, computes=lambda scope: takes_a_place(routes.find(scope)))
    app.add_middleware(Observe, metrics=metrics)
    app.add_middleware(Refusal, places=app.state.places, routes=routes, settings=settings, metrics=metrics)
    app.add_middleware(HeadAsGet)
    app.add_middleware(SubPath, root_path=settings.root_path)
