"""Requests and responses about sightings."""

from __future__ import annotations

from typing import Annotated

from pydantic import AwareDatetime, Field, StrictBool, StringConstraints

from app.gallery.schemas import Key, Page, Timestamp
from app.schemas import Schema
from index.sightings import MAX_FRAMES, MAX_RETENTION_S, MIN_RETENTION_S

# Characters of base64; the body of a request without images may have 1 MiB.
MAX_CROP_CHARACTERS = 768 * 1024

Camera = Annotated[
    str,
    StringConstraints(pattern=r"^[0-9A-Za-z_-]{1,64}$"),
    Field(description="The camera's id, which the caller chooses."),
]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Rate = Annotated[Finite, Field(ge=0, le=1)]
Distance = Annotated[Finite, Field(ge=0, le=2)]
Retention = Annotated[Finite, Field(ge=MIN_RETENTION_S, le=MAX_RETENTION_S)]


class NewSightingBody(Schema):
    """The body of `POST /sightings`; `probability` to `threshold` are values of the response of `/search`."""

    collection: Key
    camera: Camera
    started_at: Timestamp
    ended_at: Timestamp = Field(description="At most 5 minutes ahead of the service's clock.")
    frames: Annotated[int, Field(ge=1, le=MAX_FRAMES, description="The number of frames that show the person.")]
    subject_id: Key | None = Field(None, description="The subject, which must exist; null: an unknown person.")
    probability: Rate | None = None
    distance: Distance | None = None
    fpir: Rate | None = None
    threshold: Distance | None = None
    crop: Annotated[str, StringConstraints(max_length=MAX_CROP_CHARACTERS)] | None = Field(
        None, description="The best shot in base64; it is stored with at most 384 x 384 pixels."
    )


class StoredSighting(Schema):
    """A sighting that was stored: its id, its place in the order of all, and when it expires.

    `pseudonym`: an unknown person's, if the collection gives pseudonyms and the best shot has a face.
    """

    id: str
    position: int
    created_at: AwareDatetime
    expires_at: AwareDatetime
    pseudonym: str | None


class SightingInfo(StoredSighting):
    """A sighting of a subject, or of an unknown person (`subject_id` is null), in front of a camera.

    `probability` to `threshold`: see `Candidate` and `SearchResponse`.
    """

    collection: str
    camera: str
    started_at: AwareDatetime
    ended_at: AwareDatetime
    frames: int
    subject_id: str | None
    name: str | None
    probability: float | None
    distance: float | None
    fpir: float | None
    threshold: float | None
    has_crop: bool


class SightingPage(Page[SightingInfo, int]):
    """A page of sightings; `next` is the `after` of the following page.

    A reader who waits for new sightings continues after the `position` of the last one.
    """


class SightingParams(Schema):
    """The query of `GET /sightings`."""

    collection: Key
    camera: Camera | None = None
    subject_id: Key | None = None
    pseudonym: Key | None = None
    unknown: bool | None = Field(None, description="Only sightings of unknown people, or only of subjects.")
    since: Timestamp | None = Field(None, description="Only sightings that ended at this time or later.")
    until: Timestamp | None = Field(None, description="Only sightings that began before this time.")
    after: Annotated[
        int, Field(ge=0, le=2**62, description="Where the page begins: the `next` of the previous page.")
    ] = 0
    limit: Annotated[int, Field(ge=1, le=1000)] = 100
    newest_first: bool = Field(False, description="The latest sightings first.")


class SightingSettingsInfo(Schema):
    """How long a collection keeps sightings of unknown people and of subjects, in seconds from their end."""

    unknown_s: Retention
    known_s: Retention
    pseudonyms: StrictBool = Field(
        False,
        description=(
            "Store the faces of unknown people, and give a person who is seen again the same pseudonym. This is"
            " biometric tracking, which many laws restrict."
        ),
    )
