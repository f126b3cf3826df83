"""Probes and metrics."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from app import dependencies, errors
from app.auth.scopes import ADMIN
from app.observability.metrics import CONTENT_TYPE
from app.schemas import Health

router = APIRouter(tags=["operations"])

FIGURES = errors.describe(errors.HostNotAllowed, *errors.OF_KEYS)
FIGURES[200] = {"content": {"text/plain": {}}}


@router.get("/health/live")
async def live() -> Health:
    """The process answers."""
    return Health(status="live")


@router.get("/health/ready", responses=errors.describe(errors.NotReady))
async def ready(request: Request) -> Health:
    """The default classifier and, where their weights are there, the face pair are loaded and warm."""
    engine = dependencies.engine(request)
    loaded = {name: card.version for name, card in engine.cards.items() if engine.loaded(name)}
    if missing := [name for name, _ in engine.required if name not in loaded]:
        raise errors.NotReady(f"not loaded: {', '.join(missing)}")
    upkeep = dependencies.upkeep(request)
    troubles = [*engine.troubles, *upkeep.troubles]
    status = "degraded" if troubles else "ready"
    return Health(status=status, models=loaded, reasons=troubles, maintained_at=upkeep.completed_at)


@router.get("/metrics", dependencies=ADMIN, response_class=Response, responses=FIGURES)
async def metrics(request: Request) -> Response:
    """Prometheus."""
    return Response(dependencies.metrics(request).exposition(), media_type=CONTENT_TYPE)
