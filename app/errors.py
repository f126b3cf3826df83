"""The exceptions of the service, each with its HTTP status, and the one place that maps them to responses.

VestibuleError
  BadRequest, DamagedImage 400 · Unauthorized 401 · ScopeMissing, HostNotAllowed, OriginNotAllowed 403 · NotFound 404
  BodyTooSlow 408 · Conflict 409 · BodyTooLarge, ImageTooLarge, TooManyImages, TooManyPixels 413
  UnsupportedImage, UnsupportedMediaType 415 · UnknownModel 422 · HeadTooLarge 431 · Overloaded, RateLimited 429
  Unprocessable 422: ModelRefused, NoFace, InvalidParameters
  NotReady 503: OutOfMemory, Locked · DeadlineExceeded 504 · DiskFull 507 · FrameworkError: the framework's own status

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
from index.embedded.store.atomic_files import is_disk_full


class VestibuleError(Exception):
    """Base of all errors that are sent to clients. `detail` is shown to them: no paths, no internals."""

    status: int = 500
    type: str = "internal"
    title: str = "Something went wrong on our side"

    def __init__(self, detail: str = "", headers: Mapping[str, str] | None = None):
        super().__init__(detail)
        self.detail = detail
        self.headers = dict(headers or {})


class BadRequest(VestibuleError):
    """The body does not match its content type."""

    status, type, title = 400, "malformed-request", "The request is malformed"


class DamagedImage(VestibuleError):
    """The image has a supported format, but is corrupt or truncated."""

    status, type, title = 400, "damaged-image", "The picture is damaged"


class Unauthorized(VestibuleError):
    """There is no valid key. The response does not say whether it is missing, unknown, revoked or expired."""

    status, type, title = 401, "unauthorized", "A valid API key is needed"


class ScopeMissing(VestibuleError):
    """The key is valid, but has not the scope of this route."""

    status, type, title = 403, "scope-missing", "This API key is not for that"


class HostNotAllowed(VestibuleError):
    """The Host header is not one of this service's names, as in a DNS rebinding attack."""

    status, type, title = 403, "host-not-allowed", "This host name is not served here"


class OriginNotAllowed(VestibuleError):
    """A page of another origin sent a request that changes or computes something."""

    status, type, title = 403, "origin-not-allowed", "Requests from this origin are not allowed"


class NotFound(VestibuleError):
    """The named resource does not exist."""

    status, type, title = 404, "not-found", "There is nothing here"


class BodyTooSlow(VestibuleError):
    """The body did not arrive in time."""

    status, type, title = 408, "body-too-slow", "The request came too slowly"


class HeadTooLarge(VestibuleError):
    """The request has too many header fields, or too large ones."""

    status, type, title = 431, "head-too-large", "The header fields are too large"


class Conflict(VestibuleError):
    """The request conflicts with the state: the resource exists already, or other models created it."""

    status, type, title = 409, "conflict", "This does not fit with what is there"


class BodyTooLarge(VestibuleError):
    """The body has too many bytes."""

    status, type, title = 413, "body-too-large", "The request is too large"


class ImageTooLarge(VestibuleError):
    """An image has too many bytes or pixels."""

    status, type, title = 413, "image-too-large", "The picture is too large"


class TooManyImages(VestibuleError):
    """The request has too many images."""

    status, type, title = 413, "too-many-images", "Too many pictures in one request"


class TooManyPixels(VestibuleError):
    """The images of the request have too many pixels in all."""

    status, type, title = 413, "too-many-pixels", "Too many pixels in one request"


class UnsupportedImage(VestibuleError):
    """The file is not an image of a supported format."""

    status, type, title = 415, "unsupported-image", "This is not a picture we can read"


class UnsupportedMediaType(VestibuleError):
    """The content type of the body is not supported."""

    status, type, title = 415, "unsupported-media-type", "This content type is not accepted"


class Unprocessable(VestibuleError):
    """The request is well-formed but cannot be carried out."""

    status, type, title = 422, "unprocessable", "The request cannot be carried out"


class UnknownModel(VestibuleError):
    """There is no such model, or it has another task."""

    status, type, title = 422, "unknown-model", "There is no such model"


class ModelRefused(Unprocessable):
    """The files of a model in the weights folder are incomplete, invalid or in the wrong folder."""

    type, title = "model-refused", "The files of the model are refused"


class NoFace(Unprocessable):
    """No face was detected in an image that needs one."""

    type, title = "no-face", "There is no face in the picture"


class Overloaded(VestibuleError):
    """A limit of the service is reached; `Retry-After` says when to retry."""

    status, type, title = 429, "overloaded", "The service is busy"


class RateLimited(VestibuleError):
    """A limit of the key is reached; `Retry-After` says when to retry."""

    status, type, title = 429, "rate-limited", "This API key has asked for as much as it may"


class NotReady(VestibuleError):
    """The service is starting or stopping, or something that it needs is unavailable."""

    status, type, title = 503, "not-ready", "The service is not ready"


class OutOfMemory(NotReady):
    """The device has too little memory for the request."""

    type, title = "out-of-memory", "There is not enough memory for this"


class Locked(NotReady):
    """The collection is encrypted and the service does not have its key."""

    type, title = "collection-locked", "The collection is locked"


class DiskFull(VestibuleError):
    """The disk is full, so that nothing was stored."""

    status, type, title = 507, "disk-full", "The disk is full"


class DeadlineExceeded(VestibuleError):
    """The deadline of the request has passed."""

    status, type, title = 504, "deadline-exceeded", "The request took too long"


class InvalidParameters(Unprocessable):
    """Parameters do not match their schema."""

    type, title = "invalid-parameters", "Some parameters are not valid"


# Parameter errors in one response, and characters of each one's name and reason.
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
    return error_response(path, InvalidParameters(), _field_errors(error))


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


def _field_errors(error: RequestValidationError) -> list[FieldError]:
    # Pydantic's `input` is left out: an answer does not repeat what it was sent.
    return [
        FieldError(
            parameter=".".join(str(part) for part in item["loc"][1:])[:MOST_CHARACTERS],
            detail=item["msg"][:MOST_CHARACTERS],
        )
        for item in error.errors()[:MOST_ERRORS]
    ]


async def _on_vestibule_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, VestibuleError)  # noqa: S101  registered for this class only
    return error_response(request.scope["path"], error)


async def _on_http_exception(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101
    response = error_response(request.scope["path"], FrameworkError(error))
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        # The methods of all routes with this path; the framework names those of the route that it tried first.
        operations = request.app.openapi()["paths"].get(getattr(request.scope.get("route"), "path", None))
        if operations:
            methods = {method.upper() for method in operations}
            response.headers["allow"] = ", ".join(sorted(methods | ({"HEAD"} if "GET" in methods else set())))
    return response


async def _on_validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101
    return invalid_parameters(request.scope["path"], error)


def install(app: FastAPI) -> None:
    """Map the errors of `app` to responses. `RequestLog` responds 500 to all other exceptions."""
    app.add_exception_handler(VestibuleError, _on_vestibule_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_validation_error)


def describe(*errors: type[VestibuleError], schema: type[BaseModel] | None = None) -> dict[int | str, dict[str, Any]]:
    """Return OpenAPI's `responses` of a route that raises `errors`. `schema`: that of their bodies, if not problems."""
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
KEY_ERRORS: tuple[type[VestibuleError], ...] = (*HEAD_ERRORS, Unauthorized, ScopeMissing, RateLimited)

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
