"""Filters of subjects by the values of their metadata."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from index.types import Where


def is_match(metadata: Mapping[str, Any], where: Where) -> bool:
    """Return whether the metadata have an allowed value under every key of the filter. Both are in Unicode form C."""
    return all(
        any((_kind(value), value) == (_kind(metadata.get(key)), metadata.get(key)) for value in allowed)
        for key, allowed in where.items()
    )


def _kind(value: object) -> str | None:
    """Return the type of a JSON value as filters distinguish them: a boolean is not a number."""
    kinds = ((bool, "boolean"), (str, "text"), (int | float, "number"))
    return next((name for kind, name in kinds if isinstance(value, kind)), None)
