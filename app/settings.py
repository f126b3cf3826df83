"""Every knob of the service, from VESTIBULE_* in the environment. Read once, by whoever calls `create_app`."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.encryption import operator_key
from app.schemas import MOST_IMAGES
from index.sealing import OperatorKey
from models.choice import Wanted

PROJECT = Path(__file__).resolve().parent.parent

Positive = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server bound to `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Settings(BaseSettings):
    """Sizes in bytes, pixels or counts; times in seconds. Lists are JSON in the environment."""

    model_config = SettingsConfigDict(env_prefix="VESTIBULE_", frozen=True, hide_input_in_errors=True)

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    workers: Positive = 1  # processes behind the port, each with all limits below for itself: one for each GPU
    allow_public: bool = False  # listen beyond loopback although there are no keys
    require_keys: bool = False  # also while there are none; else they are needed once the first was made
    rate_per_minute: Positive | None = None  # requests of a key that has no limit of its own
    key_concurrency: Positive | None = None  # the same of its requests that are under way at once
    allowed_hosts: tuple[str, ...] = ("127.0.0.1", "localhost", "[::1]")  # names a request's Host may carry
    allowed_origins: tuple[str, ...] = ()  # foreign web pages that may call, as "https://example.org"

    weights: Path = PROJECT / "weights"
    state: Path = PROJECT / "state"  # what the service keeps: the gallery, keys
    encryption_key: SecretStr | None = None  # of encrypted collections: 32 bytes in base64
    encryption_key_file: Path | None = None  # or where it lies
    probes: Path = PROJECT / "examples"  # photos to compare a faster runtime's answers with torch's on
    runtime: Wanted = "auto"  # of classifiers and embedders; "auto": the fastest that agrees with torch
    model_memory_mb: Positive | None = None  # MiB that loaded models may take; beyond it the least recently used go
    default_classifier: str = "efficientnet-lite0"
    default_detector: str = "centerface"
    default_embedder: str = "face-embedder"
    default_generator: str = "cvae-mnist"
    default_denoiser: str = "denoiser-photo"
    default_autoencoder: str = "ae-mnist"  # of /encode and /reconstruct

    max_body_bytes: Positive = 64 * 2**20
    max_bodies_bytes: Positive = 256 * 2**20  # of all requests under way; at least two of the largest bodies
    max_image_bytes: Positive = 32 * 2**20
    max_image_pixels: Positive = 50_000_000
    max_request_pixels: Positive = 400_000_000  # of all pictures of a request
    max_images: Annotated[int, Field(ge=1, le=MOST_IMAGES)] = 64  # in one request
    max_denoise_pixels: Positive = 4_000_000  # of a picture that is cleaned: all of it goes through the network

    head_timeout_s: Seconds = 10.0  # from the connection, or a head's first byte, until the head is whole
    max_head_bytes: Positive = 32 * 2**10
    max_headers: Positive = 100
    body_timeout_s: Seconds = 20.0  # from the head until the body is whole; and, for each so many bytes that have come,
    body_bytes_per_s: Positive = 16 * 2**10  # a second more
    answer_timeout_s: Seconds = 60.0  # for which a client may take none of its answer
    max_connections: Positive = 2048  # beyond it the one that has waited longest for a request is closed

    max_requests: Positive = 256  # admitted at once; one more is answered 429
    queue_size: Positive = 1024  # pictures waiting for one model
    max_batch: Positive = 32
    deadline_s: Seconds = 30.0
    upkeep_s: Seconds = 5.0  # between two rounds of the gallery's background work
    drain_s: Positive = 20  # how long SIGTERM waits for requests under way

    @model_validator(mode="after")
    def _readable_key(self) -> Self:
        self.operator_key()
        return self

    def operator_key(self) -> OperatorKey | None:
        """Of encrypted collections; None where none is given."""
        return operator_key(self.encryption_key, self.encryption_key_file)
