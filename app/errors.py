"""The exceptions of the service, each with its HTTP status, and the one place that maps them to responses.

VestibuleError
  BadRequest, DamagedImage 400 · Unauthorized 401 · ScopeMissing, HostNotAllowed, OriginNotAllowed 403 · NotFound 404
  BodyTooSlow 408 · Conflict 409 · BodyTooLarge, ImageTooLarge, TooManyImages, TooManyPixels 413
  UnsupportedImage, UnsupportedMediaType 415 · UnknownModel 422 · HeadTooLarge 431 · Overloaded, RateLimited 429
  Unprocessable 422: ModelRefused, NoFace, InvalidParameters
  NotReady 503: OutOfMemory, Locked, StorageUnavailable · DeadlineExceeded 504 · DiskFull 507
  FrameworkError: the framework's own status

Responses are RFC 9457 problems. Below /v2 they are `{"error": "..."}`, as the Open Inference Protocol requires; below
/v1 they have a `message` as well, the only field that OpenAI's clients show.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from app.schemas import FieldError, InferenceError, Problem
from index.errors import is_disk_full


class VestibuleError(Exception):
    """Base of all errors that are sent to clients. `detail` is shown to them: no paths, no internals."""

    status: int = 500
    type: str = "internal"
    title: str = "Something went wrong on our side"

    def __init_subclass__(cls, status: int | None = None, type: str | None = None, title: str | None = None) -> None:
        """Set the class's attributes; omitted ones keep the base class's values."""
        cls.status, cls.type, cls.title = status or cls.status, type or cls.type, title or cls.title

    def __init__(self, detail: str = "", headers: Mapping[str, str] | None = None):
        super().__init__(detail)
        self.detail = detail
        self.headers = dict(headers or {})


class BadRequest(VestibuleError, status=400, type="malformed-request", title="The request is malformed"):
    """The body does not match its content type."""


class DamagedImage(VestibuleError, status=400, type="damaged-image", title="The picture is damaged"):
    """The image has a supported format, but is corrupt or truncated."""


class Unauthorized(VestibuleError, status=401, type="unauthorized", title="A valid API key is needed"):
    """There is no valid key. The response does not say whether it is missing, unknown, revoked or expired."""


class ScopeMissing(VestibuleError, status=403, type="scope-missing", title="This API key is not for that"):
    """The key is valid, but does not have the scope that the route requires."""


class HostNotAllowed(VestibuleError, status=403, type="host-not-allowed", title="This host name is not served here"):
    """The Host header is not one of this service's names, as in a DNS rebinding attack."""


class OriginNotAllowed(
    VestibuleError, status=403, type="origin-not-allowed", title="Requests from this origin are not allowed"
):
    """A page of another origin sent a request that changes or computes something."""


class NotFound(VestibuleError, status=404, type="not-found", title="There is nothing here"):
    """The named resource does not exist."""


class BodyTooSlow(VestibuleError, status=408, type="body-too-slow", title="The request came too slowly"):
    """The body did not arrive in time."""


class HeadTooLarge(VestibuleError, status=431, type="head-too-large", title="The header fields are too large"):
    """The request has too many header fields, or too large ones."""


class Conflict(VestibuleError, status=409, type="conflict", title="This does not fit with what is there"):
    """The request conflicts with stored data: the resource exists already, or was created by another model."""


class BodyTooLarge(VestibuleError, status=413, type="body-too-large", title="The request is too large"):
    """The body has too many bytes."""


class ImageTooLarge(VestibuleError, status=413, type="image-too-large", title="The picture is too large"):
    """An image has too many bytes or pixels."""


class TooManyImages(VestibuleError, status=413, type="too-many-images", title="Too many pictures in one request"):
    """The request has too many images."""


class TooManyPixels(VestibuleError, status=413, type="too-many-pixels", title="Too many pixels in one request"):
    """The images of the request have too many pixels in all."""


class UnsupportedImage(VestibuleError, status=415, type="unsupported-image", title="This is not a picture we can read"):
    """The file is not an image of a supported format."""


class UnsupportedMediaType(
    VestibuleError, status=415, type="unsupported-media-type", title="This content type is not accepted"
):
    """The content type of the body is not supported."""


class Unprocessable(VestibuleError, status=422, type="unprocessable", title="The request cannot be carried out"):
    """The request is well-formed but cannot be carried out."""


class UnknownModel(VestibuleError, status=422, type="unknown-model", title="There is no such model"):
    """There is no such model, or it has another task."""


class ModelRefused(Unprocessable, type="model-refused", title="The files of the model are refused"):
    """The files of a model in the weights folder are incomplete, invalid or in the wrong folder."""


class NoFace(Unprocessable, type="no-face", title="There is no face in the picture"):
    """No face was detected in an image that needs one."""


class Overloaded(VestibuleError, status=429, type="overloaded", title="The service is busy"):
    """A limit of the service is reached; `Retry-After` says when to retry."""


class RateLimited(
    VestibuleError, status=429, type="rate-limited", title="This API key has asked for as much as it may"
):
    """A limit of the key is reached; `Retry-After` says when to retry."""


class NotReady(VestibuleError, status=503, type="not-ready", title="The service is not ready"):
    """The service is starting or stopping, or something that it needs is unavailable."""


class OutOfMemory(NotReady, type="out-of-memory", title="There is not enough memory for this"):
    """The device has too little memory for the request."""


class Locked(NotReady, type="collection-locked", title="The collection is locked"):
    """The collection is encrypted and the service does not have its key."""


class StorageUnavailable(NotReady, type="storage-unavailable", title="The storage is not available"):
    """The database of gallery or keys cannot be reached or is locked; `Retry-After` says when to retry."""


class DiskFull(VestibuleError, status=507, type="disk-full", title="The disk is full"):
    """The disk is full; nothing was stored."""


class DeadlineExceeded(VestibuleError, status=504, type="deadline-exceeded", title="The request took too long"):
    """The deadline of the request has passed."""


class InvalidParameters(Unprocessable, type="invalid-parameters", title="Some parameters are not valid"):
    """Parameters do not match their schema."""


# The most parameter errors in a response, and the most characters of a parameter's name and of its reason.
MOST_ERRORS, MOST_CHARACTERS = 20, 256

PROBLEM_JSON = "application/problem+json"
# Path prefixes of the Open Inference Protocol, and of OpenAI's.
OIP, OPENAI = "/v2", "/v1"


def problem(error: VestibuleError, errors: list[FieldError] | None = None) -> Problem:
    """Return an error as an RFC 9457 problem."""
    return Problem(
        type=f"urn:vestibule:problem:{error.type}",
        title=error.title,
        status=error.status,
        detail=error.detail or None,
        errors=errors,
    )


def error_response(path: str, error: VestibuleError, errors: list[FieldError] | None = None) -> JSONResponse:
    """Return the HTTP response for an error, in the format that clients of this path read."""
    parts = [error.title, error.detail, *(f"{field.parameter}: {field.detail}" for field in errors or [])]
    text = ": ".join(filter(None, parts))
    protocol = path[:3] if path[3:4] in ("", "/") else ""
    if protocol == OIP:
        return JSONResponse(InferenceError(error=text).model_dump(), error.status, error.headers)
    body = problem(error, errors)
    body.message = text if protocol == OPENAI else None
    return JSONResponse(body.model_dump(exclude_none=True), error.status, error.headers, media_type=PROBLEM_JSON)


def invalid_parameters(path: str, error: RequestValidationError) -> JSONResponse:
    """Return the HTTP response for parameters that do not match their schema."""
    # Pydantic's `input` is left out: a response does not repeat the client's values.
    errors = [
        FieldError(
            parameter=".".join(str(part) for part in item["loc"][1:])[:MOST_CHARACTERS],
            detail=item["msg"][:MOST_CHARACTERS],
        )
        for item in error.errors()[:MOST_ERRORS]
    ]
    return error_response(path, InvalidParameters(), errors)


def raise_if_full(error: Exception) -> None:
    """Raise DiskFull if a full disk caused the error."""
    if is_disk_full(error):
        raise DiskFull("free some space for the state folder, then send the request again") from error


class FrameworkError(VestibuleError):
    """An error that the framework raises (no such route, wrong method), with HTTP's own phrase as title."""

    def __init__(self, error: HTTPException):
        super().__init__(headers=error.headers)
        phrase = HTTPStatus(error.status_code).phrase
        self.status, self.title, self.type = error.status_code, phrase, phrase.lower().replace(" ", "-")


async def _on_vestibule_error(request: Request, error: VestibuleError) -> JSONResponse:
    return error_response(request.scope["path"], error)


async def _on_http_exception(request: Request, error: HTTPException) -> JSONResponse:
    response = error_response(request.scope["path"], FrameworkError(error))
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        # List the methods of all routes with this path; the framework lists only those of the first such route.
        operations = request.app.openapi()["paths"].get(getattr(request.scope.get("route"), "path", None))
        if operations:
            methods = {method.upper() for method in operations}
            response.headers["allow"] = ", ".join(sorted(methods | ({"HEAD"} if "GET" in methods else set())))
    return response


async def _on_validation_error(request: Request, error: RequestValidationError) -> JSONResponse:
    return invalid_parameters(request.scope["path"], error)


async def _on_unexpected_error(request: Request, _: Exception) -> JSONResponse:
    return error_response(request.scope["path"], VestibuleError())


def install(app: FastAPI) -> None:
    """Map the errors of `app` to responses. `RequestLog` logs unexpected ones."""
    app.exception_handler(VestibuleError)(_on_vestibule_error)
    app.exception_handler(HTTPException)(_on_http_exception)
    app.exception_handler(RequestValidationError)(_on_validation_error)
    app.exception_handler(Exception)(_on_unexpected_error)


def describe(*errors: type[VestibuleError], schema: type[BaseModel] | None = None) -> dict[int | str, dict[str, Any]]:
    """Return OpenAPI's `responses` for a route that raises `errors`. `schema`: their bodies' schema, if not Problem."""
    content: dict[str, Any] = {"content": {PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/Problem"}}}}
    if schema is not None:
        content = {"model": schema}
    described: dict[int | str, dict[str, Any]] = {}
    for error in errors:
        title = error.title
        if error.status in described:
            title = f"{described[error.status]['description']}; {title[0].lower()}{title[1:]}"
        described[error.status] = {"description": title, **content}
    return described


# Errors of every request, and of every request that needs a key.
HEAD_ERRORS: tuple[type[VestibuleError], ...] = (HeadTooLarge,)
KEY_ERRORS: tuple[type[VestibuleError], ...] = (
    *HEAD_ERRORS,
    Unauthorized,
    ScopeMissing,
    RateLimited,
    StorageUnavailable,
)

# Errors of every request that sends images to a model.
IMAGE_ERRORS: tuple[type[VestibuleError], ...] = (
    BadRequest,
    DamagedImage,
    OriginNotAllowed,
    BodyTooLarge,
    ImageTooLarge,
    TooManyImages,
    TooManyPixels,
    UnsupportedImage,
    UnsupportedMediaType,
    InvalidParameters,
    UnknownModel,
    Overloaded,
    NotReady,
    DeadlineExceeded,
)
