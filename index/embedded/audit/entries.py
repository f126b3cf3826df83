"""What is in the audit log: acts, and the lines that tell of them, each bound to all before it by its hash.

A line is the SHA-256 of the hash before it and of what follows in the line itself, a space, and that: JSON with sorted
keys and no spaces. The hash before the first is that of the first line of the file, which tells of no act.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal

from index.errors import InvalidError

Action = Literal[
    "enrol",
    "search",
    "erase",
    "restore",
    "reembed",
    "create_key",
    "revoke_key",
    "reload",
    # Since 2.0.
    "create_collection",
    "put_subject",
    "feedback",
    "submit_job",
    "cancel_job",
    "begin_reembed",
    "cancel_reembed",
    "rekey",
    "scale_vectors",
    "normalise_id",
]
_ID = re.compile(r"[0-9A-Za-z_-]{1,64}")
HASH_LENGTH = hashlib.sha256().digest_size * 2


@dataclass(frozen=True)
class Act:
    """What was done, by whom (`actor`: an API key's id), and to what: ids of the ledger's.

    An erasure without subjects and faces is of the whole collection; its `id` is the receipt's token. Re-embedding is
    of all its faces; those it names are feedback that went. The faces of feedback have ids less than 0. `at`: seconds
    since 1970. What is not of a gallery says what it is `of`: a key's id, or a model's version; what is about a job or
    a re-embedding names that by its token.

    Raises:
        InvalidError: the actor, or what it is of, may be a name.
    """

    action: Action
    at: float
    actor: str | None = None
    collection: int | None = None
    subjects: Sequence[int] = ()
    faces: Sequence[int] = ()
    id: str = field(default_factory=partial(secrets.token_hex, 16))
    of: str | None = None

    def __post_init__(self) -> None:
        for what, value in (("actor", self.actor), ("of", self.of)):
            if value is not None and not _ID.fullmatch(value):
                raise InvalidError(f"{what}: expected up to 64 letters, digits, _ or -: an id, not a name")


@dataclass(frozen=True)
class Entry:
    """A line: the act, its number from 1, and the hash up to it."""

    sequence: int
    hash: str
    act: Act


def genesis(header: bytes) -> str:
    """The hash before the first line."""
    return hashlib.sha256(header).hexdigest()


def _dumped(content: dict[str, Any]) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"))


def _content(act: Act) -> dict[str, Any]:
    content = {**act.__dict__, "at": datetime.fromtimestamp(act.at, UTC).isoformat(timespec="microseconds")}
    if act.of is None:
        del content["of"]  # which the gallery's lines never had
    return content


def _act(content: dict[str, Any]) -> Act:
    lists = {name: tuple(content[name]) for name in ("subjects", "faces")}
    return Act(**{**content, **lists, "at": datetime.fromisoformat(content["at"]).timestamp()})


def noted(act: Act) -> str:
    """The act as JSON, to wait for its line."""
    return _dumped(_content(act))


def from_note(text: str) -> Act:
    """What was noted."""
    return _act(json.loads(text))


def line_of(sequence: int, previous: str, act: Act) -> bytes:
    """The line, after one of the hash `previous`."""
    text = _dumped({**_content(act), "sequence": sequence}).encode()
    return f"{_hash(previous, text)} ".encode() + text + b"\n"


def _hash(previous: str, text: bytes) -> str:
    return hashlib.sha256(previous.encode() + text).hexdigest()


def parsed(line: bytes) -> Entry | None:
    """What a line says, whether or not it is true; None where it says nothing."""
    try:
        content: dict[str, Any] = json.loads(line[HASH_LENGTH + 1 :])
        return Entry(content.pop("sequence"), line[:HASH_LENGTH].decode(), _act(content))
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def fault_of(line: bytes, previous: str, sequence: int, heads: Mapping[int, set[str]]) -> str | None:
    """What is wrong with a line that should be of that number."""
    entry = parsed(line)
    if entry is None or not line.endswith(b"\n"):
        return "it is not what was written"
    if entry.sequence != sequence:
        return f"{entry.sequence} stands in its place"
    if entry.hash != _hash(previous, line[HASH_LENGTH + 1 : -1]) or line[HASH_LENGTH:][:1] != b" ":
        return "it was changed, or something before it"
    if heads.get(sequence, {entry.hash}) != {entry.hash}:
        return "it is not what is known of it elsewhere"
    return None
