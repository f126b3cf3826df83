"""GET /models and GET /models/{name}."""

from __future__ import annotations

from fastapi import APIRouter

from app import errors
from app.deps import ServicesDep
from app.schemas import ModelDetail, ModelList

router = APIRouter(prefix="/models", tags=["models"])


@router.get("", responses=errors.describe(errors.HostNotAllowed))
async def models(services: ServicesDep) -> ModelList:
    """Every model that can be asked for."""
    return services.models()


@router.get("/{name}", responses=errors.describe(errors.HostNotAllowed, errors.NotFound, errors.InvalidParameters))
async def model(name: str, services: ServicesDep) -> ModelDetail:
    """One model's card: what it is, what it was trained on, how good it measured, its licence."""
    return services.model(name)
