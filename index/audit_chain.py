"""Events of an audit log and its hash chain, independent of where a storage engine keeps the lines.

Every line is an event: a SHA-256, a space, and JSON with sorted keys and no spaces. The hash covers the previous line's
hash and the JSON; the hash before the first event is that of a header line, which names the format, the version and the
owner.
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

MAGIC, VERSION = "vestibule-audit", 1
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
    "create_alert_rule",
    "put_alert_rule",
    "delete_alert_rule",
    "resend_alert",
    "begin_reembed",
    "cancel_reembed",
    "rekey",
    "scale_vectors",
    "normalise_id",
    "merge_subjects",
    "undo_merge",
    "forget_merge",
    "move_faces",
    "import",
    "add_sighting",
    "put_sighting_settings",
    "allow_pseudonyms",
    "forbid_pseudonyms",
    "calibrate",
    "use_calibration",
]
_ID = re.compile(r"[0-9A-Za-z_-]{1,64}")
HASH_LENGTH = hashlib.sha256().digest_size * 2


@dataclass(frozen=True)
class AuditEvent:
    """An action, its time in seconds since 1970, its `actor` (an API key's id), and the ids it applies to.

    An erasure without subjects and faces is of the whole collection; its `id` is the receipt's token. A re-embedding
    is of all faces of the collection; `faces` names the feedback that it discards. Feedback and sightings are among the
    faces, with negative ids. `of` names an object that is not in a gallery, such as an API key or a model's version, or
    the token of a job, a re-embedding, a merge or a calibration; without `of`, the embedder's own calibration is used
    again. An import of a whole gallery is `of` the hash of the last line of that gallery's log.

    Raises:
        InvalidError: `actor` or `of` is not an id, and could be a person's name.
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
        for name, value in (("actor", self.actor), ("of", self.of)):
            if value is not None and not _ID.fullmatch(value):
                raise InvalidError(f"{name}: expected up to 64 letters, digits, _ or -: an id, not a name")


@dataclass(frozen=True)
class AuditEntry:
    """A line of the log: its number from 1, the hash of the chain up to it, and its event."""

    sequence: int
    hash: str
    event: AuditEvent


@dataclass(frozen=True)
class LogHead:
    """The number and the hash of the last line. Store it where a person who can write to the log cannot change it."""

    sequence: int
    hash: str


@dataclass(frozen=True)
class LogFault:
    """The first line that is not valid, by its number (0: the header), and the reason."""

    sequence: int
    reason: str


def initial_hash(header: bytes) -> str:
    """Return the hash before the first event."""
    return hashlib.sha256(header).hexdigest()


def format_line(sequence: int, previous: str, event: AuditEvent) -> bytes:
    """Return the line that follows a line with the hash `previous`."""
    text = _dumped({**_fields(event), "sequence": sequence}).encode()
    return f"{_hash(previous, text)} ".encode() + text + b"\n"


def parse_line(line: bytes) -> AuditEntry | None:
    """Return the entry of a line without checking its hash; None where the line is malformed."""
    try:
        fields: dict[str, Any] = json.loads(line[HASH_LENGTH + 1 :])
        return AuditEntry(fields.pop("sequence"), line[:HASH_LENGTH].decode(), read_event(fields))
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def find_fault(line: bytes, previous: str, sequence: int, heads: Mapping[int, set[str]]) -> str | None:
    """Return why the line is not valid as number `sequence` after the hash `previous`, or None.

    `heads`: hashes of the log that were recorded elsewhere, by sequence number.
    """
    entry = parse_line(line)
    if entry is None or not line.endswith(b"\n"):
        return "the line is malformed"
    if entry.sequence != sequence:
        return f"the line has the number {entry.sequence}"
    if entry.hash != _hash(previous, line[HASH_LENGTH + 1 : -1]) or line[HASH_LENGTH:][:1] != b" ":
        return "the hash does not match: this line or an earlier one was changed"
    if heads.get(sequence, {entry.hash}) != {entry.hash}:
        return "the hash differs from the one recorded elsewhere"
    return None


def dump_event(event: AuditEvent) -> str:
    """Return the event as JSON."""
    return _dumped(_fields(event))


def read_event(fields: dict[str, Any]) -> AuditEvent:
    """Return the event of a line's parsed JSON."""
    lists = {name: tuple(fields[name]) for name in ("subjects", "faces")}
    return AuditEvent(**{**fields, **lists, "at": datetime.fromisoformat(fields["at"]).timestamp()})


def _dumped(fields: dict[str, Any]) -> str:
    return json.dumps(fields, sort_keys=True, separators=(",", ":"))


def _fields(event: AuditEvent) -> dict[str, Any]:
    fields = {**event.__dict__, "at": datetime.fromtimestamp(event.at, UTC).isoformat(timespec="microseconds")}
    if event.of is None:
        del fields["of"]  # lines of older versions do not have it
    return fields


def _hash(previous: str, text: bytes) -> str:
    return hashlib.sha256(previous.encode() + text).hexdigest()
