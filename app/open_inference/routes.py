"""The Open Inference Protocol, so that its clients (`tritonclient`, KServe's) talk to the service unchanged."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request, Response

from app import dependencies, errors
from app.auth.scopes import INFER
from app.images.responses import describe_files, file_response
from app.middleware.load_shedding import admitted
from app.open_inference.messages import INFER_BODY, OCTETS, Message, read_message
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
from app.operations import routes as ops
from app.operations.schemas import Health
from app.schemas import InferenceError

router = APIRouter(prefix=errors.OIP, tags=["open inference protocol"])

Name = Annotated[str, Path(description="A name from /v2/repository/index.", examples=["lenet5-mnist"])]
Version = Annotated[str, Path(description="What the model's metadata names; there is one.")]

READING = errors.describe(errors.HostNotAllowed, schema=InferenceError)
PROBES = errors.describe(errors.HostNotAllowed, errors.NotReady, schema=InferenceError)
NAMED = errors.describe(errors.HostNotAllowed, errors.NotFound, errors.InvalidParameters, schema=InferenceError)
SENDING = errors.describe(errors.OriginNotAllowed, errors.BodyTooLarge, schema=InferenceError)
INFERRING = describe_files(OCTETS, schema=InferenceResponse) | errors.describe(
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
    service: OpenInference = request.app.state.open_inference
    return service


async def message(request: Request) -> Message:
    """Return the body of the request; see `read_message`."""
    return await dependencies.timed_receive(read_message(request))


@router.get("", dependencies=INFER, responses=READING)
async def server(request: Request) -> ServerMetadata:
    """What answers here, and which extensions of the protocol it knows."""
    return open_inference(request).server()


@router.get("/health/live", responses=READING)
async def live() -> ServerLive:
    """The process answers."""
    return ServerLive()


@router.get("/health/ready", responses=PROBES)
async def ready(_: Annotated[Health, Depends(ops.ready)]) -> ServerReady:
    """The default model is loaded and warm."""
    return ServerReady()


@router.post("/repository/index", dependencies=INFER, responses=SENDING)
async def index(request: Request) -> list[IndexedModel]:
    """Every model that can be asked; a body is not read: all are ready, and load with their first request."""
    return open_inference(request).index()


@router.get("/models/{name}", dependencies=INFER, responses=NAMED, response_model_exclude_none=True)
async def metadata(request: Request, name: Name) -> ModelMetadata:
    """A model's inputs and outputs."""
    return open_inference(request).metadata(name, None)


@router.get("/models/{name}/versions/{version}", dependencies=INFER, responses=NAMED, response_model_exclude_none=True)
async def metadata_of_version(request: Request, name: Name, version: Version) -> ModelMetadata:
    """The same, if this is its version."""
    return open_inference(request).metadata(name, version)


@router.get("/models/{name}/ready", dependencies=INFER, responses=NAMED)
async def model_ready(request: Request, name: Name) -> ModelReady:
    """Whether a model can be asked."""
    return open_inference(request).ready(name, None)


@router.get("/models/{name}/versions/{version}/ready", dependencies=INFER, responses=NAMED)
async def version_ready(request: Request, name: Name, version: Version) -> ModelReady:
    """The same of a version."""
    return open_inference(request).ready(name, version)


@router.post(
    "/models/{name}/infer", dependencies=INFER, response_class=Response, openapi_extra=INFER_BODY, responses=INFERRING
)
@admitted
async def infer(request: Request, name: Name) -> Response:
    """What a network answers to tensors, at most 64 rows of them."""
    return file_response(await open_inference(request).infer(name, None, await message(request)))


@router.post(
    "/models/{name}/versions/{version}/infer",
    dependencies=INFER,
    response_class=Response,
    openapi_extra=INFER_BODY,
    responses=INFERRING,
)
@admitted
async def infer_version(request: Request, name: Name, version: Version) -> Response:
    """The same of a version."""
    return file_response(await open_inference(request).infer(name, version, await message(request)))
