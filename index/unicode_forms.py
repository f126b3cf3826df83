"""Unicode normalisation form C of ids and metadata, so that equivalent spellings are one id."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeVar
from unicodedata import normalize

from index.validation import MAX_KEY

T = TypeVar("T")

FORM: Final = "NFC"


def normalised(id: str) -> str:
    """Return the id in form C, or unchanged where form C is longer than ids may be."""
    form_c = normalize(FORM, id)
    return form_c if len(form_c) <= MAX_KEY else id


def normalised_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata with the keys and texts of its first level, which filters compare, in form C.

    It is returned unchanged if two keys are equal in form C.
    """
    changed = {normalize(FORM, key): _normalised_value(value) for key, value in metadata.items()}
    return changed if len(changed) == len(metadata) else dict(metadata)


def normalised_where(where: Mapping[str, Iterable[T]]) -> dict[str, list[T]]:
    """Return a metadata filter (allowed values by key) in form C, with the values of equal keys merged."""
    allowed: dict[str, list[T]] = {}
    for key, values in where.items():
        allowed.setdefault(normalize(FORM, key), []).extend(map(_normalised_value, values))
    return allowed


def normalised_json(metadata: str) -> str:
    """Return `normalised_metadata` of a JSON text; the same text if nothing changes or it is not a JSON object."""
    if metadata.isascii() and "\\u" not in metadata:
        return metadata
    try:
        before = json.loads(metadata)
        if not isinstance(before, dict):
            return metadata
        after = normalised_metadata(before)
        return metadata if after == before else json.dumps(after)
    except (ValueError, RecursionError):
        return metadata


def _normalised_value(value: Any) -> Any:
    return normalize(FORM, value) if isinstance(value, str) else value
