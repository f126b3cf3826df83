"""Sightings: one person in front of one camera; their types and rules, independent of the storage engine.

Times are seconds since 1970.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, fields

from index.errors import InvalidError
from index.types import Collection, Floats, Subject
from index.validation import check_timestamp

DAY_S = 86_400.0
# How long a collection may keep sightings, in seconds.
MIN_RETENTION_S, MAX_RETENTION_S = 60.0, 366 * DAY_S
AHEAD_S = 300.0  # how far the clock of a camera may be ahead of the gallery's
MAX_FRAMES = 2**31 - 1

_CAMERA = re.compile(r"[0-9A-Za-z_-]{1,64}")


@dataclass(frozen=True)
class SightingSettings:
    """How long a collection keeps sightings of unknown people and of subjects, in seconds.

    `pseudonyms`: faces of unknown people are stored, and a person who is seen again gets the same pseudonym.
    """

    unknown_s: float = DAY_S
    known_s: float = 30 * DAY_S
    pseudonyms: bool = False


@dataclass(frozen=True)
class Observation:
    """What a camera saw: a person from `started_at` to `ended_at`, in `frames` frames, and how the person was decided.

    `probability` and `distance` are those of the nearest subject, as searches return them: 0..1, and 1 - cosine, 0..2.
    `fpir` and `threshold` are the operating point: the false positive identification rate, and the largest distance of
    a match.
    """

    camera: str
    started_at: float
    ended_at: float
    frames: int
    probability: float | None = None
    distance: float | None = None
    fpir: float | None = None
    threshold: float | None = None

    def observed(self) -> tuple[object, ...]:
        """Return the values of an Observation in the order of its fields."""
        return tuple(getattr(self, field.name) for field in fields(Observation))


@dataclass(frozen=True)
class UnknownFace:
    """The vector [D] of an unknown person's face from the pipeline `fingerprint`, by which to recognise the person.

    `threshold` returns the least cosine similarity of two faces of one person for a number of stored faces that the
    vector is compared with; None: none is sufficient.
    """

    vector: Floats
    fingerprint: str
    threshold: Callable[[int], float | None]


@dataclass(frozen=True)
class RecognisedFace:
    """The vector of an unknown person's face, of length 1, and the pseudonym of the person."""

    vector: Floats
    pseudonym: str


@dataclass(frozen=True, kw_only=True)
class NewSighting(Observation):
    """A sighting to store: of the subject with the key `subject`, None for an unknown person.

    `crop`: the encoded best shot. `face`: that of an unknown person.
    """

    subject: str | None = None
    crop: bytes | None = None
    face: UnknownFace | None = None


@dataclass(frozen=True, kw_only=True)
class Sighting(Observation):
    """A stored sighting; `subject` is None for an unknown person.

    `position` increases in the order of the commits. `token` is the public id, `id` is the random number in the audit
    log. `collection` is a name. From `expires_at` on the sighting is not found. `pseudonym`: that of an unknown person,
    if the collection gives pseudonyms and the sighting has a face.
    """

    position: int
    id: int
    token: str
    collection: str
    subject: Subject | None
    created_at: float
    expires_at: float
    has_crop: bool = False
    pseudonym: str | None = None


@dataclass(frozen=True)
class SightingFilter:
    """Which sightings to list: those for which all conditions that are not None hold.

    `subject`: a key. `unknown`: only of unknown people, or only of subjects. A sighting overlaps the time from `since`
    until before `until`.
    """

    camera: str | None = None
    subject: str | None = None
    pseudonym: str | None = None
    unknown: bool | None = None
    since: float | None = None
    until: float | None = None

    def values(self, subject_id: int | None) -> dict[str, str | int | float | bool | None]:
        """Return the values of the conditions, with the id of the subject in place of its key."""
        return {
            "camera": self.camera,
            "subject_id": subject_id,
            "pseudonym": self.pseudonym,
            "unknown": self.unknown,
            "since": self.since,
            "until": self.until,
        }


ALL_SIGHTINGS = SightingFilter()


def new_ids() -> tuple[int, str]:
    """Return a random id, above 0, and a random token for a new sighting."""
    return secrets.randbelow(2**62) + 1, secrets.token_hex(16)


def named(vector: Floats, face: UnknownFace, count: int, nearest: tuple[str, float] | None) -> RecognisedFace:
    """Return the face with its vector of length 1 and its pseudonym.

    `count`: the number of stored faces. `nearest`: pseudonym and similarity of the most similar one.
    """
    threshold = face.threshold(count)
    if nearest is not None and threshold is not None and nearest[1] >= threshold:
        return RecognisedFace(vector, nearest[0])
    return RecognisedFace(vector, secrets.token_hex(8))


def check_camera(camera: str) -> None:
    """Raise InvalidError if this is not the id of a camera: 1 to 64 letters, digits, `_` and `-` of ASCII."""
    if not _CAMERA.fullmatch(camera):
        raise InvalidError("expected the camera's id to have 1 to 64 letters, digits, _ or -")


def check_settings(settings: SightingSettings) -> None:
    """Raise InvalidError if a time of the settings is not one of 60 s to 366 days."""
    for name, seconds in (("unknown_s", settings.unknown_s), ("known_s", settings.known_s)):
        if not MIN_RETENTION_S <= seconds <= MAX_RETENTION_S:  # also true of NaN
            raise InvalidError(f"expected {name} from {MIN_RETENTION_S:.0f} to {MAX_RETENTION_S:.0f} seconds")


def check_sighting(sighting: NewSighting, now: float) -> None:
    """Raise InvalidError if the camera's id, the times, the frames or a measurement cannot be stored."""
    check_camera(sighting.camera)
    check_timestamp(sighting.started_at, "started_at")
    check_timestamp(sighting.ended_at, "ended_at")
    if sighting.ended_at < sighting.started_at:
        raise InvalidError("ended_at is before started_at")
    if sighting.ended_at > now + AHEAD_S:
        raise InvalidError(f"ended_at is more than {AHEAD_S:.0f} s ahead; set the camera's clock")
    if not 0 < sighting.frames <= MAX_FRAMES:
        raise InvalidError(f"expected frames from 1 to {MAX_FRAMES}")
    for name, value, largest in (
        ("probability", sighting.probability, 1),
        ("distance", sighting.distance, 2),
        ("fpir", sighting.fpir, 1),
        ("threshold", sighting.threshold, 2),
    ):
        if value is not None and not 0 <= value <= largest:  # also true of NaN
            raise InvalidError(f"expected {name} from 0 to {largest}")


def face_to_recognise(sighting: NewSighting, settings: SightingSettings, collection: Collection) -> UnknownFace | None:
    """Return the face of the sighting if it may be stored, and compared with the collection's other faces."""
    face = sighting.face if settings.pseudonyms and sighting.subject is None else None
    return face if face and face.fingerprint == collection.fingerprint else None


def expiry(sighting: NewSighting, settings: SightingSettings, now: float) -> float:
    """Return when the sighting expires, counted from its end, or from `now` if it ends later.

    Raises:
        InvalidError: it ended longer ago than the collection keeps sightings.
    """
    kept = settings.unknown_s if sighting.subject is None else settings.known_s
    expires_at = min(sighting.ended_at, now) + kept
    if expires_at <= now:
        raise InvalidError(f"the sighting ended longer ago than the collection keeps sightings, {kept:.0f} s")
    return expires_at
