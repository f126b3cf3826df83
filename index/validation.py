"""Rules for values that enter the ledger, and readers of rows that older versions accepted.

Every way in (HTTP, bulk jobs, import, re-embedding, migration) passes these functions, because the functions that write
rows call them. So what is committed can be read back, answered as JSON, and addressed by a URL.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from index.errors import InvalidError
from index.types import Floats, Item, Properties

MAX_KEY, MAX_NAME = 128, 256  # characters
MAX_METADATA = 16 * 1024  # bytes of JSON
MAX_DEPTH = 100  # objects and lists in one another; pydantic writes no answer that is nested deeper than 255
_CONTAINERS = (dict, list, tuple)
# Seconds since 1970. A later time may be rounded up to the year 10000, which no datetime has.
EARLIEST, LATEST = datetime(1, 1, 1, tzinfo=UTC).timestamp(), datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp()

# By how much the squared length of a vector may differ from 1: float32 rounds it, and so does a network's own scaling.
UNIT_TOLERANCE = 1e-5

_UNASSIGNED = "Cn"
_PUNCTUATION = frozenset("_.@:+ -\u200c\u200d")
# Text that JSON's parser accepts although no answer can hold its value. Few rows have any of it.
_SUSPECT = re.compile(r"NaN|Infinity|[eE]\+?\d{3}|\d{300}|\\u[dD]")


def unit_vectors(vectors: npt.ArrayLike, dimensions: int) -> Floats:
    """Return the vectors [N, D] scaled to length 1, as float32.

    A float32 vector of length 1 is returned bit for bit, so that scaling again changes nothing. Others are divided by
    their largest component before the norm is taken, since squares of tiny numbers vanish and those of huge ones
    overflow.

    Raises:
        InvalidError: another number of dimensions, a number that is not finite, or a vector of zeros, which has no
            direction.
    """
    try:
        given = np.asarray(vectors)
    except ValueError as error:
        raise InvalidError(f"expected vectors of {dimensions} numbers each") from error
    if given.ndim != 2 or given.shape[1] != dimensions:
        raise InvalidError(f"expected vectors of {dimensions} numbers, got the shape {list(given.shape)}")
    numbers = given.astype(np.float64)
    if not np.isfinite(numbers).all():
        raise InvalidError("expected vectors of finite numbers")
    largest = np.abs(numbers).max(axis=1, keepdims=True, initial=0)
    if not largest.all():
        raise InvalidError("a vector of zeros has no direction")
    directions = numbers / largest
    scaled: Floats = (directions / np.linalg.norm(directions, axis=1, keepdims=True)).astype(np.float32)
    if given.dtype == np.float32:
        kept = are_unit(given)
        scaled[kept] = given[kept]
    return scaled


def are_unit(vectors: Floats) -> npt.NDArray[np.bool_]:
    """Return for each vector [N, D] whether its length is 1, but for rounding; False where a number is not finite."""
    numbers = vectors.astype(np.float64)
    with np.errstate(invalid="ignore"):  # of infinities
        unit: npt.NDArray[np.bool_] = abs(np.vecdot(numbers, numbers) - 1) < UNIT_TOLERANCE
    return unit


def check_key(key: str, what: str) -> None:
    """See that `key` can name `what` (a subject, a collection) in a URL: letters, digits, `_.@:+-` and spaces.

    Characters that this Python's Unicode version does not know are accepted: they may be letters of a later version,
    which the API's pattern knows.

    Raises:
        InvalidError: it is empty, longer than 128 characters, `.` or `..`, which clients take out of a URL; or it has
            another character, which the message names.
    """
    if not 0 < len(key) <= MAX_KEY:
        raise InvalidError(f"expected the {what}'s id to have 1 to {MAX_KEY} characters, got {len(key)}")
    if key in (".", ".."):
        raise InvalidError(f"the {what}'s id is {key!r}, which no URL can name")
    for character in key:
        category = unicodedata.category(character)
        if category[0] not in "LMN" and category != _UNASSIGNED and character not in _PUNCTUATION:
            raise InvalidError(f"the {what}'s id has the character U+{ord(character):04X}, which ids cannot have")


def check_subject(key: str, name: str | None, metadata: Mapping[str, Any], expires_at: float | None) -> None:
    """See that a subject can have these properties.

    Raises:
        InvalidError: see `check_key`, `check_object` and `check_timestamp`; or the name has more than 256 characters.
    """
    check_key(key, "subject")
    if name is not None and len(name) > MAX_NAME:
        raise InvalidError(f"expected a name of at most {MAX_NAME} characters, got {len(name)}")
    if name is not None and not _is_utf8(name):
        raise InvalidError("expected a name in UTF-8")
    check_object(metadata, "metadata")
    if expires_at is not None:
        check_timestamp(expires_at, "expires_at")


def check_item(item: Item) -> None:
    """Raise InvalidError if the subject of a bulk job's item cannot be stored; see `check_subject`."""
    properties = item.properties or Properties()
    check_subject(item.subject, properties.name, properties.metadata, properties.expires_at)


def check_object(value: object, what: str) -> None:
    """See that `value` is a JSON object that every client can read, of at most 16 KiB, nested at most 100 deep.

    Raises:
        InvalidError: it is not; also for NaN, infinities, and halves of surrogate pairs.
    """
    if not isinstance(value, Mapping):
        raise InvalidError(f"expected {what} to be a JSON object")
    if _is_deep(value):
        raise InvalidError(f"expected {what} to be nested at most {MAX_DEPTH} deep")
    try:
        size = len(json.dumps(dict(value), ensure_ascii=False, allow_nan=False).encode())
    except (ValueError, TypeError) as error:
        raise InvalidError(f"expected {what} to be JSON in UTF-8 with finite numbers") from error
    if size > MAX_METADATA:
        raise InvalidError(f"expected {what} of at most {MAX_METADATA} bytes, got {size}")


def check_timestamp(seconds: float, what: str) -> None:
    """See that these seconds since 1970 are a time that can be answered.

    Raises:
        InvalidError: they are not finite, or not in the years 1 to 9999.
    """
    if not EARLIEST <= seconds <= LATEST:  # not true of NaN either
        raise InvalidError(f"expected {what} to be a time from the year 1 to 9999-12-31T23:59:59Z")


def check_future(expires_at: float | None, now: float) -> None:
    """See that a subject which is stored now has not expired already.

    Raises:
        InvalidError: `expires_at` is not later than `now`.
    """
    if expires_at is not None and expires_at <= now:
        raise InvalidError("expires_at is in the past; to erase a subject, delete it")


def parse_object(text: str, what: str) -> dict[str, Any]:
    """Return the JSON object that `text` is.

    Raises:
        InvalidError: see `check_object`.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidError(f"expected {what} to be a JSON object") from error
    check_object(value, what)
    return dict(value)


def read_object(text: str) -> dict[str, Any]:
    """Return a stored JSON object as it can be answered; rows from older versions may hold what is refused today.

    What is nested deeper than 100 and numbers that are not finite become null; halves of surrogate pairs become U+FFFD;
    text that is not a JSON object becomes an empty one (`vestibule gallery verify` reports such a row).
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(value, dict):
        return {}
    if _SUSPECT.search(text) or text.count("{") + text.count("[") > MAX_DEPTH:
        value = _answerable(value, 0)
    return dict(value)


def read_timestamp(seconds: float) -> datetime:
    """Return stored seconds since 1970 as a time in UTC, at most the last second of the year 9999."""
    return datetime.fromtimestamp(min(max(seconds, EARLIEST), LATEST), UTC)


def _answerable(value: Any, depth: int) -> Any:
    if isinstance(value, dict | list) and depth == MAX_DEPTH:
        return None
    if isinstance(value, dict):
        return {_answerable(key, depth): _answerable(one, depth + 1) for key, one in value.items()}
    if isinstance(value, list):
        return [_answerable(one, depth + 1) for one in value]
    if isinstance(value, str):
        return value.encode(errors="surrogatepass").decode(errors="replace")
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _is_deep(value: object) -> bool:
    """Whether objects and lists are nested deeper than MAX_DEPTH; without recursion, whose own limit would end it."""
    level: list[Any] = [value]
    depth = 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            return True
        # Not `Mapping`: its check takes .2 s for a megabyte of numbers, and JSON has no object but a dict.
        parts = (one.values() if isinstance(one, Mapping) else one for one in level)
        level = [child for child in chain.from_iterable(parts) if isinstance(child, _CONTAINERS)]
    return False


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
