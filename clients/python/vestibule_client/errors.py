"""The exceptions: no response, an unreadable response, or a problem that the service reports (RFC 9457)."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, ValidationError


class ProblemField(BaseModel):
    """An invalid parameter."""

    model_config = ConfigDict(frozen=True)

    parameter: str
    detail: str


class ProblemDocument(BaseModel):
    """An `application/problem+json` body; `type` is a URN such as `urn:vestibule:problem:no-face`."""

    model_config = ConfigDict(frozen=True)

    type: str = "about:blank"
    title: str = ""
    status: int
    detail: str | None = None
    errors: Sequence[ProblemField] | None = None

    def error(self, request_id: str | None = None, retry_after: float | None = None) -> Problem:
        """The exception for this problem."""
        kind = _BY_TYPE.get(self.type) or _BY_STATUS.get(self.status) or (Problem, ServiceError)[self.status >= 500]
        return kind(self, request_id, retry_after)


class VestibuleError(Exception):
    """Base of all exceptions that a call raises."""


class Unreachable(VestibuleError):
    """No service responds at the address, or the connection was lost."""


class TimedOut(VestibuleError):
    """No response within the timeout."""


class UnexpectedAnswer(VestibuleError):
    """The response cannot be read: it is from another service, or from another version."""


class Problem(VestibuleError):
    """A problem that the service reports; `retry_after` in seconds, if it says when to retry."""

    def __init__(self, document: ProblemDocument, request_id: str | None = None, retry_after: float | None = None):
        fields = [f"{field.parameter}: {field.detail}" for field in document.errors or ()]
        super().__init__(": ".join(filter(None, [document.title, document.detail, *fields])))
        self.type = document.type
        self.title = document.title
        self.status = document.status
        self.detail = document.detail
        self.errors = tuple(document.errors or ())
        self.request_id = request_id
        self.retry_after = retry_after


class BadRequest(Problem):
    """400: the request is malformed, or the image is damaged."""


class Unauthorized(Problem):
    """401: the key is missing or invalid."""


class Forbidden(Problem):
    """403: the key, host or origin has no permission."""


class NotFound(Problem):
    """404: a named object does not exist."""


class Conflict(Problem):
    """409: the request conflicts with the current state."""


class TooLarge(Problem):
    """413: more bytes, pixels or images than a request may have."""


class UnsupportedMedia(Problem):
    """415: not an image, or an unsupported format."""


class Unprocessable(Problem):
    """422: the request is well-formed, but cannot be carried out."""


class NoFace(Unprocessable):
    """422: an image that must show a face does not."""


class UnknownModel(Unprocessable):
    """422: the model does not exist, or has another task."""


class Overloaded(Problem):
    """429: the service is at capacity, or the key's rate limit is reached."""


class ServiceError(Problem):
    """5xx: the service failed."""


class NotReady(ServiceError):
    """503: the service is starting, stopping, or lacks something it needs."""


class DeadlineExceeded(ServiceError):
    """504: the service exceeded the request's deadline."""


_BY_TYPE: dict[str, type[Problem]] = {
    "urn:vestibule:problem:no-face": NoFace,
    "urn:vestibule:problem:unknown-model": UnknownModel,
}
_BY_STATUS: dict[int, type[Problem]] = {
    400: BadRequest,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    413: TooLarge,
    415: UnsupportedMedia,
    422: Unprocessable,
    429: Overloaded,
    503: NotReady,
    504: DeadlineExceeded,
}


def read_problem(status: int, content: bytes) -> ProblemDocument:
    """The problem in a response body.

    Raises:
        UnexpectedAnswer: the body is not a problem document.
    """
    try:
        return ProblemDocument.model_validate_json(content)
    except ValidationError as error:
        raise UnexpectedAnswer(f"status {status}, without a problem document: is this a Vestibule?") from error
