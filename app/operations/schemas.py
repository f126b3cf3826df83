"""Responses of the health probes."""

from __future__ import annotations

from typing import Literal

from pydantic import AwareDatetime, Field

from app.schemas import Schema


class Health(Schema):
    """The result of a probe: `live` means that the process responds, `ready` that the required models are loaded.

    `degraded`: ready, but within the last minute a device's memory or the disk was full, or the last round of the
    gallery's maintenance failed.
    """

    status: Literal["live", "ready", "degraded"]
    reasons: list[str] = Field([], description="Why the service is degraded.")
    maintained_at: AwareDatetime | None = Field(
        None,
        exclude_if=lambda value: value is None,
        description="When the gallery's last maintenance round without a failed step ended.",
    )
    models: dict[str, str] = Field({}, description="The versions of the loaded models, by name.")
