"""Ids and metadata in Unicode normalisation form C, so that the ways to write one name are one id."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeVar
from unicodedata import normalize

T = TypeVar("T")

FORM: Final = "NFC"
# Characters of an id; some ids are longer in form C, and one that would be too long stays as it is.
LONGEST = 128


def normalised(id: str) -> str:
    """The id in form C."""
    form_c = normalize(FORM, id)
    return form_c if len(form_c) <= LONGEST else id


def normalised_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata with keys and texts of its first level, by which subjects are chosen, in form C.

    As it is where two keys would become one.
    """
    changed = {normalize(FORM, key): _normalised_value(value) for key, value in metadata.items()}
    return changed if len(changed) == len(metadata) else dict(metadata)


def normalised_where(where: Mapping[str, Iterable[T]]) -> dict[str, list[T]]:
    """Wanted values by key, as `normalised_metadata` has them; values of keys that become one are wanted alike."""
    wanted: dict[str, list[T]] = {}
    for key, values in where.items():
        wanted.setdefault(normalize(FORM, key), []).extend(map(_normalised_value, values))
    return wanted


def normalised_json(metadata: str) -> str:
    """`normalised_metadata` of JSON, which is returned as it is where nothing changes or where it is no JSON object."""
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
