"""What can go wrong, as one short tree with status codes, and the one place that turns it into an answer.

That is RFC 9457; but for the Open Inference Protocol under /v2, whose clients read `{"error": "..."}`, and with a
`message` under /v1, which is all that OpenAI's clients show of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

import apsw
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from app.schemas import FieldError, InferenceError, Problem
from index.embedded.store.atomic_files import is_disk_full


class VestibuleError(Exception):
    """Base of all that a client is told. `detail` is for the client's eyes: no paths, no internals."""

    status: int = 500
    type: str = "internal"
    title: str = "Something went wrong on our side"

    def __init__(self, detail: str = "", headers: Mapping[str, str] | None = None):
        super().__init__(detail)
        self.detail = detail
        self.headers = dict(headers or {})


class BadRequest(VestibuleError):
    """The body is not what its content type promises."""

    status, type, title = 400, "malformed-request", "The request is malformed"


class DamagedImage(VestibuleError):
    """A format that is read here, but broken or cut short."""

    status, type, title = 400, "damaged-image", "The picture is damaged"


class Unauthorized(VestibuleError):
    """No key, or none that holds; which of these is not told."""

    status, type, title = 401, "unauthorized", "A valid API key is needed"


class ScopeMissing(VestibuleError):
    """A key that holds, but not for this."""

    status, type, title = 403, "scope-missing", "This API key is not for that"


class HostNotAllowed(VestibuleError):
    """The Host header names somebody else (DNS rebinding looks like this)."""

    status, type, title = 403, "host-not-allowed", "This host name is not served here"


class OriginNotAllowed(VestibuleError):
    """Another site's page tries to change state in a browser's name."""

    status, type, title = 403, "origin-not-allowed", "Requests from this origin are not allowed"


class NotFound(VestibuleError):
    """A named thing that is not there."""

    status, type, title = 404, "not-found", "There is nothing here"


class BodyTooSlow(VestibuleError):
    """The rest of the body did not come in time."""

    status, type, title = 408, "body-too-slow", "The request came too slowly"


class HeadTooLarge(VestibuleError):
    """More header fields than a request may have, or larger ones."""

    status, type, title = 431, "head-too-large", "The header fields are too large"


class Conflict(VestibuleError):
    """There is one already, or it was made by other models."""

    status, type, title = 409, "conflict", "This does not fit with what is there"


class BodyTooLarge(VestibuleError):
    """More bytes than one request may have."""

    status, type, title = 413, "body-too-large", "The request is too large"


class ImageTooLarge(VestibuleError):
    """More bytes or pixels than one picture may have."""

    status, type, title = 413, "image-too-large", "The picture is too large"


class TooManyImages(VestibuleError):
    """More pictures than one request may have."""

    status, type, title = 413, "too-many-images", "Too many pictures in one request"


class TooManyPixels(VestibuleError):
    """More pixels than the pictures of one request may have."""

    status, type, title = 413, "too-many-pixels", "Too many pixels in one request"


class UnsupportedImage(VestibuleError):
    """Not a picture, or not in a format that is read here."""

    status, type, title = 415, "unsupported-image", "This is not a picture we can read"


class UnsupportedMediaType(VestibuleError):
    """A body that is none of the three kinds."""

    status, type, title = 415, "unsupported-media-type", "This content type is not accepted"


class Unprocessable(VestibuleError):
    """Well-formed, but means nothing here."""

    status, type, title = 422, "unprocessable", "The request cannot be carried out"


class UnknownModel(VestibuleError):
    """No such model, or not one for this task."""

    status, type, title = 422, "unknown-model", "There is no such model"


class ModelRefused(Unprocessable):
    """What lies in the weights folder under that name is no whole model, or not one that can stand there."""

    type, title = "model-refused", "The files of the model are refused"


class NoFace(Unprocessable):
    """A picture that must show a face shows none."""

    type, title = "no-face", "There is no face in the picture"


class Overloaded(VestibuleError):
    """All places are taken; `Retry-After` says when to come back."""

    status, type, title = 429, "overloaded", "The service is busy"


class RateLimited(VestibuleError):
    """A key's share is used up; `Retry-After` says when to come back."""

    status, type, title = 429, "rate-limited", "This API key has asked for as much as it may"


class NotReady(VestibuleError):
    """Starting, stopping, or without what it needs."""

    status, type, title = 503, "not-ready", "The service is not ready"


class OutOfMemory(NotReady):
    """What was asked for does not fit into the memory of the device that computes."""

    type, title = "out-of-memory", "There is not enough memory for this"


class Locked(NotReady):
    """An encrypted collection, and this service has not its key."""

    type, title = "collection-locked", "The collection is locked"


class DiskFull(VestibuleError):
    """There is no room for what was to be stored, so it is not acknowledged."""

    status, type, title = 507, "disk-full", "The disk is full"


class DeadlineExceeded(VestibuleError):
    """The answer would have come too late."""

    status, type, title = 504, "deadline-exceeded", "The request took too long"


class InvalidParameters(Unprocessable):
    """The query string does not fit its schema."""

    type, title = "invalid-parameters", "Some parameters are not valid"


# Of what does not fit, and characters of each name and reason, in one answer.
MOST_ERRORS, MOST_CHARACTERS = 20, 256

PROBLEM_JSON = "application/problem+json"
# Where the Open Inference Protocol is spoken, and OpenAI's.
OIP, OPENAI = "/v2", "/v1"


def problem(error: VestibuleError, errors: list[FieldError] | None = None) -> Problem:
    """The RFC 9457 object of an error."""
    return Problem(
        type=f"urn:vestibule:problem:{error.type}",
        title=error.title,
        status=error.status,
        detail=error.detail or None,
        errors=errors,
    )


def error_response(path: str, error: VestibuleError, errors: list[FieldError] | None = None) -> JSONResponse:
    """The HTTP answer of an error, in the form that clients of this path read."""
    parts = [error.title, error.detail, *(f"{field.parameter}: {field.detail}" for field in errors or [])]
    told = ": ".join(filter(None, parts))
    protocol = path[:3] if path[3:4] in ("", "/") else ""
    if protocol == OIP:
        return JSONResponse(InferenceError(error=told).model_dump(), error.status, error.headers)
    answer = problem(error, errors)
    answer.message = told if protocol == OPENAI else None
    return JSONResponse(answer.model_dump(exclude_none=True), error.status, error.headers, media_type=PROBLEM_JSON)


def invalid_parameters(path: str, error: RequestValidationError) -> JSONResponse:
    """The HTTP answer to parameters that do not fit."""
    return error_response(path, InvalidParameters(), _field_errors(error))


@contextmanager
def full_disk() -> Iterator[None]:
    """Raise DiskFull where something cannot be written because the disk is full."""
    try:
        yield
    except (apsw.FullError, OSError) as error:
        if not is_disk_full(error):
            raise
        raise DiskFull("free some space for the state folder, then send the request again") from error


class FrameworkError(VestibuleError):
    """What the framework itself answers (no such route, wrong method), under HTTP's own phrase."""

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
    answer = error_response(request.scope["path"], FrameworkError(error))
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        # Of all operations with this path; the framework names those of the route that it tried first.
        operations = request.app.openapi()["paths"].get(getattr(request.scope.get("route"), "path", None))
        if operations:
            methods = {method.upper() for method in operations}
            answer.headers["allow"] = ", ".join(sorted(methods | ({"HEAD"} if "GET" in methods else set())))
    return answer


async def _on_validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101
    return invalid_parameters(request.scope["path"], error)


def install(app: FastAPI) -> None:
    """Answer every error of `app` in this one way. What is none of these is caught in `observe`, as a 500."""
    app.add_exception_handler(VestibuleError, _on_vestibule_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_validation_error)


def describe(*errors: type[VestibuleError], schema: type[BaseModel] | None = None) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's `responses` for a route that can fail in these ways, as problems or in a schema of its own."""
    form: dict[str, Any] = {"content": {PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/Problem"}}}}
    if schema is not None:
        form = {"model": schema}
    described: dict[int | str, dict[str, Any]] = {}
    for error in errors:
        title = error.title
        if error.status in described:
            title = f"{described[error.status]['description']}; {title[0].lower()}{title[1:]}"
        described[error.status] = {"description": title, **form}
    return described


# What can go wrong with any request, and with any that needs a key.
OF_HEADS: tuple[type[VestibuleError], ...] = (HeadTooLarge,)
OF_KEYS: tuple[type[VestibuleError], ...] = (*OF_HEADS, Unauthorized, ScopeMissing, RateLimited)

# What can go wrong with any request that carries pictures to a model.
OF_PICTURES: tuple[type[VestibuleError], ...] = (
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
