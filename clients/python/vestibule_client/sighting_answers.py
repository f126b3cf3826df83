"""The responses about sightings as typed models."""

from __future__ import annotations

from datetime import datetime

from vestibule_client.answers import Answer


class StoredSighting(Answer):
    """A sighting that was stored; `position` is its place in the order of all.

    `pseudonym`: an unknown person's, if the collection gives pseudonyms.
    """

    id: str
    position: int
    created_at: datetime
    expires_at: datetime
    pseudonym: str | None = None


class Sighting(StoredSighting):
    """A sighting of a subject, or of an unknown person (`subject_id` is None), in front of a camera.

    `probability` to `threshold` are values of a search: of its nearest candidate, and its operating point.
    """

    collection: str
    camera: str
    started_at: datetime
    ended_at: datetime
    frames: int
    subject_id: str | None
    name: str | None
    probability: float | None
    distance: float | None
    fpir: float | None
    threshold: float | None
    has_crop: bool


class SightingPage(Answer):
    """A page of sightings; `next` is the `after` of the next page, None on the last."""

    data: list[Sighting]
    next: int | None


class SightingSettings(Answer):
    """How long a collection keeps sightings of unknown people and of subjects, in seconds."""

    unknown_s: float
    known_s: float
    pseudonyms: bool = False
