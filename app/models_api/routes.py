"""GET /models, GET /models/{name}, POST /models/{name}/reload, and GET /v1/models for OpenAI's clients."""

from __future__ import annotations

from typing import Annotated, cast

from fastapi import APIRouter, Path, Request

from app import errors
from app.auth.scopes import ADMIN, INFER
from app.models_api.schemas import ModelDetail, ModelList, ModelName, ModelReloaded, OpenAIModel, OpenAIModelList
from app.models_api.service import Models

router = APIRouter(tags=["models"])

READING = errors.describe(errors.HostNotAllowed, errors.NotFound, errors.InvalidParameters)
RELOADING = errors.describe(
    errors.HostNotAllowed,
    errors.OriginNotAllowed,
    errors.NotFound,
    errors.Conflict,
    errors.ModelRefused,
    errors.InvalidParameters,
    errors.OutOfMemory,
    errors.DiskFull,
)


def served_models(request: Request) -> Models:
    """Return the service that lists and reloads models."""
    return cast("Models", request.app.state.models)


@router.get("/models", dependencies=INFER, responses=errors.describe(errors.HostNotAllowed))
async def models(request: Request) -> ModelList:
    """List the models."""
    return served_models(request).models()


@router.get("/models/{name}", dependencies=INFER, responses=READING)
async def model(request: Request, name: str) -> ModelDetail:
    """Return a model's card: description, training data, measured accuracy and licence."""
    return served_models(request).model(name)


@router.post("/models/{name}/reload", dependencies=ADMIN, responses=RELOADING)
async def reload(
    request: Request, name: Annotated[ModelName, Path(description="The name of a folder in the weights folder.")]
) -> ModelReloaded:
    """Reload a model from the weights folder; requests in progress finish with the previous weights."""
    return await served_models(request).reload(name, request.state.caller)


@router.get("/v1/models", dependencies=INFER, responses=errors.describe(errors.HostNotAllowed))
async def openai_models(request: Request) -> OpenAIModelList:
    """List the models in OpenAI's format."""
    return OpenAIModelList(data=[OpenAIModel(id=model.name) for model in served_models(request).models().data])


@router.get("/v1/models/{name}", dependencies=INFER, responses=READING)
async def openai_model(request: Request, name: str) -> OpenAIModel:
    """Return a model in OpenAI's format."""
    return OpenAIModel(id=served_models(request).model(name).card.name)
