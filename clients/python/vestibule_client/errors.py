"""What can go wrong, as one short tree: no answer, one that means nothing, or the service's problem (RFC 9457)."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, ValidationError


class ProblemField(BaseModel):
    """One parameter that does not fit."""

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
        """The exception that this problem is raised as."""
        kind = _BY_TYPE.get(self.type) or _BY_STATUS.get(self.status) or (Problem, ServiceError)[self.status >= 500]
        return kind(self, request_id, retry_after)


class VestibuleError(Exception):
    """Base of all that a call raises."""


class Unreachable(VestibuleError):
    """Nothing answers at the address, or the connection broke."""


class TimedOut(VestibuleError):
    """No answer came in the time allowed."""


class UnexpectedAnswer(VestibuleError):
    """An answer that this client cannot read: something else answers there, or another version."""


class Problem(VestibuleError):
    """What the service says is wrong; `retry_after` in seconds, where it says when to come back."""

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
    """400: the request is malformed, or the picture damaged."""


class Unauthorized(Problem):
    """401: there is no key, or not a valid one."""


class Forbidden(Problem):
    """403: this key, host or origin may not do that."""


class NotFound(Problem):
    """404: a named thing is not there."""


class Conflict(Problem):
    """409: it does not fit with what is there."""


class TooLarge(Problem):
    """413: more bytes, pixels or pictures than a request may have."""


class UnsupportedMedia(Problem):
    """415: not a picture, or in no format that is read there."""


class Unprocessable(Problem):
    """422: well-formed, but it cannot be carried out."""


class NoFace(Unprocessable):
    """422: a picture that must show a face shows none."""


class UnknownModel(Unprocessable):
    """422: there is no such model, or it is not one for this."""


class Overloaded(Problem):
    """429: all places are taken, or the rate is."""


class ServiceError(Problem):
    """5xx: something went wrong on the service's side."""


class NotReady(ServiceError):
    """503: it starts, stops, or lacks what it needs."""


class DeadlineExceeded(ServiceError):
    """504: the answer was not there in time."""


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
    """The problem that a body tells of.

    Raises:
        UnexpectedAnswer: it tells of none.
    """
    try:
        return ProblemDocument.model_validate_json(content)
    except ValidationError as error:
        raise UnexpectedAnswer(f"status {status}, without a problem document: is this a Vestibule?") from error
