"""Responses of the health probes."""

from __future__ import annotations

from typing import Literal

from pydantic import AwareDatetime, Field

from app.schemas import Schema


class Health(Schema):
    """Probes: `live` means the process answers, `ready` that its default classifier and its face pair do.

    `degraded`: they do, but within the last minute something did not fit into a device's memory or on the disk, or the
    last round of the gallery's maintenance failed.
    """

    status: Literal["live", "ready", "degraded"]
    reasons: list[str] = Field([], description="Why it is degraded.")
    maintained_at: AwareDatetime | None = Field(
        None,
        exclude_if=lambda value: value is None,
        description="When the last round of the gallery's maintenance ended in which no step failed.",
    )
    models: dict[str, str] = Field({}, description="The versions of the loaded models, by name.")
