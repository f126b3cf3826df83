"""Health probes and metrics."""

from __future__ import annotations

from datetime import datetime
from typing import Literal, Protocol

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import AwareDatetime, Field

from app import errors
from app.auth.scopes import ADMIN
from app.inference.model_manager import ModelManager
from app.observability.metrics import CONTENT_TYPE, Metrics
from app.schemas import Schema

router = APIRouter(tags=["operations"])

METRICS_RESPONSES = errors.describe(errors.HostNotAllowed, *errors.KEY_ERRORS)
METRICS_RESPONSES[200] = {"content": {"text/plain": {}}}


class Health(Schema):
    """The result of a probe: `live` means that the process responds, `ready` that the required models are loaded.

    `degraded`: ready, but within the last minute a device's memory or the disk was full, or the last round of the
    gallery's maintenance failed.
    """

    status: Literal["live", "ready", "degraded"]
    reasons: list[str] = Field([], description="Why the service is degraded.")
    maintained_at: AwareDatetime | None = Field(
        None,
        exclude_if=lambda value: value is None,
        description="When the gallery's last maintenance round without a failed step ended.",
    )
    models: dict[str, str] = Field({}, description="The versions of the loaded models, by name.")


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
    """Return 200 if the default classifier and, if installed, the face detector and embedder are loaded and warm.

    After SIGTERM, while the service still accepts requests (VESTIBULE_STOP_DELAY_S), return 503.
    """
    if request.app.state.is_stopping:
        raise errors.NotReady("the service is stopping")
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
