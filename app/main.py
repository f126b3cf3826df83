"""The FastAPI application. `create_app` builds it; importing this module has no side effects."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from importlib.metadata import version

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from app import errors
from app.alerts import routes as alerts
from app.alerts.service import AlertService
from app.auth.keys import ApiKeys
from app.background_tasks import background_task
from app.classification import routes as classification
from app.classification.service import Classification
from app.console import routes as console
from app.faces import routes as faces
from app.faces.service import Faces
from app.gallery import routes as gallery
from app.gallery.calibration import routes as calibration
from app.gallery.curation import routes as curation
from app.gallery.maintenance import MaintenanceThread
from app.gallery.service import GalleryService
from app.generation import routes as generation
from app.generation.service import Generation
from app.images import decoding
from app.inference.model_manager import ModelManager
from app.inference.predictor import Predictor
from app.inference.reload_sync import ReloadSync
from app.middleware.authentication import Authentication
from app.middleware.disconnect import Disconnect
from app.middleware.host_and_origin import HeadAsGet, HostAndOrigin, SubPath, refuse_exposure, with_cors
from app.middleware.load_shedding import Capacity, CapacityGuard, LoadShedding
from app.middleware.request_body import BodyBudget, BodyLimit
from app.middleware.request_log import RequestLog
from app.middleware.routing import FastPath, RouteLookup, RouteTable
from app.models_api import routes as models_api
from app.models_api.service import Models
from app.observability.metrics import Metrics
from app.open_inference import routes as open_inference
from app.open_inference.service import OpenInference
from app.operations import routes as operations
from app.restoration import routes as restoration
from app.restoration.service import Restoration
from app.schemas import InferenceError
from app.settings import ConfigurationError, Settings
from app.sightings import routes as sightings
from app.sightings.service import SightingService
from index.factory import open_service_state, open_storage
from index.protocol import Quotas, Storage

ROUTERS = (
    classification.router,
    faces.router,
    generation.router,
    restoration.router,
    gallery.router,
    curation.router,
    sightings.router,
    calibration.router,
    models_api.router,
    alerts.router,
)


def create_app(settings: Settings) -> FastAPI:
    """Build the service without starting it: its lifespan loads the weights and starts all background work.

    Raises:
        UnknownModel: a default model is not in the weights folder. ExposedError: see `refuse_exposure`.
        ConfigurationError: the sub-path is also a path of the service.
    """
    decoding.disable_pillow_limit()
    state = open_service_state(settings.state, settings.database_url())
    keys = ApiKeys(state.keys)
    with closing(state):  # both may open a ledger or connections; closed at once, because a later step may fail
        refuse_exposure(settings, keys)
        reload_sync = ReloadSync(state.reloads)
    metrics = Metrics()
    model_manager = ModelManager(settings, metrics)
    predictor = Predictor(settings, model_manager)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        """Start all background work, and stop it in the reverse order, also if a start fails."""
        async with AsyncExitStack() as stack:
            # Storages are opened before models load, so that an unreadable one ends the startup at once.
            stack.callback(state.close)
            keys.by_hash()
            storage = _open_storage(settings)
            stack.callback(storage.close)
            stack.push_async_callback(model_manager.stop)
            await model_manager.start()
            _add_storage_services(app, predictor, storage)
            maintenance = app.state.maintenance = MaintenanceThread(storage, settings.upkeep_s, metrics)
            maintenance.start()
            stack.push_async_callback(asyncio.to_thread, maintenance.stop)
            app.openapi()  # cached: building it takes half a second, which no request may block the event loop for
            await stack.enter_async_context(background_task(app.state.gallery.jobs.work()))
            await stack.enter_async_context(background_task(app.state.gallery.reembedder.work()))
            await stack.enter_async_context(app.state.alerts.running())
            if settings.workers > 1 or settings.database:
                await stack.enter_async_context(background_task(reload_sync.follow(model_manager)))
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
    app.state.is_stopping = False  # set by the server on SIGTERM
    app.state.model_manager = model_manager
    app.state.metrics = metrics
    app.state.capacity = Capacity(settings.max_requests, metrics)
    app.state.models = Models(model_manager, keys, reload_sync)
    _add_services(app, settings, predictor)
    _add_routes(app)
    _add_middleware(app, settings, keys, metrics, state.quotas)
    return app


def _open_storage(settings: Settings) -> Storage:
    return open_storage(
        settings.state / "gallery",
        key=settings.operator_key(),
        database=settings.database_url(),
        standbys=[url.get_secret_value() for url in settings.database_standbys],
        readers=[url.get_secret_value() for url in settings.database_readers],
    )


def _add_routes(app: FastAPI) -> None:
    errors.install(app)
    for router in ROUTERS:
        app.include_router(router, responses=errors.describe(*errors.KEY_ERRORS))
    app.include_router(open_inference.router, responses=errors.describe(*errors.KEY_ERRORS, schema=InferenceError))
    for router in (operations.router, console.router):
        app.include_router(router, responses=errors.describe(*errors.HEAD_ERRORS))


def _add_services(app: FastAPI, settings: Settings, predictor: Predictor) -> None:
    """Build the services that run models and need no storage."""
    app.state.classification = Classification(predictor)
    app.state.faces = Faces(predictor)
    app.state.generation = Generation(predictor)
    app.state.restoration = Restoration(settings, predictor)
    app.state.open_inference = OpenInference(settings, predictor)


def _add_storage_services(app: FastAPI, predictor: Predictor, storage: Storage) -> None:
    """Build the services that need the open storage."""
    state = app.state
    state.gallery = GalleryService(predictor, storage, state.settings.merge_undo_s)
    state.sightings = SightingService(predictor, storage)
    state.alerts = AlertService(
        storage, predictor.executors, state.settings, state.metrics, lambda: bool(state.is_stopping)
    )


def _add_middleware(app: FastAPI, settings: Settings, keys: ApiKeys, metrics: Metrics, quotas: Quotas | None) -> None:
    """Install the middleware stack, from the innermost to the outermost. Call after all routes are registered."""
    routes, capacity, root_path = RouteTable(app), app.state.capacity, settings.root_path
    if root_path and any((route.route.path or "").startswith(f"{root_path}/") for route in routes.all):
        raise ConfigurationError(f"VESTIBULE_ROOT_PATH: {root_path} is a path of the service itself")
    app.state.load_shedding = LoadShedding(capacity, routes, settings, metrics)  # called by the HTTP protocol
    budget = BodyBudget(settings.max_bodies_bytes, settings.max_body_bytes, metrics)
    # Around FastAPI's own middleware, which the fast path then does not pass.
    stack = app.build_middleware_stack()
    stack = Disconnect(FastPath(stack, routes))
    stack = BodyLimit(CapacityGuard(stack, capacity, metrics), settings, budget)
    stack = Authentication(stack, keys, settings, metrics, quotas=quotas)
    stack = HostAndOrigin(with_cors(stack, settings), settings)
    stack = RouteLookup(RequestLog(stack, metrics), routes)
    app.middleware_stack = SubPath(HeadAsGet(stack), root_path)
