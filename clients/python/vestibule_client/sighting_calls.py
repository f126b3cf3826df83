"""The calls for sightings as functions of their arguments."""

from __future__ import annotations

import base64
from datetime import datetime

from vestibule_client.call import Call
from vestibule_client.files import File
from vestibule_client.gallery_answers import ErasureReceipt
from vestibule_client.pictures import Picture, content
from vestibule_client.sighting_answers import Sighting, SightingPage, SightingSettings, StoredSighting

_SIGHTING = "/sightings/{sighting}"
_SETTINGS = "/collections/{collection}/sighting-settings"


def add_sighting(  # noqa: PLR0913  the endpoint's fields
    collection: str,
    camera: str,
    started_at: datetime,
    ended_at: datetime,
    frames: int,
    *,
    subject_id: str | None = None,
    probability: float | None = None,
    distance: float | None = None,
    fpir: float | None = None,
    threshold: float | None = None,
    crop: Picture | None = None,
    idempotency_key: str | None = None,
) -> Call[StoredSighting]:
    """Store that a camera saw a subject, or an unknown person, in so many frames; the times need a time zone.

    `probability` and `distance` are those of the nearest candidate of the search, `fpir` and `threshold` its operating
    point; `crop` is the best shot. A call that is repeated with the same `idempotency_key`, within a day, stores
    nothing and returns the result of the first.
    """
    body = {
        "collection": collection,
        "camera": camera,
        "started_at": started_at.isoformat(),
        "ended_at": ended_at.isoformat(),
        "frames": frames,
        "subject_id": subject_id,
        "probability": probability,
        "distance": distance,
        "fpir": fpir,
        "threshold": threshold,
        "crop": None if crop is None else base64.b64encode(content(crop)).decode(),
    }
    headers = {} if idempotency_key is None else {"idempotency-key": idempotency_key}
    return Call("POST", "/sightings", StoredSighting, json=body, headers=headers)


def sightings(  # noqa: PLR0913  the endpoint's parameters
    collection: str,
    *,
    camera: str | None = None,
    subject_id: str | None = None,
    pseudonym: str | None = None,
    unknown: bool | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    after: int = 0,
    limit: int = 100,
    newest_first: bool = False,
) -> Call[SightingPage]:
    """List sightings by page; `after` is `next` of the previous page, or the `position` of the last sighting read.

    `unknown`: only sightings of unknown people, or only of subjects. They overlap the time from `since` to `until`.
    """
    query = {
        "collection": collection,
        "camera": camera,
        "subject_id": subject_id,
        "pseudonym": pseudonym,
        "unknown": unknown,
        "since": since.isoformat() if since else None,
        "until": until.isoformat() if until else None,
        "after": after,
        "limit": limit,
        "newest_first": newest_first,
    }
    return Call("GET", "/sightings", SightingPage, query=query)


def sighting(sighting: str) -> Call[Sighting]:
    """Return a sighting."""
    return Call("GET", _SIGHTING, Sighting, {"sighting": sighting})


def sighting_crop(sighting: str) -> Call[File]:
    """Return the best shot of a sighting; raises `NotFound` if it has none."""
    return Call("GET", _SIGHTING + "/crop", File, {"sighting": sighting})


def erase_sighting(sighting: str) -> Call[ErasureReceipt]:
    """Erase a sighting."""
    return Call("DELETE", _SIGHTING, ErasureReceipt, {"sighting": sighting})


def sighting_settings(collection: str) -> Call[SightingSettings]:
    """Return how long a collection keeps sightings."""
    return Call("GET", _SETTINGS, SightingSettings, {"collection": collection})


def put_sighting_settings(
    collection: str, *, unknown_s: float, known_s: float, pseudonyms: bool = False
) -> Call[SightingSettings]:
    """Set how long a collection keeps sightings of unknown people and of subjects, in seconds.

    A shorter time applies to all its sightings, a longer one to new ones. `pseudonyms`: store the faces of unknown
    people, and give a person who is seen again the same pseudonym.
    """
    body = {"unknown_s": unknown_s, "known_s": known_s, "pseudonyms": pseudonyms}
    return Call("PUT", _SETTINGS, SightingSettings, {"collection": collection}, json=body)
