"""A typed client of Vestibule: `Client`, and `AsyncClient` with the same methods as coroutines."""

from vestibule_client.answers import Failed
from vestibule_client.client import AsyncClient, Client
from vestibule_client.errors import (
    BadRequest,
    Conflict,
    DeadlineExceeded,
    Forbidden,
    NoFace,
    NotFound,
    NotReady,
    Overloaded,
    Problem,
    ServiceError,
    TimedOut,
    TooLarge,
    Unauthorized,
    UnexpectedAnswer,
    UnknownModel,
    Unprocessable,
    Unreachable,
    UnsupportedMedia,
    VestibuleError,
)
from vestibule_client.files import File
from vestibule_client.pictures import Picture
from vestibule_client.retries import NEVER, WHEN_BUSY, Retries

__all__ = [
    "NEVER",
    "WHEN_BUSY",
    "AsyncClient",
    "BadRequest",
    "Client",
    "Conflict",
    "DeadlineExceeded",
    "Failed",
    "File",
    "Forbidden",
    "NoFace",
    "NotFound",
    "NotReady",
    "Overloaded",
    "Picture",
    "Problem",
    "Retries",
    "ServiceError",
    "TimedOut",
    "TooLarge",
    "Unauthorized",
    "UnexpectedAnswer",
    "UnknownModel",
    "Unprocessable",
    "Unreachable",
    "UnsupportedMedia",
    "VestibuleError",
]
