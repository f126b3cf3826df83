"""The settings of the service, from VESTIBULE_* in the environment. Read once, by the caller of `create_app`."""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from index.errors import InvalidError
from index.operator_key import OperatorKey
from models.runtime_names import RuntimeSetting

PROJECT = Path(__file__).resolve().parent.parent

Positive = Annotated[int, Field(ge=1)]
# A thread cannot wait for longer than 292 years, nor for an infinite time.
Seconds = Annotated[float, Field(gt=0, le=1e9)]

# The upper bound of `max_images`; request schemas need a constant.
MOST_IMAGES = 1024
PREFIX = "VESTIBULE_"
# Variables with this prefix that the client and training read.
OTHER_VARIABLES = frozenset({"VESTIBULE_URL", "VESTIBULE_API_KEY", "VESTIBULE_DATASETS", "VESTIBULE_RUNS"})

_HOST = re.compile(r"[a-z0-9_]([a-z0-9._-]*[a-z0-9_.])?", re.IGNORECASE)
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#@\s*]+", re.IGNORECASE)

_DATABASE_URL = re.compile(r"postgres(ql)?://")
_NEXT_URL = re.compile(r"\s*,\s*(?=postgres(?:ql)?://)")
_ROOT_PATH = re.compile(r"(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+")


class ConfigurationError(Exception):
    """The service cannot run with these settings. The message is one line that names the variable."""


def _items(value: object) -> object:
    """Split text at its commas, or parse it as a JSON array."""
    if not isinstance(value, str):
        return value
    with suppress(ValueError):
        if isinstance(decoded := json.loads(value), list):
            return decoded
    return [item.strip() for item in value.split(",") if item.strip()]


def _host(text: str) -> str:
    """Return a host as in the `Host` header: an IPv6 address has brackets.

    Raises:
        ValueError: it is neither a host name nor an address.
    """
    try:
        address = ipaddress.ip_address(text.removeprefix("[").removesuffix("]"))
    except ValueError:
        if not _HOST.fullmatch(text):
            raise ValueError(
                f"{text!r} is not a host: expected a name or an address, without scheme, port or wildcard"
            ) from None
        return text
    return f"[{address}]" if address.version == 6 else str(address)


def _origin(text: str) -> str:
    if not _ORIGIN.fullmatch(text):
        raise ValueError(f"{text!r} is not an origin: expected as https://example.org, without a path or wildcard")
    return text


def _root_path(text: str) -> str:
    path = text.rstrip("/")
    if path and not _ROOT_PATH.fullmatch(path):
        raise ValueError(f"{text!r} is not a path: expected as /vision")
    return path


def _not_empty(value: object) -> object:
    """Refuse the empty text that an unset variable of a compose file becomes: as a path, it is the current folder."""
    if value == "":
        raise ValueError("expected a folder; leave the variable out for the default")
    return value


BackupDays = Annotated[float, Field(ge=0, le=36_500)]
Folder = Annotated[Path, BeforeValidator(_not_empty)]


def _urls(value: object) -> object:
    """Split text into URLs. A URL with several hosts has commas itself."""
    return _NEXT_URL.split(value.strip()) if isinstance(value, str) and value.strip() else value or ()


def _database_url(url: SecretStr) -> SecretStr:
    """Refuse what is not a URL of PostgreSQL. No message has any of it, because it may contain a password."""
    if not _DATABASE_URL.match(url.get_secret_value()):
        raise ValueError("expected a URL as postgresql://user:password@host/name")
    from index.factory import is_valid_url  # psycopg takes a while to import

    if not is_valid_url(url.get_secret_value()):
        raise ValueError("the URL is not valid; special characters of a password must be percent-encoded")
    return url


DatabaseUrl = Annotated[SecretStr, AfterValidator(_database_url)]
DatabaseUrls = Annotated[tuple[DatabaseUrl, ...], NoDecode, BeforeValidator(_urls)]
RootPath = Annotated[str, AfterValidator(_root_path)]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Networks = Annotated[tuple[Network, ...], NoDecode, BeforeValidator(_items)]
Hosts = Annotated[
    tuple[Annotated[str, AfterValidator(_host)], ...], NoDecode, BeforeValidator(_items), Field(min_length=1)
]
Origins = Annotated[tuple[Annotated[str, AfterValidator(_origin)], ...], NoDecode, BeforeValidator(_items)]


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server bound to `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Settings(BaseSettings):
    """Sizes in bytes, pixels or counts; times in seconds. Lists are separated by commas, or are JSON arrays."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, hide_input_in_errors=True)

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    workers: Positive = 1  # processes behind the port, one per GPU; each has all limits below for itself
    allow_public: bool = False  # listen beyond loopback without keys
    require_keys: bool = False  # even before the first key is created; after that they are required anyway
    rate_per_minute: Positive | None = None  # requests of a key that has no limit of its own
    key_concurrency: Positive | None = None  # such a key's requests in progress at once
    root_path: RootPath = ""  # the sub-path below which a reverse proxy serves this, as "/vision"
    allowed_hosts: Hosts = ("127.0.0.1", "localhost", "[::1]")  # allowed in a request's Host header
    allowed_origins: Origins = ()  # of other web pages that may call, as "https://example.org"

    weights: Folder = PROJECT / "weights"
    state: Folder = PROJECT / "state"  # the gallery and the keys, unless there is a database
    database: DatabaseUrl | None = None  # a postgresql:// URL: the gallery and the keys, shared by all replicas
    database_standbys: DatabaseUrls = ()  # servers with copies of it, whose files an erasure must leave, too
    database_readers: DatabaseUrls = ()  # those of these servers, or further ones, that also answer searches
    backup_days: BackupDays | None = None  # the longest time for which the operator keeps a backup or an archived log
    encryption_key: SecretStr | None = None  # of encrypted collections: 32 bytes in base64
    encryption_key_file: Path | None = None  # a file with that key
    probes: Folder = PROJECT / "examples"  # photos on which a faster runtime is compared with torch
    runtime: RuntimeSetting = "auto"  # of classifiers and embedders; "auto": the fastest that agrees with torch
    model_memory_mb: Positive | None = None  # MiB of loaded models; beyond it the least recently used are evicted
    default_classifier: str = "efficientnet-lite0"
    default_detector: str = "centerface"
    default_embedder: str = "mobilefacenet-triplet"
    default_generator: str = "cvae-mnist"
    default_denoiser: str = "denoiser-photo"
    default_autoencoder: str = "ae-mnist"  # of /encode and /reconstruct

    max_body_bytes: Positive = 64 * 2**20
    max_bodies_bytes: Positive = 256 * 2**20  # of all requests in progress; at least two of the largest bodies
    max_image_bytes: Positive = 32 * 2**20
    max_image_pixels: Positive = 50_000_000
    max_request_pixels: Positive = 400_000_000  # of all images of a request
    max_images: Annotated[int, Field(ge=1, le=MOST_IMAGES)] = 64  # in one request
    max_denoise_pixels: Positive = 4_000_000  # of an image to denoise, all of which goes through the network

    head_timeout_s: Seconds = 10.0  # from the connection, or a head's first byte, until the head is complete
    max_head_bytes: Positive = 32 * 2**10
    max_headers: Positive = 100
    body_timeout_s: Seconds = 20.0  # from the head until the body is complete, and one second more for each
    body_bytes_per_s: Positive = 16 * 2**10  # bytes received
    answer_timeout_s: Seconds = 60.0  # for which a client may read nothing of its response
    max_connections: Positive = 2048  # beyond it the connection that has been idle longest is closed

    max_requests: Positive = 256  # that compute at once; further requests get 429
    queue_size: Positive = 1024  # images waiting for one model
    max_batch: Positive = 32
    deadline_s: Seconds = 30.0
    alert_private_targets: Networks = ()  # networks that alerts may be sent to although they are not public
    alert_dead_after_s: Seconds = 43_200.0  # from an alert until a failed attempt to send it is the last
    max_alert_streams: Positive = 32  # clients of /alerts/stream at once
    merge_undo_s: Seconds = 7 * 86_400.0  # how long a merge of subjects can be undone
    upkeep_s: Seconds = 5.0  # between two rounds of the gallery's maintenance
    stop_delay_s: Annotated[float, Field(ge=0, le=1e9)] = 0.0  # SIGTERM until the port closes; not ready meanwhile
    drain_s: Positive = 20  # how long SIGTERM then waits for requests in progress

    @field_validator("port", mode="before")
    @classmethod
    def _not_a_service_link(cls, value: Any) -> Any:
        """Explain the variable that Kubernetes sets in the pods beside a Service named "vestibule"."""
        if isinstance(value, str) and value.startswith("tcp://"):
            raise ValueError(
                "set by Kubernetes for the Service of that name; set enableServiceLinks: false in the pod's spec"
            )
        return value

    @field_validator("encryption_key", "encryption_key_file")
    @classmethod
    def _valid_key(cls, value: SecretStr | Path | None) -> SecretStr | Path | None:
        if value is not None:
            _read_source(value)
        return value

    @model_validator(mode="after")
    def _one_key(self) -> Self:
        if self.encryption_key is not None and self.encryption_key_file is not None:
            raise InvalidError(
                "VESTIBULE_ENCRYPTION_KEY and VESTIBULE_ENCRYPTION_KEY_FILE: the key is given twice; keep one of them"
            )
        return self

    def database_url(self) -> str | None:
        """Return the URL of the database, which may contain a password; None if the gallery is in the state folder."""
        return None if self.database is None else self.database.get_secret_value()

    def operator_key(self) -> OperatorKey | None:
        """Return the key of encrypted collections; None if there is none.

        Raises:
            InvalidError: the file can no longer be read, or holds no valid key now.
        """
        source = self.encryption_key or self.encryption_key_file
        return None if source is None else _read_source(source)


def variable(field: str) -> str:
    """Return the environment variable of a setting."""
    return f"{PREFIX}{field.upper()}"


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """Return the variables with the service's prefix that no program of this project reads, sorted."""
    names = OTHER_VARIABLES | {variable(field) for field in Settings.model_fields}
    return sorted(name for name in environment if name.upper().startswith(PREFIX) and name.upper() not in names)


def _read_source(source: SecretStr | Path) -> OperatorKey:
    return read_key(source) if isinstance(source, Path) else OperatorKey.from_text(source.get_secret_value())


def read_key(file: Path) -> OperatorKey:
    """Return the key in a file that holds it as base64.

    Raises:
        InvalidError: the file cannot be read, or holds no valid key.
    """
    try:
        return OperatorKey.from_text(file.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, InvalidError) as error:
        raise InvalidError(f"the encryption key in {file}: {error}") from error
