"""Routes of the Open Inference Protocol, for its existing clients (`tritonclient`, KServe's)."""

from __future__ import annotations

from typing import Annotated, cast

from fastapi import APIRouter, Depends, Path, Request, Response

from app import errors
from app.auth.scopes import INFER
from app.images.encoding import describe_files, file_response
from app.middleware.routing import counts_toward_capacity
from app.observability import timings
from app.open_inference.messages import INFER_BODY, OCTET_STREAM, read_message
from app.open_inference.schemas import (
    IndexedModel,
    InferenceResponse,
    ModelMetadata,
    ModelReady,
    ServerLive,
    ServerMetadata,
    ServerReady,
)
from app.open_inference.service import OpenInference
from app.operations import routes as operations_routes
from app.operations.routes import Health
from app.schemas import InferenceError

router = APIRouter(prefix=errors.OIP, tags=["open inference protocol"])

Name = Annotated[str, Path(description="A name from /v2/repository/index.", examples=["lenet5-mnist"])]
Version = Annotated[str, Path(description="The version in the model's metadata; each model has one.")]

READING = errors.describe(errors.HostNotAllowed, schema=InferenceError)
PROBES = errors.describe(errors.HostNotAllowed, errors.NotReady, schema=InferenceError)
NAMED = errors.describe(errors.HostNotAllowed, errors.NotFound, errors.InvalidParameters, schema=InferenceError)
SENDING = errors.describe(errors.OriginNotAllowed, errors.BodyTooLarge, schema=InferenceError)
INFERRING = describe_files(OCTET_STREAM, schema=InferenceResponse) | errors.describe(
    errors.BadRequest,
    errors.DamagedImage,
    errors.OriginNotAllowed,
    errors.NotFound,
    errors.BodyTooLarge,
    errors.ImageTooLarge,
    errors.TooManyImages,
    errors.TooManyPixels,
    errors.UnsupportedImage,
    errors.UnsupportedMediaType,
    errors.Unprocessable,
    errors.Overloaded,
    errors.NotReady,
    errors.DeadlineExceeded,
    schema=InferenceError,
)


def open_inference(request: Request) -> OpenInference:
    """Return the service of the Open Inference Protocol."""
    return cast("OpenInference", request.app.state.open_inference)


@router.get("", dependencies=INFER, responses=READING)
async def server(request: Request) -> ServerMetadata:
    """Return the server's name and version, and the protocol extensions it supports."""
    return open_inference(request).server()


@router.get("/health/live", responses=READING)
async def live() -> ServerLive:
    """Return whether the process is running."""
    return ServerLive()


@router.get("/health/ready", responses=PROBES)
async def ready(_: Annotated[Health, Depends(operations_routes.ready)]) -> ServerReady:
    """Return whether the default model is loaded and warm."""
    return ServerReady()


@router.post("/repository/index", dependencies=INFER, responses=SENDING)
async def index(request: Request) -> list[IndexedModel]:
    """List the models. The request body is ignored: every model is ready, and its first request loads it."""
    return open_inference(request).index()


@router.get("/models/{name}", dependencies=INFER, responses=NAMED, response_model_exclude_none=True)
async def metadata(request: Request, name: Name) -> ModelMetadata:
    """Return a model's inputs and outputs."""
    return open_inference(request).metadata(name, None)


@router.get("/models/{name}/versions/{version}", dependencies=INFER, responses=NAMED, response_model_exclude_none=True)
async def metadata_of_version(request: Request, name: Name, version: Version) -> ModelMetadata:
    """Return the inputs and outputs of a version of a model."""
    return open_inference(request).metadata(name, version)


@router.get("/models/{name}/ready", dependencies=INFER, responses=NAMED)
async def model_ready(request: Request, name: Name) -> ModelReady:
    """Return whether a model accepts requests."""
    return open_inference(request).ready(name, None)


@router.get("/models/{name}/versions/{version}/ready", dependencies=INFER, responses=NAMED)
async def version_ready(request: Request, name: Name, version: Version) -> ModelReady:
    """Return whether a version of a model accepts requests."""
    return open_inference(request).ready(name, version)


@router.post(
    "/models/{name}/infer", dependencies=INFER, response_class=Response, openapi_extra=INFER_BODY, responses=INFERRING
)
@counts_toward_capacity
async def infer(request: Request, name: Name) -> Response:
    """Return a network's outputs for input tensors of at most 64 rows."""
    return file_response(
        await open_inference(request).infer(name, None, await timings.timed("receive", read_message(request)))
    )


@router.post(
    "/models/{name}/versions/{version}/infer",
    dependencies=INFER,
    response_class=Response,
    openapi_extra=INFER_BODY,
    responses=INFERRING,
)
@counts_toward_capacity
async def infer_version(request: Request, name: Name, version: Version) -> Response:
    """Return the outputs of a version of a network."""
    return file_response(
        await open_inference(request).infer(name, version, await timings.timed("receive", read_message(request)))
    )
