"""GET /models, GET /models/{name} and POST /models/{name}/reload."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path

from app import errors
from app.deps import CallerDep, ServicesDep
from app.schemas import ModelDetail, ModelList, ModelName, ModelReloaded
from app.scopes import ADMIN, INFER

router = APIRouter(prefix="/models", tags=["models"])

READING = errors.describe(errors.HostNotAllowed, errors.NotFound, errors.InvalidParameters)
RELOADING = errors.describe(
    errors.HostNotAllowed,
    errors.OriginNotAllowed,
    errors.NotFound,
    errors.Conflict,
    errors.ModelRefused,
    errors.InvalidParameters,
    errors.OutOfMemory,
)


@router.get("", dependencies=INFER, responses=errors.describe(errors.HostNotAllowed))
async def models(services: ServicesDep) -> ModelList:
    """Every model that can be asked for."""
    return services.models()


@router.get("/{name}", dependencies=INFER, responses=READING)
async def model(name: str, services: ServicesDep) -> ModelDetail:
    """One model's card: what it is, what it was trained on, how good it measured, its licence."""
    return services.model(name)


@router.post("/{name}/reload", dependencies=ADMIN, responses=RELOADING)
async def reload(
    name: Annotated[ModelName, Path(description="That of a folder of the weights folder.")],
    services: ServicesDep,
    caller: CallerDep,
) -> ModelReloaded:
    """Serve what lies in the weights folder under this name by now; requests under way end with what was there."""
    return await services.reload(name, caller)
