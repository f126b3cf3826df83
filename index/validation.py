"""Validation and normalisation of values that are stored in the ledger, and readers of rows of older versions.

The functions that write rows call these, so every source (HTTP, bulk jobs, import, re-embedding, migration) is
validated. All committed values can be read back, returned as JSON, and addressed by a URL. Ids and metadata are stored
in Unicode form C, so that equivalent spellings are the same id.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from index.errors import ConflictError, InvalidError
from index.types import Collection, Floats, Item, Properties

T = TypeVar("T")

MAX_KEY, MAX_NAME = 128, 256  # characters
MAX_METADATA = 16 * 1024  # bytes of JSON
MAX_DEPTH = 100  # nested objects and lists; pydantic serialises at most 255
_CONTAINERS = (dict, list, tuple)
# Seconds since 1970. A later time may be rounded up to the year 10000, which datetime does not support.
EARLIEST, LATEST = datetime(1, 1, 1, tzinfo=UTC).timestamp(), datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp()

# Tolerance of a unit vector's squared length, for float32 rounding and a network's own scaling.
UNIT_TOLERANCE = 1e-5
ROUNDING = 1e-5  # the largest difference between two computations of the same cosine

_UNASSIGNED = "Cn"
_PUNCTUATION = frozenset("_.@:+ -\u200c\u200d")
# Texts that Python's JSON parser accepts although a response cannot contain their values. Few rows match.
_SUSPECT = re.compile(r"NaN|Infinity|[eE]\+?\d{3}|\d{300}|\\u[dD]")


def unit_vectors(vectors: npt.ArrayLike, dimensions: int) -> Floats:
    """Return the vectors [N, D] scaled to length 1, as float32.

    A float32 vector of length 1 is returned bit for bit, so scaling is idempotent. Others are divided by their largest
    component before the norm is computed, because squares of tiny numbers underflow and those of huge ones overflow.

    Raises:
        InvalidError: if a vector has another number of dimensions, a number that is not finite, or only zeros.
    """
    try:
        array = np.asarray(vectors)
    except ValueError as error:
        raise InvalidError(f"expected vectors of {dimensions} numbers each") from error
    if array.ndim != 2 or array.shape[1] != dimensions:
        raise InvalidError(f"expected vectors of {dimensions} numbers, got the shape {list(array.shape)}")
    is_unit = are_unit(array) if array.dtype == np.float32 else np.zeros(len(array), np.bool_)
    if is_unit.all():
        return array.copy()
    numbers = array.astype(np.float64)
    if not np.isfinite(numbers).all():
        raise InvalidError("expected vectors of finite numbers")
    largest = np.abs(numbers).max(axis=1, keepdims=True, initial=0)
    if not largest.all():
        raise InvalidError("a vector of zeros has no direction")
    directions = numbers / largest
    scaled: Floats = (directions / np.linalg.norm(directions, axis=1, keepdims=True)).astype(np.float32)
    scaled[is_unit] = array[is_unit]
    return scaled


def are_unit(vectors: Floats) -> npt.NDArray[np.bool_]:
    """Return for each vector [N, D] whether its length is 1 within rounding; False if a number is not finite."""
    numbers = vectors.astype(np.float64)
    with np.errstate(invalid="ignore"):  # infinities
        unit: npt.NDArray[np.bool_] = abs(np.vecdot(numbers, numbers) - 1) < UNIT_TOLERANCE
    return unit


def check_fingerprint(collection: Collection, fingerprint: str | None) -> None:
    """Raise ConflictError if the vectors of this pipeline cannot be compared with the collection's.

    None stands for the collection's own pipeline.
    """
    if fingerprint not in (None, collection.fingerprint):
        raise ConflictError(f"{collection.name!r} holds vectors of {collection.fingerprint}, not of {fingerprint}")


def check_key(key: str, kind: str) -> None:
    """Raise InvalidError if `key` cannot be the id of a `kind` ("subject", "collection") in a URL.

    An id has 1 to 128 letters, digits, spaces and `_.@:+-`, and is not `.` or `..`, which clients remove from URLs.
    Characters that this Python's Unicode version does not define are accepted: they may be letters of a later version,
    which the API's pattern accepts.
    """
    if not 0 < len(key) <= MAX_KEY:
        raise InvalidError(f"expected the {kind}'s id to have 1 to {MAX_KEY} characters, got {len(key)}")
    if key in (".", ".."):
        raise InvalidError(f"the {kind}'s id is {key!r}, which no URL can name")
    for character in key:
        category = unicodedata.category(character)
        if category[0] not in "LMN" and category != _UNASSIGNED and character not in _PUNCTUATION:
            raise InvalidError(f"the {kind}'s id has the character U+{ord(character):04X}, which ids cannot have")


def check_subject(key: str, name: str | None, metadata: Mapping[str, Any], expires_at: float | None) -> None:
    """Raise InvalidError if a subject cannot have these properties.

    See `check_key`, `check_object` and `check_timestamp`; a name has at most 256 characters.
    """
    check_key(key, "subject")
    if name is not None and len(name) > MAX_NAME:
        raise InvalidError(f"expected a name of at most {MAX_NAME} characters, got {len(name)}")
    if name is not None and name.encode(errors="ignore").decode() != name:  # lone surrogates
        raise InvalidError("expected a name in UTF-8")
    check_object(metadata, "metadata")
    if expires_at is not None:
        check_timestamp(expires_at, "expires_at")


def check_item(item: Item) -> None:
    """Raise InvalidError if the subject of a bulk job's item cannot be stored; see `check_subject`."""
    properties = item.properties or Properties()
    check_subject(item.subject, properties.name, properties.metadata, properties.expires_at)


def check_object(value: object, name: str) -> None:
    """Raise InvalidError if `value` is not a JSON object of at most 16 KiB, nested at most 100 deep.

    NaN, infinities and lone surrogates are refused, because not every client can read them.
    """
    if not isinstance(value, Mapping):
        raise InvalidError(f"expected {name} to be a JSON object")
    if _is_deep(value):
        raise InvalidError(f"expected {name} to be nested at most {MAX_DEPTH} deep")
    try:
        size = len(json.dumps(dict(value), ensure_ascii=False, allow_nan=False).encode())
    except (ValueError, TypeError) as error:
        raise InvalidError(f"expected {name} to be JSON in UTF-8 with finite numbers") from error
    if size > MAX_METADATA:
        raise InvalidError(f"expected {name} of at most {MAX_METADATA} bytes, got {size}")


def check_timestamp(seconds: float, name: str) -> None:
    """Raise InvalidError if these seconds since 1970 are not finite or not in the years 1 to 9999."""
    if not EARLIEST <= seconds <= LATEST:  # also true of NaN
        raise InvalidError(f"expected {name} to be a time from the year 1 to 9999-12-31T23:59:59Z")


def check_future(expires_at: float | None, now: float) -> None:
    """Raise InvalidError if `expires_at` is not later than `now`."""
    if expires_at is not None and expires_at <= now:
        raise InvalidError("expires_at is in the past; to erase a subject, delete it")


def parse_object(text: str, name: str) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        InvalidError: see `check_object`.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidError(f"expected {name} to be a JSON object") from error
    check_object(value, name)
    return dict(value)


def read_object(text: str) -> dict[str, Any]:
    """Parse a stored JSON object. Replace values that older versions accepted and a response cannot contain.

    Values nested deeper than 100 and numbers that are not finite become null; lone surrogates become U+FFFD; text that
    is not a JSON object becomes an empty one (`vestibule gallery verify` reports such a row).
    """
    if text == "{}":  # as most are
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(value, dict):
        return {}
    if _SUSPECT.search(text) or text.count("{") + text.count("[") > MAX_DEPTH:
        value = _serialisable(value, 0)
    return dict(value)


def read_timestamp(seconds: float) -> datetime:
    """Return stored seconds since 1970 as a time in UTC, at most the last second of the year 9999."""
    return datetime.fromtimestamp(min(max(seconds, EARLIEST), LATEST), UTC)


def normalised(id: str) -> str:
    """Return the id in form C, or unchanged where form C is longer than ids may be."""
    form_c = unicodedata.normalize("NFC", id)
    return form_c if len(form_c) <= MAX_KEY else id


def normalised_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata with the keys and texts of its first level, which filters compare, in form C.

    It is returned unchanged if two keys are equal in form C.
    """
    changed = {unicodedata.normalize("NFC", key): _normalised_value(value) for key, value in metadata.items()}
    return changed if len(changed) == len(metadata) else dict(metadata)


def normalised_where(where: Mapping[str, Iterable[T]]) -> dict[str, list[T]]:
    """Return a metadata filter (allowed values by key) in form C, with the values of equal keys merged."""
    allowed: dict[str, list[T]] = {}
    for key, values in where.items():
        allowed.setdefault(unicodedata.normalize("NFC", key), []).extend(map(_normalised_value, values))
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
    return unicodedata.normalize("NFC", value) if isinstance(value, str) else value


def _serialisable(value: Any, depth: int) -> Any:
    if isinstance(value, dict | list) and depth == MAX_DEPTH:
        return None
    if isinstance(value, dict):
        return {_serialisable(key, depth): _serialisable(child, depth + 1) for key, child in value.items()}
    if isinstance(value, list):
        return [_serialisable(child, depth + 1) for child in value]
    if isinstance(value, str):
        return value.encode(errors="surrogatepass").decode(errors="replace")
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _is_deep(value: object) -> bool:
    """Return whether objects and lists are nested deeper than MAX_DEPTH; iterative, because recursion is limited."""
    level: list[Any] = [value]
    depth = 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            return True
        children = chain.from_iterable(node.values() if isinstance(node, Mapping) else node for node in level)
        # Not `Mapping`: isinstance with an ABC takes .2 s for a megabyte of numbers, and JSON objects are dicts.
        level = [child for child in children if isinstance(child, _CONTAINERS)]
    return False
