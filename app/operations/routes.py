"""Health probes and metrics."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

from fastapi import APIRouter, Request
from fastapi.responses import Response

from app import errors
from app.auth.scopes import ADMIN
from app.inference.model_manager import ModelManager
from app.observability.metrics import CONTENT_TYPE, Metrics
from app.operations.schemas import Health

router = APIRouter(tags=["operations"])

METRICS_RESPONSES = errors.describe(errors.HostNotAllowed, *errors.KEY_ERRORS)
METRICS_RESPONSES[200] = {"content": {"text/plain": {}}}


class Monitored(Protocol):
    """Background work whose state the readiness probe reports."""

    completed_at: datetime | None

    @property
    def problems(self) -> list[str]:
        """Reasons why the service is degraded; empty while all is well."""
        ...


@router.get("/health/live")
async def live() -> Health:
    """Return 200 as long as the process responds."""
    return Health(status="live")


@router.get("/health/ready", responses=errors.describe(errors.NotReady))
async def ready(request: Request) -> Health:
    """Return 200 if the default classifier and, if installed, the face detector and embedder are loaded and warm."""
    model_manager: ModelManager = request.app.state.model_manager
    loaded = {name: card.version for name, card in model_manager.cards.items() if model_manager.is_loaded(name)}
    if missing := [name for name, _ in model_manager.required_models if name not in loaded]:
        raise errors.NotReady(f"not loaded: {', '.join(missing)}")
    maintenance: Monitored = request.app.state.maintenance
    problems = [*model_manager.degradations, *maintenance.problems]
    status = "degraded" if problems else "ready"
    return Health(status=status, models=loaded, reasons=problems, maintained_at=maintenance.completed_at)


@router.get("/metrics", dependencies=ADMIN, response_class=Response, responses=METRICS_RESPONSES)
async def metrics(request: Request) -> Response:
    """Return the metrics in Prometheus' text format."""
    registry: Metrics = request.app.state.metrics
    return Response(registry.exposition(), media_type=CONTENT_TYPE)
